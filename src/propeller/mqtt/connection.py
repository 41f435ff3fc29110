"""One connection to a broker: aiomqtt's client, with messages acknowledged by hand.

Parts inside aiomqtt 2.5 that it uses, to be looked at before another version is allowed: ``_client`` (paho's client, of
which ``manual_ack_set``, ``ack``, ``connect_timeout``, ``socket``, ``_sock_close``, ``on_socket_open`` and
``on_socket_close``), ``_client_connect`` (which runs in a thread), ``_connected``, ``_disconnected``, ``_on_disconnect``,
``_on_socket_open``, ``_on_socket_register_write``, ``_misc_loop`` and ``_misc_task``.
"""

import asyncio
import math
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

import aiomqtt

from propeller.mqtt.address import BrokerAddress, Credentials, Will

T = TypeVar("T")

TCP_TIMEOUT_S, ANSWER_TIMEOUT_S = 5.0, 30.0
"""How long to wait for a connection, and for the broker's answer to a packet, in seconds."""

_SUBACK_FAILURE = 0x80


class HungUpError(aiomqtt.MqttError):
    """The broker closed a connection without an answer to its first packet."""


class _ClosingSocket(ssl.SSLSocket):
    """Closed when its handshake fails, which paho leaves to whenever the object is collected."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _closing(context: ssl.SSLContext) -> ssl.SSLContext:
    context.sslsocket_class = _ClosingSocket
    return context


class Connection(aiomqtt.Client):
    """aiomqtt's client with paho's manual acknowledgement switched on."""

    def __init__(self, host: str, port: int, **options: Any) -> None:
        """``options`` are aiomqtt's own."""
        super().__init__(host, port, **options)
        self._client.manual_ack_set(on=True)
        self._client.connect_timeout = TCP_TIMEOUT_S
        self.pending_calls_threshold = 1_000_000  # it logs each call above this number
        self._in_hand: set[int] = set()
        self._newest: dict[str, aiomqtt.Message] = {}
        self.keeps_newest: Callable[[str], bool] = lambda _topic: False
        """Of which topics only the newest message of QoS 0 waits to be taken."""
        self._is_closed = False

    @classmethod
    def create(
        cls,
        address: BrokerAddress,
        credentials: Credentials,
        *,
        will: Will | None,
        clean: bool,
        keepalive: int,
        tls: ssl.SSLContext | None,
    ) -> Self:
        """A client that is not connected yet; without ``tls`` the system's certificates check an address with TLS."""
        return cls(
            address.host,
            address.port,
            identifier=credentials.mqtt_id,
            username=credentials.username or None,
            password=credentials.password or None,
            will=aiomqtt.Will(will.topic, will.payload, will.qos) if will else None,
            clean_session=clean,
            keepalive=keepalive,
            timeout=ANSWER_TIMEOUT_S,
            tls_context=_closing(tls or ssl.create_default_context()) if address.tls else None,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )

    def _client_connect(self) -> None:
        # Runs in a thread, and goes on there when whoever waited for it is cancelled.
        super()._client_connect()
        if self._is_closed:
            self._client._sock_close()  # noqa: SLF001 - paho has no public way

    # aiomqtt by itself has the loop watch the number that the socket has now: by the time that the loop comes to it the socket may
    # be closed, and its number nobody's or another's.
    def _on_socket_open(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ARG002 - paho's
        self._loop.call_soon_threadsafe(self._begin_to_read, sock)

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ARG002 - paho's
        self._loop.call_soon_threadsafe(self._begin_to_write, sock)

    def _begin_to_read(self, sock: Any) -> None:
        if sock.fileno() != -1:
            self._loop.add_reader(sock.fileno(), self._transfer, self._read)
            self._misc_task = self._loop.create_task(self._misc_loop())

    def _begin_to_write(self, sock: Any) -> None:
        if sock.fileno() != -1:
            self._loop.add_writer(sock.fileno(), self._transfer, self._client.loop_write)

    def _read(self) -> None:
        while True:
            self._client.loop_read()
            sock = self._client.socket()
            if (
                not isinstance(sock, ssl.SSLSocket) or not sock.pending()
            ):  # what is decrypted already wakes nobody
                return

    def _transfer(self, transfer: Callable[[], object]) -> None:
        try:
            transfer()
        except Exception as error:  # noqa: BLE001 - whatever it is, the connection is of no use any more
            if not self._disconnected.done():
                self._disconnected.set_exception(error)

    def _on_disconnect(self, *args: Any, **kwargs: Any) -> None:
        # aiomqtt by itself waits for the answer to CONNECT until its timeout, also on a connection that is gone.
        if not self._connected.done():
            self._connected.set_exception(HungUpError("the broker closed the connection before it answered"))
            self._connected.exception()  # no one may be waiting for it
            return
        super()._on_disconnect(*args, **kwargs)

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        # Here, and not when they are handled: a flood must not make a queue that those of others wait in.
        if message.qos == 0 and self.keeps_newest(message.topic):
            waiting = self._newest.get(message.topic)
            if waiting is None:
                waiting = self._newest[message.topic] = aiomqtt.Message._from_paho_message(message)  # noqa: SLF001
                self._queue.put_nowait(waiting)
            waiting.payload = message.payload
            return
        super()._on_message(client, userdata, message)

    async def send(self, topic: str, payload: bytes, qos: int) -> None:
        """Publish, and wait until the broker has the message.

        Raises:
            MqttError: the connection is lost.
        """
        await self._until_lost(self.publish(topic, payload, qos=qos, timeout=math.inf))

    async def try_subscribe(self, topic_filter: str, qos: int) -> bool:
        """Subscribe; ``False`` if the broker refuses.

        Raises:
            MqttError: the connection is lost, or there is no answer.
        """
        codes = await self._until_lost(self.subscribe(topic_filter, qos=qos))
        return all((code if isinstance(code, int) else code.value) < _SUBACK_FAILURE for code in codes)

    async def may_subscribe(self, topic_filter: str) -> bool:
        """Whether the broker lets this client subscribe at QoS 0, where it has nothing to keep; undone again.

        Raises:
            MqttError: the connection is lost, or there is no answer.
        """
        allowed = await self.try_subscribe(topic_filter, 0)
        if allowed:
            await self._until_lost(self.unsubscribe(topic_filter))
        return allowed

    async def _until_lost(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call of aiomqtt, which by itself goes on waiting for its answer when the connection is lost."""
        task = asyncio.create_task(call)
        try:
            await asyncio.wait((task, self._disconnected), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise aiomqtt.MqttError("the connection was lost before the broker answered")
            return task.result()
        finally:
            task.cancel()

    def start_handling(self, message: aiomqtt.Message) -> bool:
        """Note that a message is being handled; ``False`` if it is already, and was only sent again meanwhile."""
        if message.qos == 0:
            self._newest.pop(message.topic.value, None)
        elif message.mid in self._in_hand:
            return False
        self._in_hand.add(message.mid)
        return True

    def acknowledge(self, message: aiomqtt.Message) -> None:
        """Tell the broker that a message was handled; on a connection that is gone this does nothing."""
        self.abandon(message)
        self._client.ack(message.mid, message.qos)

    def abandon(self, message: aiomqtt.Message) -> None:
        """Note that a message is not handled: it will be when the broker sends it again."""
        self._in_hand.discard(message.mid)

    def close_socket(self) -> None:
        """Close a socket that a failed connect left open, or that one which was cancelled is still opening."""
        self._is_closed = True
        if self._client.socket() is not None:
            self._client._sock_close()  # noqa: SLF001 - paho has no public way
        else:
            # aiomqtt's callbacks would use an event loop that may be closed by then.
            self._client.on_socket_open = self._client.on_socket_close = None
