"""Identity's connection to the broker: answers its questions, and cuts connections that are no longer allowed."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from propeller.identity.access import AccessDirectory
from propeller.identity.broker_api import ServerConnection, close_connection, connections, seconds_ahead
from propeller.identity.broker_guard import BrokerGuard
from propeller.identity.callout import Callout
from propeller.identity.sessions import SessionExpiry
from propeller.mqtt.broker_keys import BrokerKeys
from propeller.process.background import BackgroundTasks
from propeller.process.logs import get_logger
from propeller.process.retry import Backoff

log = get_logger("broker_link")

AUTH_REQUESTS = "$SYS.REQ.USER.AUTH"
RETRY_S = 0.2
"""Between connects, always: without this link nobody can connect to the broker."""

REPEAT_CUT_S = (1.0, 4.0)
"""After a revocation the connections are looked at again: one that was just being accepted was not listed yet."""

_MAX_FILTERED_CLIENTS = 16


class BrokerLink:
    """Connects again for ever; use ``async with link.running()``."""

    def __init__(
        self,
        url: str,
        keys: BrokerKeys,
        callout: Callout,
        directory: AccessDirectory,
        sessions: SessionExpiry,
        guard: BrokerGuard,
    ) -> None:
        self._url, self._keys, self._callout, self._directory = url, keys, callout, directory
        self._sessions, self._guard = sessions, guard
        self._nats: Client | None = None
        self._tasks = BackgroundTasks("broker_link")

    @property
    def connected(self) -> bool:
        """Whether the broker's questions reach us now."""
        return self._nats is not None and self._nats.is_connected

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer and cut for the length of the block."""
        connecting = asyncio.create_task(self._keep_connected(), name="broker link")
        try:
            yield
        finally:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            await self._tasks.close()

    async def cut(self, client_ids: Collection[str]) -> None:
        """End the connections that these clients opened before their access changed, now and once more a little later.

        While the broker cannot be reached nothing is done; everyone's connections are looked at after each reconnect.
        """
        await self._cut(client_ids)
        self._tasks.spawn(self._cut_again(client_ids))

    def cut_soon(self, client_ids: Collection[str]) -> None:
        """The same in the background: for who may do more than before, and must connect again to do it."""
        self._tasks.spawn(self.cut(client_ids))

    async def _keep_connected(self) -> None:
        backoff, last_reason = Backoff(RETRY_S, RETRY_S), ""
        while True:
            client, closed = Client(), asyncio.Event()
            try:
                await self._connect(client, closed)
                log.info("connected to the broker", url=self._url)
                last_reason = ""
                watching = [
                    asyncio.create_task(self._watch_sessions(client), name="sessions"),
                    asyncio.create_task(self._guard.run(client), name="client watch"),
                ]
                try:
                    await closed.wait()
                finally:
                    for task in watching:
                        task.cancel()
                log.warning("the connection to the broker is lost", url=self._url)
            except Exception as error:  # noqa: BLE001 - whatever it was, without this link nobody can connect
                if repr(error) != last_reason:  # not at each try
                    log.warning(
                        "no connection to the broker, trying again", url=self._url, reason=repr(error)
                    )
                last_reason = repr(error)
            finally:
                self._nats = None
                await client.close()
            await backoff.wait()

    async def _connect(self, client: Client, closed: asyncio.Event) -> None:
        async def ended() -> None:
            closed.set()

        # Each connection has its own client: nats-py's reconnecting ends when it is refused.
        await client.connect(
            self._url,
            nkeys_seed_str=self._keys.service_seed,
            name="identity",
            allow_reconnect=False,
            connect_timeout=5,
            ping_interval=10,
            error_cb=_ignore,
            closed_cb=ended,
        )
        self._nats = client
        await client.subscribe(AUTH_REQUESTS, queue="identity", cb=self._asked)
        self._tasks.spawn(self._cut(None))

    async def _watch_sessions(self, client: Client) -> None:
        while True:
            try:
                await self._sessions.check(client)
            except NatsError as error:
                log.warning("the broker's sessions could not be looked at", reason=repr(error))
            except Exception:
                log.exception("the broker's sessions could not be looked at")
            await asyncio.sleep(self._sessions.interval_s)

    async def _asked(self, message: Msg) -> None:
        # A task each: one that waits for the database must not hold up the others.
        self._tasks.spawn(self._answer(message))

    async def _answer(self, message: Msg) -> None:
        try:
            answer = await self._callout.answer(message.data)
            if answer is not None:
                await message.respond(answer)
        except NatsError as error:
            log.warning("the broker's question could not be answered", reason=repr(error))

    async def _cut_again(self, client_ids: Collection[str]) -> None:
        waited = 0.0
        for after in REPEAT_CUT_S:
            await asyncio.sleep(after - waited)
            waited = after
            await self._cut(client_ids)

    async def _cut(self, client_ids: Collection[str] | None) -> None:
        if self._nats is None or not self._nats.is_connected:
            return
        few = client_ids is not None and len(client_ids) <= _MAX_FILTERED_CLIENTS
        filters = [{"user": client_id} for client_id in client_ids or ()] if few else [{}]
        try:
            for chosen in filters:
                for connection in await self._outdated(self._nats, chosen):
                    log.info(
                        "cutting connection",
                        client_id=connection.info.get("authorized_user"),
                        mqtt_id=connection.info.get("mqtt_client"),
                    )
                    await close_connection(self._nats, connection)
        except NatsError as error:
            log.warning("connections could not be cut", reason=repr(error))
        except Exception:  # the change that asked for it is made, and stays
            log.exception("connections could not be cut")

    async def _outdated(self, link: Client, chosen: dict[str, str]) -> list[ServerConnection]:
        """The connections that are older than their client's access."""
        asked = time.time()
        return [
            connection
            async for connection in connections(link, **chosen)
            if self._stale(connection, seconds_ahead(connection.now, asked, time.time()))
        ]

    def _stale(self, connection: ServerConnection, ahead: float) -> bool:
        access = self._directory.get(str(connection.info.get("authorized_user", "")))
        if access is None or not access.enabled:
            return True
        return connection.start < access.changed_at + ahead


async def _ignore(_error: Exception) -> None:
    """What nats-py would log; it is raised as well."""
