"""What lies between the proplets and a service: a proxy that passes everything on, until it is told not to.

A ``Link`` carries bytes, as of MQTT. An ``HttpLink`` carries requests, one by one, as it also loses answers, sends requests twice, which HTTP's clients do
when they try again, and tells what was answered.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

_CHUNK = 1 << 16


class Link:
    """Passes connections to a port of loopback on.

    Attributes:
        target: the port.
        port: its own.
        delay_s: how long it keeps what comes before it passes it on, in seconds.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.delay_s = 0.0
        self._is_cut = False
        self._passing = asyncio.Event()
        self._passing.set()
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Take connections for the length of the block."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.heal()
            self.cut()
            await server.wait_closed()

    def cut(self) -> None:
        """Lose the connections, and each new one at once."""
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        """Pass nothing on, and lose nothing."""
        self._passing.clear()

    def heal(self) -> None:
        """Pass everything on."""
        self._is_cut, self.delay_s = False, 0.0
        self._passing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        with self._open(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._carry(reader, writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, back = await asyncio.open_connection("127.0.0.1", self.target)
        with self._open(back):
            both = [asyncio.ensure_future(self._copy(*way)) for way in ((reader, back), (onward, writer))]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in both:
                    one.cancel()
                await asyncio.gather(*both, return_exceptions=True)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._hold()
            writer.write(data)
            await writer.drain()

    async def _hold(self) -> None:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        await self._passing.wait()

    @contextlib.contextmanager
    def _open(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        self._writers.add(writer)
        try:
            yield
        finally:
            self._writers.discard(writer)
            writer.close()


@dataclass(frozen=True)
class Exchange:
    """A request, and the status that the service answered; the names of headers are in small letters."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int


class HttpLink(Link):
    """Passes requests on, each over a connection of its own.

    Attributes:
        loses_answers: whether the client hears nothing, though the service has done what was asked.
        sends_twice: whether the service is asked twice, one after the other.
    """

    def __init__(self, target: int, tell: Callable[[Exchange], None] = lambda _exchange: None) -> None:
        """``tell`` is called with each answer of the service, also of those that are lost."""
        super().__init__(target)
        self.loses_answers = self.sends_twice = False
        self._tell = tell

    def heal(self) -> None:
        """Pass everything on, once."""
        super().heal()
        self.loses_answers = self.sends_twice = False

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        headers |= {"host": f"127.0.0.1:{self.target}", "connection": "close"}
        request = "\r\n".join([first, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
        await self._hold()
        for _ in range(2 if self.sends_twice else 1):
            answer = await self._ask(request.encode("latin-1") + body)
            if not answer:
                return
            method, path, _version = first.split(" ")
            self._tell(Exchange(method, path, headers, body, int(answer.split(b" ", 2)[1])))
        if not self.loses_answers:
            await self._hold()
            writer.write(answer)
            await writer.drain()

    async def _ask(self, request: bytes) -> bytes:
        onward, back = await asyncio.open_connection("127.0.0.1", self.target)
        with self._open(back):
            back.write(request)
            await back.drain()
            return await onward.read()
