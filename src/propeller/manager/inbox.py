"""What the manager hears over MQTT. It subscribes to what it needs and to no two filters that overlap.

Messages are taken at QoS 1 and acknowledged once their effect is in the database, except heartbeats: they carry no
time, and one that the broker kept while the manager was away would make a dead proplet look alive, so they are
taken at QoS 0.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from propeller.errors import PropellerError, UnavailableError
from propeller.manager.proplets import Fleet
from propeller.manager.rounds import Rounds
from propeller.manager.runs import Runs
from propeller.manager.samples import Samples
from propeller.mqtt.session import Session
from propeller.process.logs import get_logger
from propeller.protocol.proplet import HeartbeatMessage, PropletMetrics, Registration, TaskMetrics
from propeller.protocol.rounds import RoundStart
from propeller.protocol.task import TaskResult
from propeller.protocol.topics import ROUND_START, Channel, Kind
from propeller.protocol.wire import MalformedMessageError, decode_object

log = get_logger("manager")

_LONGEST_DELAY_S = 15.0

Handle = Callable[[dict[str, Any]], Awaitable[None]]


class Inbox:
    """Takes the messages of one channel, and round starts outside of every channel."""

    def __init__(self, channel: Channel, fleet: Fleet, runs: Runs, samples: Samples, rounds: Rounds) -> None:
        self._channel, self._fleet, self._runs = channel, fleet, runs
        self._samples, self._rounds = samples, rounds

    async def subscribe(self, session: Session) -> None:
        """Take every message once the session runs; a subscription that the broker refuses is logged there."""
        # A kept heartbeat or last will (S's embed-proplet has its will kept) says nothing about now.
        alive = self._channel.topic(Kind.PROPLET_ALIVE)
        routes: list[tuple[str, Handle, int]] = [
            (self._channel.topic(Kind.PROPLET_CREATE), self._create, 1),
            (alive, self._alive, 0),
            (self._channel.topic(Kind.PROPLET_RESULTS), self._results, 1),
            (self._channel.topic(Kind.PROPLET_METRICS), self._proplet_metrics, 1),
            (self._channel.topic(Kind.TASK_METRICS), self._task_metrics, 1),
            (self._channel.topic(Kind.ROUND_START), self._round_start, 1),
            (ROUND_START, self._round_start, 1),
        ]
        for topic, handle, qos in routes:
            await session.subscribe(topic, _guarded(handle), qos, retained=topic != alive)

    async def _create(self, fields: dict[str, Any]) -> None:
        await self._fleet.register(Registration.decode(fields))

    async def _alive(self, fields: dict[str, Any]) -> None:
        await self._fleet.heartbeat(HeartbeatMessage.decode(fields))

    async def _results(self, fields: dict[str, Any]) -> None:
        await self._runs.finish(TaskResult.decode(fields))

    async def _proplet_metrics(self, fields: dict[str, Any]) -> None:
        sample = PropletMetrics.decode(fields)
        if self._fleet.get(sample.proplet_id) is not None:
            self._samples.add_proplet(sample)

    async def _task_metrics(self, fields: dict[str, Any]) -> None:
        self._samples.add_task(TaskMetrics.decode(fields))

    async def _round_start(self, fields: dict[str, Any]) -> None:
        start = RoundStart.decode(fields)
        if ignored := RoundStart.unknown_fields(fields):
            log.warning(
                "unknown fields of a round start are ignored", round_id=start.round_id, fields=ignored
            )
        experiment, given = start.to_experiment(), start.given()
        loop, delay = asyncio.get_running_loop(), 1.0
        end = loop.time() + experiment.timeout_s
        while True:
            try:
                await self._rounds.start(experiment, given=given, must_reach_quorum=False)
            except PropellerError as error:
                if not error.temporary or loop.time() + delay > end:
                    log.warning("round is not started", round_id=start.round_id, reason=str(error))
                    return
                # Nobody waits for an answer who could try again: the start stays with the broker until then.
                log.warning(
                    "round is not started yet, trying again", round_id=start.round_id, reason=str(error)
                )
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY_S)
            else:
                return


def _guarded(handle: Handle) -> Callable[[str, bytes], Awaitable[None]]:
    async def guarded(topic: str, payload: bytes) -> None:
        try:
            fields = decode_object(payload)
            await _until_stored(lambda: handle(fields))
        except MalformedMessageError as error:
            log.warning("message ignored", topic=topic, reason=str(error)[:500], size=len(payload))

    return guarded


async def _until_stored(attempt: Callable[[], Awaitable[None]]) -> None:
    """Try again while the database is away: the message stays with the broker until then."""
    delay = 0.2
    while True:
        try:
            await attempt()
        except (IntegrityError, DataError, ProgrammingError):
            raise  # the same again would fail the same way
        except (DBAPIError, UnavailableError, ConnectionError) as error:
            log.error("database cannot be reached, trying again", reason=str(error)[:500])  # noqa: TRY400
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY_S)
        else:
            return
