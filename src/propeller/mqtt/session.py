"""An MQTT session that outlives its connections: it reconnects, resubscribes and acknowledges after handling.

aiomqtt carries the packets. What is added: a new client for every connection (a timed-out connect leaves aiomqtt's
socket live), handlers by topic filter, one message at a time a filter, and an acknowledgement only when the handler
is done, so that a message is redelivered if the process dies before. Handlers must therefore cope with a message that
comes twice.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiomqtt
from cachetools import LRUCache

from propeller.errors import PropellerError, RefusedError, UnavailableError
from propeller.mqtt.address import BrokerAddress, Credentials, Will
from propeller.mqtt.connection import Connection
from propeller.mqtt.problems import ProblemLog, SettingNames
from propeller.process.logs import get_logger
from propeller.process.retry import Backoff

__all__ = [
    "Credentials",
    "Handler",
    "NotConnectedError",
    "Session",
    "SubscriptionLimitError",
    "SubscriptionRefusedError",
    "Will",
]

log = get_logger("mqtt")

Handler = Callable[[str, bytes], Awaitable[None]]
"""Takes a topic and a payload.

An error that is ``temporary`` (``propeller.errors``) has the message handled again, until then it is not acknowledged and
those behind it wait. Any other error is logged, and the message counts as handled.
"""

CLOSE_TIMEOUT_S = 2.0
"""How long to wait for the broker's answer to the goodbye, in seconds."""

FIRST_DELAY_S, LONGEST_DELAY_S = 0.05, 15.0
"""Between connects, in seconds."""

_MAX_KNOWN_TOPICS = 10_000

FIRST_HANDLER_DELAY_S, LONGEST_HANDLER_DELAY_S = 0.2, 15.0
"""Before a message is handled again that could not be handled for the time being, in seconds."""


class NotConnectedError(UnavailableError):
    """A message could not be published in time: there was no connection."""


class SubscriptionRefusedError(RefusedError):
    """The broker does not let this client subscribe to a topic."""


class SubscriptionLimitError(SubscriptionRefusedError):
    """The client may subscribe to a topic, but the broker cannot keep another subscription of QoS 1 or 2."""

    temporary = True


@dataclass(eq=False)
class _Subscription:
    """A subscription: its filter, its handler, and the messages that wait for it."""

    topic_filter: str
    handler: Handler
    qos: int
    retained: bool
    newest: bool = False
    queue: asyncio.Queue[tuple[Connection, aiomqtt.Message]] = field(default_factory=asyncio.Queue)
    worker: asyncio.Task[None] | None = None


