"""The events of an experiment as server-sent events (HTML standard, section 9.2): followed live, resumed by number."""

import json
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse

from propeller.coordinator.experiment_store import StoredEvent
from propeller.coordinator.experiments import Experiments
from propeller.coordinator.rounds import format_unix_time
from propeller.errors import InvalidError
from propeller.protocol.wire import read_count

HEARTBEAT_S = 15.0
"""A comment is sent when nothing has happened for so long, in seconds: proxies close silent connections."""

_HEARTBEAT = ": nothing new\n\n"


def read_last_event_id(header: str | None) -> int:
    """The number of the last event that a client has; 0 for a client that has none.

    Raises:
        InvalidError: the header is no number.
    """
    if not header:
        return 0
    number = read_count(header)
    if number is None:
        raise InvalidError(f"Last-Event-ID: {header[:40]!r} is not the id of an event, which is a number")
    return number


def stream_events(service: Experiments, experiment_id: str, after: int) -> StreamingResponse:
    """The events after number ``after``, until the experiment is over and all are sent."""
    return StreamingResponse(
        _write(service, experiment_id, after),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


async def _write(service: Experiments, experiment_id: str, after: int) -> AsyncIterator[str]:
    async for event in service.follow(experiment_id, after, HEARTBEAT_S):
        yield _HEARTBEAT if event is None else _format(experiment_id, event)


def _format(experiment_id: str, event: StoredEvent) -> str:
    data = {"at": format_unix_time(event.at), "experiment": experiment_id, **event.data}
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {text}\n\n"
