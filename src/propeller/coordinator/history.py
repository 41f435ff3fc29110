"""The history of an experiment: every round, with every participant's metrics and every failure, as JSON and as CSV."""

import csv
import io
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from propeller.coordinator.rounds import RoundRecord, format_unix_time
from propeller.coordinator.transfer import total_of
from propeller.protocol.history import METRIC_PREFIX, ROUND_FIELDS, UPDATE_FIELDS

_PARTICIPANT, *_OF_UPDATE = UPDATE_FIELDS
_COLUMNS = (*ROUND_FIELDS, _PARTICIPANT, "outcome", *_OF_UPDATE, "reason")


async def history_json(
    experiment_id: str, rounds: AsyncIterable[Sequence[RoundRecord]]
) -> AsyncIterator[str]:
    """The rounds in the order in which they were started, as a document in pieces."""
    yield f'{{"id":{json.dumps(experiment_id)},"rounds":['
    separator = ""
    async for records in rounds:
        for record in records:
            text = json.dumps(round_json(record), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            yield separator + text
            separator = ","
    yield "]}"


def round_json(record: RoundRecord) -> dict[str, Any]:
    """A round in the history of its experiment."""
    started, ended = record.started_at, record.ended_at
    return {
        **_identity(record),
        "created_at": format_unix_time(record.created_at),
        "seconds": None if started is None or ended is None else round(ended - started, 6),
        "metrics": record.metrics,
        "num_samples": sum(update.num_samples for update in record.updates.values()),
        **total_of(update.transfer for update in record.updates.values()),
        "participants": list(record.round.plan.participants),
        "updates": [update.to_json() for update in record.in_slot_order()],
        "failures": [
            {"proplet_id": name, "reason": reason} for name, reason in record.round.failures.items()
        ],
        "reason": record.round.reason,
        "report": dict(record.report),
        "timings": dict(record.timings),
    }


async def history_csv(read_rounds: Callable[[], AsyncIterable[Sequence[RoundRecord]]]) -> AsyncIterator[str]:
    """A line for each participant of each round; a column for each metric; a round without participants has one line.

    The rounds are read twice: the first line names the metrics of all of them.
    """
    names: set[str] = set()
    async for records in read_rounds():
        names.update(*(update.metrics for record in records for update in record.updates.values()))
    columns = [*_COLUMNS, *(METRIC_PREFIX + name for name in sorted(names))]
    text = io.StringIO()
    # Metrics that are new since the first reading are left out: the experiment may go on meanwhile.
    lines = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    lines.writeheader()
    async for records in read_rounds():
        for record in records:
            lines.writerows(_lines(record))
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    yield text.getvalue()


def _lines(record: RoundRecord) -> Iterator[dict[str, Any]]:
    common = _identity(record)
    participants = record.round.plan.participants
    if not participants:
        yield {**common, "outcome": record.state.value, "reason": record.round.reason}
    for name in participants:
        update = record.updates.get(name)
        if update is not None:
            fields = update.to_json()
            metrics = {METRIC_PREFIX + metric: value for metric, value in fields.pop("metrics").items()}
            yield {**common, "outcome": "update", **fields, **metrics}
        else:
            failure = record.round.failures.get(name)
            outcome = "missing" if failure is None else "failure"
            yield {**common, "proplet_id": name, "outcome": outcome, "reason": failure}


def _identity(record: RoundRecord) -> dict[str, Any]:
    return {
        **record.numbers,
        "kind": "wave" if record.round.plan.is_wave else record.kind,
        "round_id": record.round_id,
        "state": record.state.value,
        "base_version": record.round.plan.base_version,
        "model_version": record.round.model_version,
        "started_at": format_unix_time(record.started_at),
        "ended_at": format_unix_time(record.ended_at),
    }
