"""The coordinator on MQTT: it receives updates of proplets that cannot reach it over HTTP, and announces model versions."""

import asyncio

from sqlalchemy.exc import DataError, DBAPIError

from propeller.coordinator.content_coding import coding_of_message
from propeller.coordinator.service import Coordinator
from propeller.coordinator.store import RoundStore
from propeller.coordinator.updates import MESSAGE, decode_update
from propeller.errors import InvalidError, PropellerError, UnavailableError
from propeller.mqtt.session import NotConnectedError, Session
from propeller.process.background import BackgroundTasks
from propeller.process.logs import get_logger
from propeller.process.retry import retry
from propeller.protocol.rounds import RoundNext, RoundStart, RoundStop, model_uri
from propeller.protocol.topics import ROUND_NEXT, UPDATES_FILTER, Channel, Kind, parse_topic
from propeller.protocol.wire import MalformedMessageError, Message

log = get_logger("coordinator")

ANNOUNCE_RETRY_DELAY_S = 1.0
"""Between tries to announce a version; a try waits for the broker by itself."""


class UpdateReceiver:
    """Receives updates from ``fl/rounds/{round}/updates/{proplet}``, with and without the channel prefix.

    The topic says who sent it (the broker lets a proplet publish as itself only), so the payload must say the same.
    A refused update is a warning in the log, as MQTT has no answer, and its sender's failure if it can never be right. One that cannot be stored is handled again for as
    long as it takes, and acknowledged after that: the broker delivers it again if the process ends before.
    """

    def __init__(self, service: Coordinator, *, max_bytes: int) -> None:
        """Give updates of at most ``max_bytes`` to ``service``."""
        self._service, self._max_bytes = service, max_bytes

    async def subscribe(self, session: Session, channel: Channel | None) -> None:
        """Receive updates from a session."""
        await session.subscribe(UPDATES_FILTER, self.handle)
        if channel is not None:
            await session.subscribe(f"{channel.prefix}/{UPDATES_FILTER}", self.handle)

    async def handle(self, topic: str, payload: bytes) -> None:
        """Handle one message.

        Raises:
            UnavailableError: the update cannot be stored now; acknowledged all the same, it would be lost.
        """
        try:
            await self._accept(topic, payload)
        except DataError as error:  # no later try can store it, and it must not block those behind it
            log.warning("update over MQTT refused", topic=topic[:300], reason=str(error)[:500])
        except (OSError, DBAPIError) as error:  # of the database
            raise UnavailableError(f"the update cannot be stored: {str(error)[:500]}") from error
        except PropellerError as error:
            if error.temporary:
                raise
            log.warning("update over MQTT refused", topic=topic[:300], reason=str(error)[:500])
            if isinstance(error, InvalidError):
                await self._note_failure(topic, str(error))

    async def _note_failure(self, topic: str, reason: str) -> None:
        """Have the round of a topic not wait for its sender, who is not told of the refusal and can tell nobody."""
        place = parse_topic(topic)
        if place is None or place.kind is not Kind.UPDATE or not (place.round_id and place.proplet_id):
            return
        try:
            await self._service.note_refusal(place.round_id, place.proplet_id, reason)
        except (PropellerError, OSError, DBAPIError) as error:
            log.debug("no failure is noted", topic=topic[:300], reason=str(error)[:500])

    async def _accept(self, topic: str, payload: bytes) -> None:
        place = parse_topic(topic)
        if place is None or place.kind is not Kind.UPDATE:
            raise MalformedMessageError("not the topic of an update: its ids are not valid")
        if len(payload) > self._max_bytes:
            raise MalformedMessageError(
                f"{len(payload)} bytes are over the limit of {self._max_bytes} bytes (COORDINATOR_MAX_BYTES)"
            )
        update = await decode_update(
            MESSAGE, payload, coding=coding_of_message(payload), max_bytes=self._max_bytes
        )
        header = update.header
        if (header.round_id, header.proplet_id) != (place.round_id, place.proplet_id):
            raise MalformedMessageError(
                f"the topic is of {place.proplet_id} in round {place.round_id}, the update says "
                f"{header.proplet_id} in round {header.round_id}"
            )
        await self._service.accept_update(update)


