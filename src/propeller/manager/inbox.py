"""What the manager receives over MQTT. It subscribes to what it needs, and to no two filters that overlap.

Messages are received at QoS 1 and acknowledged once their effect is in the database, except heartbeats: they carry no
time, and one that the broker kept while the manager was away would make a dead proplet look alive, so they are
received at QoS 0.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from propeller.errors import PropellerError, UnavailableError
from propeller.manager.fleet import Fleet
from propeller.manager.metrics_repository import MetricsRepository
from propeller.manager.round_selection import RoundSelector
from propeller.manager.round_starter import RoundStarter
from propeller.manager.task_runner import TaskRunner
from propeller.mqtt.session import Session
from propeller.process.http import ServiceError
from propeller.process.logs import get_logger
from propeller.process.retry import doubling, retry
from propeller.protocol.proplet import HeartbeatMessage, PropletMetrics, Registration, TaskMetrics
from propeller.protocol.rounds import RoundStart, RoundStop
from propeller.protocol.task import TaskResult
from propeller.protocol.topics import ROUND_START, ROUND_STOP, Channel, Kind
from propeller.protocol.wire import MalformedMessageError, decode_object
from propeller.store.sqlite import DatabaseBusyError

log = get_logger("manager")

_START_DELAYS_S = doubling(1.0, 15.0)
_MAX_LOGGED_CHARACTERS = 500

Handler = Callable[[dict[str, Any]], Awaitable[None]]


class Inbox:
    """Handles the messages of one channel, and round starts outside of every channel."""

    def __init__(
        self,
        channel: Channel,
        fleet: Fleet,
        runner: TaskRunner,
        metrics: MetricsRepository,
        rounds: RoundStarter,
        selector: RoundSelector,
    ) -> None:
        self._channel, self._fleet, self._runner = channel, fleet, runner
        self._metrics, self._rounds, self._selector = metrics, rounds, selector

    async def subscribe(self, session: Session) -> None:
        """Subscribe to everything once the session runs; a subscription that the broker refuses is logged there."""
        # A retained heartbeat or last will (absmach/propeller's embed-proplet has its will retained) is not news.
        alive = self._channel.topic(Kind.PROPLET_ALIVE)
        routes: list[tuple[str, Handler, int]] = [
            (self._channel.topic(Kind.PROPLET_CREATE), self._register, 1),
            (alive, self._record_heartbeat, 0),
            (self._channel.topic(Kind.PROPLET_RESULTS), self._accept_result, 1),
            (self._channel.topic(Kind.PROPLET_METRICS), self._add_proplet_metrics, 1),
            (self._channel.topic(Kind.TASK_METRICS), self._add_task_metrics, 1),
            (self._channel.topic(Kind.ROUND_START), self._start_round, 1),
            (ROUND_START, self._start_round, 1),
            (self._channel.topic(Kind.ROUND_STOP), self._stop_round, 1),
            (ROUND_STOP, self._stop_round, 1),
        ]
        for topic, handler, qos in routes:
            await session.subscribe(topic, _decoding(handler), qos, retained=topic != alive)

    async def _register(self, fields: dict[str, Any]) -> None:
        await self._fleet.register(Registration.decode(fields))

    async def _record_heartbeat(self, fields: dict[str, Any]) -> None:
        await self._fleet.record_heartbeat(HeartbeatMessage.decode(fields))

    async def _accept_result(self, fields: dict[str, Any]) -> None:
        await self._runner.accept_result(TaskResult.decode(fields))

    async def _add_proplet_metrics(self, fields: dict[str, Any]) -> None:
        metrics = PropletMetrics.decode(fields)
        if self._fleet.get(metrics.proplet_id) is not None:
            self._metrics.add_proplet_metrics(metrics)

    async def _add_task_metrics(self, fields: dict[str, Any]) -> None:
        self._metrics.add_task_metrics(TaskMetrics.decode(fields))

    async def _start_round(self, fields: dict[str, Any]) -> None:
        start = RoundStart.decode(fields)
        line = log.bind(round_id=start.round_id)
        if ignored := RoundStart.unknown_fields(fields):
            line.warning("unknown fields of a round start are ignored", fields=ignored)
        if start.selection is not None:
            await self._selector.start(start)
            return
        experiment, given = start.to_experiment(), start.given()
        try:
            # Nobody waits for an answer who could try again: the start stays with the broker until then.
            await retry(
                lambda: self._rounds.start(experiment, given=given, must_reach_quorum=False),
                delays=_START_DELAYS_S,
                on=_may_start_later,
                forever=True,
                timeout_s=experiment.timeout_s,
                failed=lambda error, _delay_s: line.warning(
                    "round is not started yet, trying again", reason=str(error)
                ),
            )
        except DatabaseBusyError:
            raise  # the session tries again for as long as it takes, whatever the round's timeout
        except PropellerError as error:
            line.warning("round is not started", reason=str(error))

    async def _stop_round(self, fields: dict[str, Any]) -> None:
        await self._selector.stop(RoundStop.decode(fields))


def _may_start_later(error: BaseException) -> bool:
    """Whether the broker or the coordinator is away; one that refuses the manager's credentials is not asked again."""
    kind = error.kind if isinstance(error, ServiceError) else type(error)
    return issubclass(kind, UnavailableError) and not issubclass(kind, DatabaseBusyError)


def _decoding(handler: Handler) -> Callable[[str, bytes], Awaitable[None]]:
    """The handler for a subscription: ignores what is malformed, and has the session try again while the database is away."""

    async def handle(topic: str, payload: bytes) -> None:
        try:
            await handler(decode_object(payload))
        except MalformedMessageError as error:
            reason = str(error)[:_MAX_LOGGED_CHARACTERS]
            log.warning("message ignored", topic=topic, reason=reason, size=len(payload))
        except (IntegrityError, DataError, ProgrammingError):
            raise  # the same again would fail the same way
        except (DBAPIError, ConnectionError) as error:
            reason = str(error)[:_MAX_LOGGED_CHARACTERS]
            raise UnavailableError(f"the database cannot be reached: {reason}") from error

    return handle
