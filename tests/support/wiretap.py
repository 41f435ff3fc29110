"""Taps on the connections of a device with the services of a stack: TLS ends at each, what goes through is kept, and it goes on."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Self

from propeller.process.certificates import Authority

_CHUNK = 1 << 16


class Wiretap:
    """A tap for each of some ports of ``target``, on ports of ``host`` whose numbers are as long.

    Answers name the taps in the place of what they tap, so that the device goes on to them.

    Attributes:
        heard: what the device has sent, by the port that it was for.
    """

    def __init__(self, host: str, target: str, ports: Sequence[int], authority: Path) -> None:
        """``authority`` is the folder of the one that the device believes; both hosts are texts of one length."""
        self.host, self._target, self._ports = host, target, ports
        self.heard: dict[int, bytearray] = {port: bytearray() for port in ports}
        self.taps: dict[int, int] = {}
        cert, key = Authority(authority).ensure_server("tap", [host])
        self._shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._shown.load_cert_chain(cert, key)
        self._believed = ssl.create_default_context(cafile=str(authority / "ca.pem"))
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def everything(self) -> bytes:
        """What the device has sent to any service."""
        return b"\n".join(bytes(one) for one in self.heard.values())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Take connections for the length of the block."""
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._abort)
            for port in self._ports:

                async def serve(
                    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int = port
                ) -> None:
                    await self._serve(reader, writer, port)

                server = await asyncio.start_server(serve, self.host, 0, ssl=self._shown)
                stack.callback(server.close)
                self.taps[port] = server.sockets[0].getsockname()[1]
                assert len(str(self.taps[port])) == len(str(port))
            yield self

    def _abort(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        self._open.add(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            onward, back = await asyncio.open_connection(self._target, port, ssl=self._believed)
            self._open.add(back)
            ways = [self._hear(reader, back, port), self._answer(onward, writer)]
            both = [asyncio.ensure_future(way) for way in ways]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in both:
                    one.cancel()
                await asyncio.gather(*both, return_exceptions=True)
                for end in (writer, back):
                    end.transport.abort()
                    self._open.discard(end)

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        while piece := await reader.read(_CHUNK):
            self.heard[port] += piece
            # A server refuses a host that is not its own: the name of the tap is no one's.
            writer.write(piece.replace(self.host.encode(), self._target.encode()))
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_CHUNK):
            told = piece.replace(self._target.encode(), self.host.encode())
            for port, tap in self.taps.items():
                told = told.replace(str(port).encode(), str(tap).encode())
            writer.write(told)
            await writer.drain()