class RoundPublisher:
    """Tells the manager which rounds to start and which tasks to stop, at least once each while this process runs.

    Which rounds wait for participants is in the database, and their starts are published again after a restart.
    """

    def __init__(self, session: Session, channel: Channel | None) -> None:
        """Publish over ``session``."""
        self._session, self._channel = session, channel
        self._background = BackgroundTasks("coordinator")
        self._starting: set[str] = set()

    def start(self, start: RoundStart) -> None:
        """Publish the start of a round, and return at once; one that waits for the broker already is not queued again."""
        if start.round_id not in self._starting:
            self._starting.add(start.round_id)
            self._background.spawn(self._publish_start(start))

    def stop(self, stop: RoundStop) -> None:
        """Publish that tasks of a round are of no use any more, and return at once."""
        self._background.spawn(self._publish(Kind.ROUND_STOP, stop.round_id, stop))

    async def close(self) -> None:
        """Publish no more."""
        await self._background.close()

    async def _publish_start(self, start: RoundStart) -> None:
        try:
            await self._publish(Kind.ROUND_START, start.round_id, start)
        finally:
            self._starting.discard(start.round_id)

    async def _publish(self, kind: Kind, round_id: str, message: Message) -> None:
        topic = self._channel.topic(kind) if self._channel else kind.value
        await retry(
            lambda: self._session.publish(topic, message.encode()),
            delays=(ANNOUNCE_RETRY_DELAY_S,),
            forever=True,
            on=lambda error: isinstance(error, NotConnectedError),
            failed=lambda error, _delay_s: log.warning(
                "not published yet", topic=topic, round_id=round_id, reason=str(error)
            ),
        )


class RoundAnnouncer:
    """Publishes ``fl/rounds/next`` for each completed round, with and without the channel prefix: at least once.

    The database remembers what was not announced yet, so that neither a broker that is away nor a crash loses a notice. Of a round
    of an experiment, whose own events tell of it, the broker need not keep the notice (QoS 0).
    """

    def __init__(self, session: Session, store: RoundStore, channel: Channel | None) -> None:
        """Publish over ``session``."""
        self._session, self._store = session, store
        self._topics = [ROUND_NEXT, *([channel.topic(Kind.ROUND_NEXT)] if channel else [])]
        self._pending: asyncio.Queue[tuple[str, int, bool]] = asyncio.Queue()

    async def load(self) -> None:
        """Queue what was not announced when the process ended; before any round goes on."""
        for round_id, version in await self._store.unannounced():
            self.announce(round_id, version, True)

    def announce(self, round_id: str, version: int, record: bool) -> None:
        """Queue the notice that a round completed with a model version; ``record`` that it was published, if asked to."""
        self._pending.put_nowait((round_id, version, record))

    async def run(self) -> None:
        """Publish one notice after the other, for ever; one that cannot be published or recorded is tried again."""
        while True:
            round_id, version, record = await self._pending.get()
            await self._publish(round_id, version, record=record)

    async def _publish(self, round_id: str, version: int, *, record: bool) -> None:
        notice = RoundNext(round_id=round_id, new_model_version=version, model_uri=model_uri(version))

        async def publish_and_record() -> None:
            for topic in self._topics:
                await self._session.publish(topic, notice.encode(), qos=1 if record else 0)
            if record:
                await self._store.mark_announced(round_id)

        def report(error: BaseException, _delay_s: float) -> None:
            if isinstance(error, NotConnectedError):
                log.warning("next round not published yet", round_id=round_id, reason=str(error))
            else:
                log.error("next round not published yet", round_id=round_id, exc_info=error)

        await retry(
            publish_and_record,
            delays=(ANNOUNCE_RETRY_DELAY_S,),
            forever=True,
            on=lambda _error: True,
            failed=report,
        )
        log.info("published next round", round_id=round_id, model_version=version)
