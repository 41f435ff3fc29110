"""One connection to a broker: aiomqtt's client, with messages acknowledged by hand."""

import asyncio
import math
from typing import Any

import aiomqtt

TCP_TIMEOUT_S = 5.0


class Connection(aiomqtt.Client):
    """aiomqtt's client with paho's manual acknowledgement switched on."""

    def __init__(self, host: str, port: int, **options: Any) -> None:
        """``options`` are aiomqtt's own."""
        super().__init__(host, port, **options)
        self._client.manual_ack_set(on=True)
        self._client.connect_timeout = TCP_TIMEOUT_S
        self.pending_calls_threshold = 1_000_000  # it logs each call above this number
        self._open: set[int] = set()
        self.lost = asyncio.Event()
        """Set by whoever uses the connection, once it is over."""

    async def send(self, topic: str, payload: bytes, qos: int) -> None:
        """Publish, and wait until the broker has the message.

        Raises:
            MqttError: the connection is lost; aiomqtt by itself would go on waiting for an answer.
        """
        sending = asyncio.create_task(self.publish(topic, payload, qos=qos, timeout=math.inf))
        losing = asyncio.create_task(self.lost.wait())
        try:
            await asyncio.wait({sending, losing}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise aiomqtt.MqttError("the connection was lost before the broker had the message")
            sending.result()
        finally:
            sending.cancel()
            losing.cancel()

    def take(self, message: aiomqtt.Message) -> bool:
        """Whether a message is to be handled: not if it is being handled, and was sent again meanwhile."""
        if message.qos and message.mid in self._open:
            return False
        self._open.add(message.mid)
        return True

    def acknowledge(self, message: aiomqtt.Message) -> None:
        """Tell the broker that a message was handled; on a connection that is gone this does nothing."""
        self.leave(message)
        self._client.ack(message.mid, message.qos)

    def leave(self, message: aiomqtt.Message) -> None:
        """Do not handle a message now: it is taken when the broker sends it again."""
        self._open.discard(message.mid)

    def close_socket(self) -> None:
        """Close a socket that a failed connect left open."""
        if self._client.socket() is not None:
            self._client._sock_close()  # noqa: SLF001 - paho has no public way
