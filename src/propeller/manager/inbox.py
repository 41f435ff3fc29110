"""What the manager receives over MQTT. It subscribes to what it needs, and to no two filters that overlap.

Messages are received at QoS 1 and acknowledged once their effect is in the database, except heartbeats: they carry no
time, and one that the broker kept while the manager was away would make a dead proplet look alive, so they are
received at QoS 0.

Who sent a message is what its topic says, as the broker lets each proplet use its own topics alone. The topics of
absmach/propeller say nothing: there only compat proplets are believed, and nothing that is said of a directed proplet.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from propeller.errors import PropellerError, UnavailableError
from propeller.manager.client_names import ClientNames
from propeller.manager.compat_clients import CompatClients
from propeller.manager.fleet import Fleet
from propeller.manager.metrics_repository import MetricsRepository
from propeller.manager.round_selection import RoundSelector
from propeller.manager.round_starter import RoundStarter
from propeller.manager.task_runner import TaskRunner
from propeller.mqtt.refusals import Refusals
from propeller.mqtt.session import Session
from propeller.process.decoding import decode
from propeller.process.http import ServiceError
from propeller.process.logs import get_logger
from propeller.process.retry import doubling, retry
from propeller.protocol.proplet import HeartbeatMessage, PropletMetrics, Registration, TaskMetrics
from propeller.protocol.rounds import RoundStart, RoundStop
from propeller.protocol.task import TaskResult, TaskStage
from propeller.protocol.topics import EVERYONE, Channel, Kind, parse_topic
from propeller.protocol.wire import MalformedMessageError, decode_object
from propeller.store.sqlite import DatabaseBusyError

log = get_logger("manager")

_START_DELAYS_S = doubling(1.0, 15.0)
_MAX_LOGGED_CHARACTERS = 500

_DIRECTED = (
    "its sender has topics of its own and is heard there only; if the proplet has become a compat one, delete it here "
    "(DELETE /proplets/{id})"
)

Handler = Callable[[str, dict[str, Any]], Awaitable[None]]

M = TypeVar("M", Registration, HeartbeatMessage, TaskResult, TaskStage, PropletMetrics, TaskMetrics)


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
        compat: CompatClients | None,
        names: ClientNames | None,
    ) -> None:
        """Take no messages yet.

        ``compat`` says who is believed on shared topics; ``None``: nobody, and they are not listened to. ``names`` says what who
        registers is called; ``None``: proplets do themselves.
        """
        self._channel, self._fleet, self._runner = channel, fleet, runner
        self._metrics, self._rounds, self._selector = metrics, rounds, selector
        self._compat, self._refusals = compat, Refusals("message ignored", log)
        self._names, self._doubts = names, Refusals("what a proplet calls itself is not taken", log)

    async def subscribe(self, session: Session) -> None:
        """Subscribe to everything once the session runs; a subscription that the broker refuses is logged there."""
        said = {
            Kind.PROPLET_RESULTS: self._accept_result,
            Kind.PROPLET_ALIVE: self._record_heartbeat,
            Kind.PROPLET_CREATE: self._register,
            Kind.PROPLET_METRICS: self._add_proplet_metrics,
            Kind.TASK_METRICS: self._add_task_metrics,
            Kind.TASK_STAGE: self._note_stage,
        }
        for kind, handler in said.items():
            topics = [self._channel.said(kind, EVERYONE)]
            if self._compat is not None:
                topics.append(self._channel.topic(kind))
            # A retained heartbeat or last will (absmach/propeller's embed-proplet has its will retained) is not news.
            is_heartbeat = kind is Kind.PROPLET_ALIVE
            for topic in topics:
                await session.subscribe(
                    topic,
                    self._decoding(handler),
                    0 if is_heartbeat else 1,
                    retained=not is_heartbeat,
                    newest=is_heartbeat and topic is topics[0],  # a shared topic is of many
                )
        rounds = {Kind.ROUND_START: self._start_round, Kind.ROUND_STOP: self._stop_round}
        for kind, take in rounds.items():
            for topic in (self._channel.topic(kind), kind.value):
                await session.subscribe(topic, self._decoding(_without_topic(take)))

    async def _register(self, topic: str, fields: dict[str, Any]) -> None:
        message = await self._believed(topic, Registration.decode(fields))
        if message is None:
            return
        if self._names is not None:
            await self._names.ask_about(message.proplet_id)
        doubts = await self._fleet.register(message, directed=_sender_of(topic) is not None)
        if doubts is not None:
            self._doubts.log(message.proplet_id, topic, doubts)

    async def _record_heartbeat(self, topic: str, fields: dict[str, Any]) -> None:
        try:
            message = await self._believed(topic, HeartbeatMessage.decode(fields))
        except UnavailableError as error:
            self._refusals.log(None, topic, str(error))
            return
        if message is not None:
            await self._fleet.record_heartbeat(message, directed=_sender_of(topic) is not None)

    async def _accept_result(self, topic: str, fields: dict[str, Any]) -> None:
        if message := await self._believed(topic, TaskResult.decode(fields)):
            await self._runner.accept_result(message)

    async def _add_proplet_metrics(self, topic: str, fields: dict[str, Any]) -> None:
        metrics = await self._believed(topic, PropletMetrics.decode(fields))
        if metrics is not None and self._fleet.get(metrics.proplet_id) is not None:
            self._metrics.add_proplet_metrics(metrics)

    async def _add_task_metrics(self, topic: str, fields: dict[str, Any]) -> None:
        if metrics := await self._believed(topic, TaskMetrics.decode(fields)):
            self._metrics.add_task_metrics(metrics)

    async def _note_stage(self, topic: str, fields: dict[str, Any]) -> None:
        if message := await self._believed(topic, TaskStage.decode(fields)):
            await self._runner.note_stage(message)

    async def _believed(self, topic: str, message: M) -> M | None:
        """The message, if it is from whom it says, else ``None``: then that is logged.

        Raises:
            UnavailableError: it cannot be known now whether a proplet is a compat one.
        """
        sender = _sender_of(topic)
        named = _named_by(message)
        if sender is not None:
            if named is None:  # a result may name nobody
                return message.model_copy(update={"proplet_id": sender})
            if named == sender:
                return message
            self._refusals.log(sender, topic, f"it names another sender, {named}")
            return None
        # A registration is said once. A heartbeat comes again, and must not hold up those of others.
        reason = await self._distrust(named, patient=isinstance(message, Registration))
        if reason is not None:
            self._refusals.log(None, topic, reason, proplet_id=named)
        return message if reason is None else None

    async def _distrust(self, named: str | None, *, patient: bool) -> str | None:
        """Why the sender that a message on a shared topic names is not believed; ``None`` if it is."""
        if named is None:
            return "it names no sender"
        if self._is_directed(named):
            return _DIRECTED
        if self._compat is None or not await self._compat.includes(named, patient=patient):
            return "its sender is not marked compat at identity (propeller provision --compat NAME)"
        return _DIRECTED if self._is_directed(named) else None  # it may have registered meanwhile

    def _is_directed(self, proplet_id: str) -> bool:
        proplet = self._fleet.get(proplet_id)
        return proplet is not None and proplet.directed

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

    def _decoding(self, handler: Handler) -> Callable[[str, bytes], Awaitable[None]]:
        """The handler for a subscription: ignores what is malformed, and has the session try again while the database is away."""

        async def handle(topic: str, payload: bytes) -> None:
            try:
                await handler(topic, await decode(decode_object, payload))
            except MalformedMessageError as error:
                self._refusals.log(_sender_of(topic), topic, str(error), size=len(payload))
            except (IntegrityError, DataError, ProgrammingError):
                raise  # the same again would fail the same way
            except (DBAPIError, ConnectionError) as error:
                reason = str(error)[:_MAX_LOGGED_CHARACTERS]
                raise UnavailableError(f"the database cannot be reached: {reason}") from error

        return handle


def _named_by(
    message: Registration | HeartbeatMessage | TaskResult | TaskStage | PropletMetrics | TaskMetrics,
) -> str | None:
    """Whom a message names as its sender."""
    return message.sender if isinstance(message, TaskResult) else message.proplet_id


def _sender_of(topic: str) -> str | None:
    """Whom the broker lets publish on a topic, if that is one proplet."""
    place = parse_topic(topic)
    return place.proplet_id if place else None


def _without_topic(handler: Callable[[dict[str, Any]], Awaitable[None]]) -> Handler:
    async def handle(_topic: str, fields: dict[str, Any]) -> None:
        await handler(fields)

    return handle


def _may_start_later(error: BaseException) -> bool:
    """Whether the broker or the coordinator is away; one that refuses the manager's credentials is not asked again."""
    kind = error.kind if isinstance(error, ServiceError) else type(error)
    return issubclass(kind, UnavailableError) and not issubclass(kind, DatabaseBusyError)
