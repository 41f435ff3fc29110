"""Peers of MQTT that misbehave: a broker that answers as it is told, and a relay that loses its connections."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class RudeBroker:
    """Answers CONNECT with ``connack`` and SUBSCRIBE with ``suback`` (``None``: not at all), and nothing else.

    With ``dropped`` it takes PUBLISH of QoS 1 too, but first closes the connection at so many of them instead.
    With ``rude`` it hangs up when asked to subscribe, with ``deaf`` when asked to connect. While ``held`` is not set no SUBSCRIBE is answered; ``filters`` are those asked for.
    """

    connack: int | None = 0
    suback: int | None = 1
    port: int = 0
    rude: bool = False
    deaf: bool = False
    connections: int = 0
    held: asyncio.Event | None = None
    dropped: int | None = None
    filters: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["RudeBroker"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.read(1):
                length = (await reader.readexactly(1))[0]  # packets of less than 128 bytes are enough here
                body = await reader.readexactly(length)
                kind = head[0] >> 4
                if kind == 1 and self.connack is not None and not self.deaf:
                    writer.write(bytes([0x20, 2, 0, self.connack]))
                    if self.connack:
                        break
                elif kind == 3 and self.dropped is not None:
                    if self.dropped:
                        self.dropped -= 1
                        break
                    at = 2 + int.from_bytes(body[:2], "big")
                    writer.write(bytes([0x40, 2, *body[at : at + 2]]))
                elif (kind == 8 and self.rude) or (kind == 1 and self.deaf):
                    break
                elif kind == 8 and self.suback is not None:
                    self.filters.append(body[4:-1].decode())
                    if self.held is not None:
                        await self.held.wait()
                    writer.write(bytes([0x90, 3, *body[:2], self.suback]))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


class Relay:
    """Hands the connections to a port on to another port of this machine, until they are cut.

    Attributes:
        target: the other port, of connections from now on.
        port: its own.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Relay"]:
        """Take connections for the length of the block."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.close()

    def cut(self) -> None:
        """Lose the connections that there are."""
        for writer in self._writers:
            writer.transport.abort()

    def close(self) -> None:
        """Lose the connections, and take no more."""
        if self._server is not None:
            self._server.close()
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, back}
        await asyncio.gather(self._copy(reader, back), self._copy(onward, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        self._writers.discard(writer)
        writer.close()
