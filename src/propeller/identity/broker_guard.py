"""Holds the broker within its limits while identity is connected to it: what is stored, and what each device does."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from nats.aio.client import Client
from nats.errors import Error as NatsError

from propeller.identity.broker_api import jetstream
from propeller.identity.broker_storage import half_sent, limit_storage
from propeller.identity.client_watch import ClientWatch
from propeller.identity.sessions import RECORDS, MqttIds, SessionExpiry
from propeller.process.logs import get_logger

log = get_logger("broker_guard")

READ_AGAIN_S = 30.0
"""How often whose sessions there are is read, unless there are suddenly more."""

_SUDDENLY_MORE = 16

MAX_HALF_SENT = 256
"""Messages of QoS 2 that a client may have sent and not released."""


class BrokerGuard:
    """Looks at the broker again and again."""

    def __init__(
        self, watch: ClientWatch, sessions: SessionExpiry, mqtt_ids: MqttIds, *, age_s: float, max_bytes: int
    ) -> None:
        """``age_s`` is how long a message waits for a session, in seconds, and ``max_bytes`` how much may wait."""
        self._watch, self._sessions, self._mqtt_ids = watch, sessions, mqtt_ids
        self._age_s, self._max_bytes = age_s, max_bytes
        self._limited = False
        self._records, self._read_at = 0, float("-inf")
        self._of_clients: dict[str, list[str]] = {}

    async def run(self, link: Client) -> None:
        """Look for as long as the connection to the broker lasts."""
        self._limited, self._read_at = False, float("-inf")
        self._watch.forget()
        async with asyncio.TaskGroup() as looks:
            looks.create_task(self._repeat(lambda: self._look_at_connections(link)))
            looks.create_task(self._repeat(lambda: self._look_at_storage(link)))

    async def _repeat(self, look: Callable[[], Awaitable[None]]) -> None:
        last_reason = ""
        while True:
            try:
                await look()
                last_reason = ""
            except NatsError as error:
                if repr(error) != last_reason:
                    log.warning("the broker could not be looked at", reason=repr(error))
                last_reason = repr(error)
            except Exception:
                log.exception("the broker could not be looked at")
            await asyncio.sleep(self._watch.interval_s)

    async def _look_at_connections(self, link: Client) -> None:
        await self._watch.check(link, self._of_clients, self._end)

    async def _look_at_storage(self, link: Client) -> None:
        try:
            if not self._limited:
                allowed = await limit_storage(link, age_s=self._age_s, max_bytes=self._max_bytes)
                self._limited = True
                if allowed < self._max_bytes:
                    log.warning(
                        "the broker's disk has room for fewer waiting messages than BROKER_STORED_BYTES",
                        bytes=allowed,
                        wanted=self._max_bytes,
                    )
            await self._read_sessions(link)
            await self._look_at_half_sent(link)
        except LookupError:  # nobody has ever connected
            pass

    async def _look_at_half_sent(self, link: Client) -> None:
        counts = await half_sent(link, MAX_HALF_SENT)
        for mqtt_id, count in counts.items():
            owner = self._mqtt_ids.owner(mqtt_id)
            if count > MAX_HALF_SENT and owner is not None:
                reason = f"it has sent {count} messages of QoS 2 and not released them"
                await self._watch.mute(link, owner, reason, [mqtt_id], self._end)

    async def _read_sessions(self, link: Client) -> None:
        info = await jetstream(link, f"STREAM.INFO.{RECORDS}")
        count = int(info["state"]["messages"])
        now = time.monotonic()
        if count - self._records < _SUDDENLY_MORE and now - self._read_at < READ_AGAIN_S:
            return
        found: dict[str, list[str]] = {}
        for mqtt_id in await self._sessions.read(link):
            if (owner := self._mqtt_ids.owner(mqtt_id)) is not None:
                found.setdefault(owner, []).append(mqtt_id)
        self._records, self._read_at, self._of_clients = count, now, found

    async def _end(self, link: Client, mqtt_ids: list[str]) -> None:
        await self._sessions.end_now(link, mqtt_ids)
        self._read_at = float("-inf")