class Session:
    """One client's session with a broker.

    Use ``async with session.running():``; inside it the session connects and stays connected. ``subscribe`` may be
    called at any time, ``publish`` while it runs. ``clean`` drops what the broker queued while away. A message that
    fits several filters goes to the first of them.
    """

    def __init__(
        self,
        address: BrokerAddress,
        credentials: Credentials,
        *,
        will: Will | None = None,
        clean: bool = False,
        keepalive: int = 30,
        tls: ssl.SSLContext | None = None,
        names: SettingNames | None = None,
    ) -> None:
        """A session that does not run yet.

        Args:
            address: the broker's.
            credentials: who connects.
            will: published by the broker when the connection is lost.
            clean: as above.
            keepalive: in seconds.
            tls: how to connect to an address with TLS; absent: with the certificates that the system trusts.
            names: of the settings behind all this, for what is logged.
        """
        self.address, self._credentials, self._tls = address, credentials, tls
        self._problems = ProblemLog(address, credentials, names or SettingNames())
        self._will, self._clean, self._keepalive = will, clean, keepalive
        self._on_connect: Callable[[], Awaitable[None]] | None = None
        self._subscriptions: dict[str, _Subscription] = {}
        self._newest_topics: LRUCache[str, bool] = LRUCache(_MAX_KNOWN_TOPICS)
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._running = False
        self.connects = 0
        """How often the session has connected."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None

    @property
    def problem(self) -> str | None:
        """Why there is no connection, as far as that is known."""
        return self._problems.last.reason if self._problems.last else None

    async def wait_connected(self, timeout: float | None = None) -> bool:
        """Wait for a connection, up to ``timeout`` seconds; whether there is one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._connected.wait()
        return self.connected

    async def subscribe(
        self,
        topic_filter: str,
        handler: Handler,
        qos: int = 1,
        *,
        retained: bool = True,
        newest: bool = False,
    ) -> None:
        """Receive the messages of a filter, now and after every reconnect; the last handler of a filter replaces those before.

        ``retained``: also those that were published before, and that the broker keeps for whoever subscribes. ``newest``: of
        each topic only the newest message of QoS 0 waits, so that who sends many holds up nobody else.

        Raises:
            SubscriptionRefusedError: the broker said no (only when connected; later refusals are logged). It is
                asked again at the next connect, unless ``unsubscribe`` is called.
            SubscriptionLimitError: it said no because it has too many subscriptions.
        """
        subscription = _Subscription(topic_filter, handler, qos, retained, newest)
        old, self._subscriptions[topic_filter] = self._subscriptions.get(topic_filter), subscription
        self._newest_topics.clear()
        if old is not None:
            subscription.queue = old.queue
            if old.worker is not None:
                old.worker.cancel()
        if self._running:
            self._start_worker(subscription)
        if self._connection is not None:
            with contextlib.suppress(aiomqtt.MqttError):  # the reconnect subscribes it
                await self._subscribe(self._connection, subscription)

    async def unsubscribe(self, topic_filter: str) -> None:
        """Take no more messages of a filter."""
        subscription = self._subscriptions.pop(topic_filter, None)
        if subscription is None:
            return
        if self._connection is not None:
            with contextlib.suppress(aiomqtt.MqttError):
                await self._connection.unsubscribe(topic_filter)
        if subscription.worker is not None:
            subscription.worker.cancel()
        while not subscription.queue.empty():
            connection, message = subscription.queue.get_nowait()
            connection.acknowledge(message)

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
                        await connection.send(topic, payload, qos)
                    except aiomqtt.MqttError as error:
                        log.warning("publishing again", topic=topic, reason=str(error))
                        await asyncio.sleep(FIRST_DELAY_S)
                    else:
                        return
        except TimeoutError:
            why = f": {self.problem}" if self.problem else ""
            raise NotConnectedError(
                f"no broker at {self.address} took the message within {timeout:g} s{why}"
            ) from None

    @contextlib.asynccontextmanager
    async def running(
        self, on_connect: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator["Session"]:
        """Keep the session connected for the length of the block, then disconnect (without the will).

        ``on_connect`` runs after each connect, once everything is subscribed.
        """
        self._running, self._on_connect = True, on_connect
        keeper = asyncio.create_task(self._keep_connected(), name="mqtt session")
        for subscription in self._subscriptions.values():
            self._start_worker(subscription)
        try:
            yield self
        finally:
            self._running = False
            tasks = [
                keeper,
                *(
                    subscription.worker
                    for subscription in self._subscriptions.values()
                    if subscription.worker is not None
                ),
            ]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT_S)
            keeper.cancel()  # again, if the broker does not answer to the goodbye
            await asyncio.wait([keeper], timeout=CLOSE_TIMEOUT_S)

    def _start_worker(self, subscription: _Subscription) -> None:
        subscription.worker = asyncio.create_task(
            self._handle_messages(subscription), name=f"mqtt {subscription.topic_filter}"
        )

    async def _keep_connected(self) -> None:
        backoff = Backoff(FIRST_DELAY_S, LONGEST_DELAY_S)
        while self._running:
            started, connects = time.monotonic(), self.connects
            try:
                async with self._connect() as connection:
                    await self._receive(connection)
            except aiomqtt.MqttError as error:
                if self.connects > connects:
                    self._problems.connection_lost(error, time.monotonic() - started)
                else:
                    self._problems.connect_failed(error)
            except Exception:
                log.exception("MQTT connection failed, trying again", broker=str(self.address))
            # Two clients with one identifier end each other's connection at once, for ever: slow down then, too.
            if time.monotonic() - started > 4 * backoff.delay_s:
                backoff.reset()
            await backoff.wait()

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator[Connection]:
        connection = Connection.create(
            self.address,
            self._credentials,
            will=self._will,
            clean=self._clean,
            keepalive=self._keepalive,
            tls=self._tls,
        )
        connection.keeps_newest = self._keeps_newest
        try:
            async with connection:
                await self._subscribe_all(connection)
                self._connection = connection
                self._connected.set()
                self._problems.connected()
                self.connects += 1
                log.info(
                    "connected to MQTT broker", broker=str(self.address), mqtt_id=self._credentials.mqtt_id
                )
                after_connect = asyncio.create_task(self._run_on_connect())
                try:
                    yield connection
                finally:
                    self._connection = None
                    self._connected.clear()
                    after_connect.cancel()
        finally:
            connection.close_socket()

    async def _run_on_connect(self) -> None:
        if self._on_connect is None:
            return
        try:
            await self._on_connect()
        except Exception:
            log.exception("what runs after connecting failed")

    async def _subscribe_all(self, connection: Connection) -> None:
        asked: set[_Subscription] = set()
        refused: list[str] = []
        over_limit: list[str] = []
        while missing := [
            subscription for subscription in self._subscriptions.values() if subscription not in asked
        ]:
            for subscription in missing:  # more may be added while the broker answers
                asked.add(subscription)
                try:
                    await self._subscribe(connection, subscription)
                except SubscriptionLimitError:
                    over_limit.append(subscription.topic_filter)
                except SubscriptionRefusedError:
                    refused.append(subscription.topic_filter)
        if refused:
            self._problems.subscriptions_refused(refused)
        if over_limit:
            self._problems.limit_reached(over_limit)

    async def _subscribe(self, connection: Connection, subscription: _Subscription) -> None:
        if not await connection.try_subscribe(subscription.topic_filter, subscription.qos):
            # SUBACK has one code for every refusal. At QoS 0 the broker keeps nothing, so only a missing right refuses it.
            if subscription.qos and await connection.may_subscribe(subscription.topic_filter):
                raise SubscriptionLimitError(self._problems.limit_text([subscription.topic_filter]))
            raise SubscriptionRefusedError(self._problems.refusal_text([subscription.topic_filter]))
        log.info("subscribed to topic", topic=subscription.topic_filter)

    def _keeps_newest(self, topic: str) -> bool:
        known = self._newest_topics.get(topic)
        if known is None:
            filters = [one.topic_filter for one in self._subscriptions.values() if one.newest]
            known = self._newest_topics[topic] = any(map(aiomqtt.Topic(topic).matches, filters))
        return known

    async def _receive(self, connection: Connection) -> None:
        async for message in connection.messages:
            if not connection.start_handling(message):
                continue
            for subscription in self._subscriptions.values():
                if message.topic.matches(subscription.topic_filter) and (
                    subscription.retained or not message.retain
                ):
                    subscription.queue.put_nowait((connection, message))
                    break
            else:
                connection.acknowledge(message)

    async def _handle_messages(self, subscription: _Subscription) -> None:
        while True:
            connection, message = await subscription.queue.get()
            if connection is not self._connection and message.qos and not self._clean:
                continue  # the broker delivers it again on the new connection
            try:
                await _handle(subscription.handler, message)
            except asyncio.CancelledError:
                connection.abandon(message)
                raise
            except Exception:
                log.exception("message could not be handled", topic=message.topic.value)
            connection.acknowledge(message)  # on a connection that is gone this does nothing


async def _handle(handler: Handler, message: aiomqtt.Message) -> None:
    """Handle a message, again after errors that may pass."""
    backoff = Backoff(FIRST_HANDLER_DELAY_S, LONGEST_HANDLER_DELAY_S)
    while True:
        try:
            await handler(message.topic.value, message.payload)
        except PropellerError as error:
            if not error.temporary:
                raise
            topic = message.topic.value
            log.warning("message cannot be handled now, trying again", topic=topic, reason=str(error))
            await backoff.wait()
        else:
            return
