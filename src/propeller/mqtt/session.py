"""An MQTT session that outlives its connections: it reconnects, resubscribes and acknowledges after handling.

aiomqtt carries the packets. What is added: a new client for every connection (a timed-out connect leaves aiomqtt's
socket live), handlers by topic filter, one message at a time a filter, and an acknowledgement only when the handler
is done, so that a message is redelivered if the process dies before. Handlers must therefore take a message twice.
"""

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiomqtt

from propeller.mqtt.address import BrokerAddress
from propeller.process.logs import get_logger

log = get_logger("mqtt")

Handler = Callable[[str, bytes], Awaitable[None]]
"""Takes a topic and a payload. What it raises is logged and the message counts as handled."""

CONNECT_TIMEOUT_S = 30.0
FIRST_DELAY_S, LONGEST_DELAY_S = 0.05, 15.0
_SUBACK_FAILURE = 0x80


class NotConnectedError(Exception):
    """A message could not be published in time: there was no connection."""


class SubscriptionRefusedError(Exception):
    """The broker does not let this client subscribe to a topic."""


@dataclass(frozen=True)
class Credentials:
    """Who connects: the MQTT client identifier, the client's id (user name) and its key (password)."""

    mqtt_id: str
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True)
class Will:
    """What the broker publishes when the connection is lost."""

    topic: str
    payload: bytes
    qos: int = 1


class _Connection(aiomqtt.Client):
    """aiomqtt's client with paho's manual acknowledgement switched on."""

    def acknowledge_by_hand(self) -> None:
        self._client.manual_ack_set(on=True)

    def acknowledge(self, message: aiomqtt.Message) -> None:
        self._client.ack(message.mid, message.qos)

    def close_socket(self) -> None:
        """Close a socket that a failed connect left open."""
        if self._client.socket() is not None:
            self._client._sock_close()  # noqa: SLF001 - paho has no public way


@dataclass
class _Route:
    """A subscription: its filter, its handler, and the messages that wait for it."""

    topic_filter: str
    handler: Handler
    qos: int
    queue: asyncio.Queue[tuple[_Connection, aiomqtt.Message]] = field(default_factory=asyncio.Queue)
    worker: asyncio.Task[None] | None = None


