"""Tells everyone on MQTT that a round completed: at least once, and once as far as possible."""

import asyncio

from propeller.coordinator.store import RoundStore
from propeller.mqtt.session import NotConnectedError, Session
from propeller.process.logs import get_logger
from propeller.protocol.rounds import RoundNext, model_uri
from propeller.protocol.topics import ROUND_NEXT, Channel, Kind

log = get_logger("coordinator")

DELAY_S = 1.0
"""Between tries when the database fails, in seconds; a try waits for the broker by itself."""


class Announcer:
    """Publishes ``fl/rounds/next`` for each completed round, with and without the channel prefix.

    The database remembers who was not told yet, so that neither a broker that is away nor a crash loses a notice.
    """

    def __init__(self, session: Session, store: RoundStore, channel: Channel | None) -> None:
        """Publish over ``session``."""
        self._session, self._store = session, store
        self._topics = [ROUND_NEXT, *([channel.topic(Kind.ROUND_NEXT)] if channel else [])]
        self._waiting: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    async def load(self) -> None:
        """Take up what was not published when the process ended; before any round goes on."""
        for round_id, version in await self._store.unannounced():
            self.add(round_id, version)

    def add(self, round_id: str, version: int) -> None:
        """Publish that a round completed with a model version, when the broker is there."""
        self._waiting.put_nowait((round_id, version))

    async def run(self) -> None:
        """Publish one notice after the other, for ever; one that cannot be published or recorded is tried again."""
        while True:
            round_id, version = await self._waiting.get()
            told = False
            while not told:
                told = await self._tell(round_id, version)

    async def _tell(self, round_id: str, version: int) -> bool:
        notice = RoundNext(round_id=round_id, new_model_version=version, model_uri=model_uri(version))
        try:
            for topic in self._topics:
                await self._session.publish(topic, notice.encode())
            await self._store.announced(round_id)
        except NotConnectedError as error:
            log.warning("next round not published yet", round_id=round_id, reason=str(error))
            return False
        except Exception:
            log.exception("next round not published yet", round_id=round_id)
            await asyncio.sleep(DELAY_S)
            return False
        log.info("published next round", round_id=round_id, model_version=version)
        return True