class Session:
    """One client's session with a broker.

    Use ``async with session.running():``; inside it the session connects and stays connected. ``subscribe`` and
    ``publish`` may be called at any time while it runs. ``clean`` drops what the broker queued while away.
    """

    def __init__(
        self,
        address: BrokerAddress,
        credentials: Credentials,
        *,
        will: Will | None = None,
        clean: bool = False,
        keepalive: int = 30,
        on_connect: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``on_connect`` runs after each connect, once everything is subscribed; ``keepalive`` in seconds."""
        self.address, self._credentials = address, credentials
        self._will, self._clean, self._keepalive, self._on_connect = will, clean, keepalive, on_connect
        self._routes: dict[str, _Route] = {}
        self._connection: _Connection | None = None
        self._connected = asyncio.Event()
        self.connects = 0
        """How often the session has connected."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None

    async def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait for a connection, up to ``timeout`` seconds; whether there is one."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._connected.wait(), timeout)
        return self.connected

    async def subscribe(self, topic_filter: str, handler: Handler, qos: int = 1) -> None:
        """Take messages of a filter, now and after every reconnect.

        Raises:
            SubscriptionRefusedError: the broker said no (only when connected; later refusals are logged).
        """
        route = _Route(topic_filter, handler, qos)
        old, self._routes[topic_filter] = self._routes.get(topic_filter), route
        if old is not None and old.worker is not None:
            old.worker.cancel()
        route.worker = asyncio.create_task(self._work(route), name=f"mqtt {topic_filter}")
        if self._connection is not None:
            with contextlib.suppress(aiomqtt.MqttError):  # the reconnect subscribes it
                await self._subscribe(self._connection, route)

    async def unsubscribe(self, topic_filter: str) -> None:
        """Take no more messages of a filter."""
        route = self._routes.pop(topic_filter, None)
        if route is None:
            return
        if self._connection is not None:
            with contextlib.suppress(aiomqtt.MqttError):
                await self._connection.unsubscribe(topic_filter)
        if route.worker is not None:
            route.worker.cancel()

    async def publish(self, topic: str, payload: bytes, qos: int = 1, timeout: float = 30.0) -> None:
        """Publish and wait until the broker has it; tried again over reconnects until ``timeout`` seconds.

        Raises:
            NotConnectedError: the broker did not take it in time.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self._connected.wait()
                    connection = self._connection
                    if connection is None:
                        continue
                    try:
                        await connection.publish(topic, payload, qos=qos, timeout=timeout)
                    except aiomqtt.MqttError as error:
                        log.warning("publishing again", topic=topic, reason=str(error))
                        await asyncio.sleep(FIRST_DELAY_S)
                    else:
                        return
        except TimeoutError:
            raise NotConnectedError(
                f"no broker at {self.address} took the message within {timeout:g} s"
            ) from None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Session"]:
        """Keep the session connected for the length of the block, then disconnect (without the will)."""
        keeper = asyncio.create_task(self._keep_connected(), name="mqtt session")
        try:
            yield self
        finally:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
            for route in self._routes.values():
                if route.worker is not None:
                    route.worker.cancel()

    async def _keep_connected(self) -> None:
        delay = FIRST_DELAY_S
        while True:
            try:
                async with self._connect() as connection:
                    delay = FIRST_DELAY_S
                    await self._receive(connection)
            except aiomqtt.MqttError as error:
                log.warning(
                    "MQTT connection lost, connecting again", broker=str(self.address), reason=str(error)
                )
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - spreads reconnects, no secret
            delay = min(2 * delay, LONGEST_DELAY_S)

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator[_Connection]:
        will = aiomqtt.Will(self._will.topic, self._will.payload, self._will.qos) if self._will else None
        connection = _Connection(
            self.address.host,
            self.address.port,
            identifier=self._credentials.mqtt_id,
            username=self._credentials.username or None,
            password=self._credentials.password or None,
            will=will,
            clean_session=self._clean,
            keepalive=self._keepalive,
            timeout=CONNECT_TIMEOUT_S,
            tls_context=ssl.create_default_context() if self.address.tls else None,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )
        connection.acknowledge_by_hand()
        try:
            async with connection:
                for route in list(self._routes.values()):
                    try:
                        await self._subscribe(connection, route)
                    except SubscriptionRefusedError as error:
                        log.error("MQTT subscription refused", topic=route.topic_filter, reason=str(error))  # noqa: TRY400
                self._connection = connection
                self._connected.set()
                self.connects += 1
                log.info(
                    "connected to MQTT broker", broker=str(self.address), mqtt_id=self._credentials.mqtt_id
                )
                hook = asyncio.create_task(self._run_hook()) if self._on_connect else None
                try:
                    yield connection
                finally:
                    self._connection = None
                    self._connected.clear()
                    if hook is not None:
                        hook.cancel()
        finally:
            connection.close_socket()

    async def _run_hook(self) -> None:
        if self._on_connect is None:
            return
        try:
            await self._on_connect()
        except Exception:
            log.exception("what runs after connecting failed")

    async def _subscribe(self, connection: _Connection, route: _Route) -> None:
        codes = await connection.subscribe(route.topic_filter, qos=route.qos)
        if any((code if isinstance(code, int) else code.value) >= _SUBACK_FAILURE for code in codes):
            raise SubscriptionRefusedError(
                f"the broker refuses {route.topic_filter} to client {self._credentials.username or '(anonymous)'}: "
                "check that it is connected to this channel"
            )
        log.info("subscribed to topic", topic=route.topic_filter)

    async def _receive(self, connection: _Connection) -> None:
        async for message in connection.messages:
            taken = False
            for route in self._routes.values():
                if message.topic.matches(route.topic_filter):
                    route.queue.put_nowait((connection, message))
                    taken = True
                    break
            if not taken:
                connection.acknowledge(message)

    async def _work(self, route: _Route) -> None:
        while True:
            connection, message = await route.queue.get()
            if connection is not self._connection and message.qos and not self._clean:
                continue  # the broker delivers it again on the new connection
            try:
                await route.handler(message.topic.value, message.payload)
            except Exception:
                log.exception("message could not be handled", topic=message.topic.value)
            connection.acknowledge(message)  # on a connection that is gone this does nothing
