"""HTTP/1.1 to one server, for calls between services: connections that are kept, answers parsed by httptools.

A round is many small calls, and httpx took 0.9 ms of a processor for each
(docs/decisions/0151-calls-between-services-have-a-client-of-their-own.md). This knows what such calls need: no redirects, cookies,
proxies, compression, upgrades or ``HEAD``.
"""

import asyncio
import contextlib
import json
import ssl
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from typing import Any, cast
from urllib.parse import quote, urlencode, urlsplit

import httptools

from propeller.process.tls import stack_trust

MAX_IDLE_CONNECTIONS = 20
IDLE_S = 5.0
"""How long a connection is kept without a request, in seconds: servers close theirs later, so that none closes on a request's way."""

MAX_WAITING_BYTES = 256 * 1024
"""Of an answer that is read as it comes: beyond them the server waits for the reader."""

_PIECE_BYTES = 256 * 1024
_PACKED_BYTES = 64 * 1024
"""Up to which what comes in pieces is held together."""

_FIRST_FINAL_STATUS = 200
_SAFE_IN_PATH = "/%:@!$&'()*+,;=-._~"
_LENGTHS = frozenset({"content-length", "transfer-encoding"})


class HttpError(Exception):
    """A request got no whole answer; the text says why."""


class Answer:
    """An answer: its head, and its body as it comes or, once it was read, as a whole.

    Attributes:
        status_code: 200 and so on.
        reason_phrase: what the server calls it.
        headers: by their names in lower case.
        content: the body, if it was read.
    """

    def __init__(
        self, connection: "_Connection", status_code: int, reason_phrase: str, headers: dict[str, str]
    ) -> None:
        self._connection = connection
        self.status_code, self.reason_phrase, self.headers = status_code, reason_phrase, headers
        self.content = b""

    @property
    def is_success(self) -> bool:
        """Whether the status is one of 200 to 299."""
        return 200 <= self.status_code < 300

    @property
    def text(self) -> str:
        """The body as UTF-8; bytes that are none become U+FFFD."""
        return self.content.decode(errors="replace")

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: it is none.
        """
        return json.loads(self.content)

    async def aread(self) -> bytes:
        """Read the body as a whole.

        Raises:
            HttpError: the answer breaks off.
        """
        self.content = b"".join([piece async for piece in self._connection.pieces()])
        return self.content

    async def aiter_bytes(self, size: int | None = None) -> AsyncIterator[bytes]:
        """The body as it comes, in pieces of ``size`` bytes (the last one may have fewer) if that is given.

        Raises:
            HttpError: the answer breaks off.
        """
        held = bytearray()
        async for piece in self._connection.pieces():
            if size is None:
                yield piece
                continue
            held += piece
            while len(held) >= size:
                yield bytes(held[:size])
                del held[:size]
        if held:
            yield bytes(held)


class HttpClient:
    """Requests to one server; keeps connections, close it with ``aclose``."""

    def __init__(self, base_url: str, *, timeout_s: float, authorization: str | None = None) -> None:
        """A client that has no connection yet.

        Args:
            base_url: the server's, with the beginning of all paths if they have one.
            timeout_s: the longest silence of the server, in seconds.
            authorization: sent with each request that has no such header of its own.
        """
        self._base_url, self._timeout_s = base_url, timeout_s
        try:
            url = urlsplit(base_url)
            self._host, port = url.hostname, url.port
        except ValueError:  # told by the first request, as a host that does not exist
            url, self._host, port = urlsplit(""), None, None
        self._port = port or (443 if url.scheme == "https" else 80)
        self._is_http, self._prefix = url.scheme in {"http", "https"}, url.path.rstrip("/")
        self._tls = _trusting_context() if url.scheme == "https" else None
        self._headers = {"host": ("Host", url.netloc.rpartition("@")[2]), "accept": ("Accept", "*/*")}
        if authorization is not None:
            self._headers["authorization"] = ("Authorization", authorization)
        self._idle: list[tuple[float, _Connection]] = []

    @contextlib.asynccontextmanager
    async def exchange(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | AsyncIterable[bytes] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Answer]:
        """Send a request, and give its answer, of which the body has not been read.

        Args:
            method: ``GET``, ``POST`` …
            path: below the base URL; what may not stand in one is escaped.
            params: the query.
            headers: beside ``Host`` and the length of the body.
            content: the body, as a whole or as it comes, which goes in chunks if ``headers`` have no ``Content-Length`` of it.
            timeout_s: instead of the client's.

        Raises:
            HttpError: there is no whole answer.
        """
        target = self._prefix + quote(path, safe=_SAFE_IN_PATH) + (f"?{urlencode(params)}" if params else "")
        head = self._encode_head(method, target, headers or {}, content)
        connection = await self._connect(timeout_s or self._timeout_s)
        try:
            yield await connection.send(head, content, in_chunks=b"\r\nTransfer-Encoding:" in head)
        except BaseException:
            connection.close()
            raise
        if connection.is_done and len(self._idle) < MAX_IDLE_CONNECTIONS:
            self._idle.append((time.monotonic(), connection))
        else:
            connection.close()

    async def aclose(self) -> None:
        """Close every connection that is not in use."""
        for _since, connection in self._idle:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # the event loop closes the sockets

    def _encode_head(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        content: bytes | AsyncIterable[bytes] | None,
    ) -> bytes:
        sent = self._headers | {name.lower(): (name, value) for name, value in headers.items()}
        if isinstance(content, bytes):
            sent["content-length"] = ("Content-Length", str(len(content)))
        elif content is not None and "content-length" not in sent:
            sent["transfer-encoding"] = ("Transfer-Encoding", "chunked")
        elif content is None and method not in {"GET", "DELETE"}:
            sent["content-length"] = ("Content-Length", "0")
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.values())]
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError("a line break in a header would be another header")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    async def _connect(self, timeout_s: float) -> "_Connection":
        if self._host is None or not self._is_http:
            raise HttpError(f"{self._base_url!r} is not the URL of an HTTP server")
        while self._idle:  # the one used last first
            since, connection = self._idle.pop()
            if connection.is_open and time.monotonic() - since < IDLE_S:
                connection.timeout_s = timeout_s
                return connection
            connection.close()
        try:
            async with asyncio.timeout(timeout_s):
                _transport, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(timeout_s), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            raise HttpError("no answer in time") from None
        except OSError as error:
            raise HttpError(error.strerror or str(error) or type(error).__name__) from error
        return connection


class _Connection(asyncio.Protocol):
    """A connection and the exchange on it; one coroutine at a time sends, then reads."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[None] | None = None
        self._error: HttpError | None = None
        self._may_write, self._may_read = True, True
        self._is_sent, self._is_complete, self._is_kept = False, False, False
        self._parser = httptools.HttpResponseParser(self)
        self._begin()

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent."""
        return self._error is None and not self._transport.is_closing()

    @property
    def is_done(self) -> bool:
        """Whether an exchange is over, of which nothing is left on the way, and another may follow."""
        return self.is_open and self._is_sent and self._is_complete and not self._pieces and self._is_kept

    async def send(
        self, head: bytes, content: bytes | AsyncIterable[bytes] | None, *, in_chunks: bool
    ) -> Answer:
        """Send a request, and wait for the head of its answer.

        ``in_chunks``: whether a body that comes in pieces says of each how long it is.

        Raises:
            HttpError: none came.
        """
        self._begin()
        await self._write_all(head, content, in_chunks=in_chunks)
        self._is_sent = not self._is_complete  # or the server answered before it had everything
        await self._wait(lambda: self._answer is not None)
        answer = self._answer
        if answer is None:
            raise AssertionError("it was waited for")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise HttpError("its answer is compressed, which was not asked for")
        return answer

    async def pieces(self) -> AsyncIterator[bytes]:
        """The answer's body as it comes.

        Raises:
            HttpError: it breaks off.
        """
        while True:
            await self._wait(lambda: bool(self._pieces) or self._is_complete)
            if not self._pieces:
                return
            piece = self._pieces.popleft()
            self._waiting_bytes -= len(piece)
            if not self._may_read and self._waiting_bytes <= MAX_WAITING_BYTES:
                self._may_read = True
                self._transport.resume_reading()
            yield piece

    def close(self) -> None:
        """Close the connection, whatever is on the way."""
        self._transport.abort()

    def _begin(self) -> None:
        self._reason, self._lines = b"", list[tuple[bytes, bytes]]()
        self._answer: Answer | None = None
        self._pieces, self._waiting_bytes = deque[bytes](), 0
        self._is_sent, self._is_complete, self._is_kept = False, False, False

    async def _write_all(
        self, head: bytes, content: bytes | AsyncIterable[bytes] | None, *, in_chunks: bool
    ) -> None:
        """Write a request. What is small goes in one packet, so that the server wakes once."""
        held: list[bytes | memoryview] = [head]
        held_bytes = len(head)
        async for piece in _encode_body(content, in_chunks=in_chunks):
            if self._is_complete:  # it is refused
                return
            held.append(piece)
            held_bytes += len(piece)
            if held_bytes > _PACKED_BYTES:
                await self._write(b"".join(held) if len(held) > 1 else piece)
                held, held_bytes = [], 0
        if held:
            await self._write(b"".join(held))

    async def _write(self, piece: bytes | memoryview) -> None:
        if self._error is None:
            self._transport.write(piece)
        if not self._may_write or self._error is not None:
            await self._wait(lambda: self._is_complete or (self._may_write and self._error is None))

    async def _wait(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so, as long as the server does not fall silent."""
        while not is_so():
            if self._error is not None:
                raise self._error
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(self.timeout_s, self._fail, "no answer in time")
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, reason: str) -> None:
        self._error = self._error or HttpError(reason)
        self._transport.abort()
        self._wake()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"its answer is not HTTP: {error}")
        if self._may_read and self._waiting_bytes > MAX_WAITING_BYTES and self.is_open:
            self._may_read = False
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and error is None and not _LENGTHS & self._answer.headers.keys():
            self._is_complete = True  # its end is that of the connection
        self._error = self._error or HttpError(
            (isinstance(error, OSError) and error.strerror)
            or "it closed the connection without a whole answer"
        )
        self._wake()

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._wake()

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._is_complete:
            self._fail("it sent more than an answer")

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= _FIRST_FINAL_STATUS:
            headers: dict[str, str] = {}
            for raw_name, raw_value in self._lines:
                name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
            self._answer = Answer(self, status, self._reason.decode("latin-1"), headers)

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._waiting_bytes += len(piece)

    def on_message_complete(self) -> None:
        if self._answer is None:  # "100 Continue", and the answer comes after it
            self._reason, self._lines = b"", []
            return
        self._is_complete, self._is_kept = True, self._parser.should_keep_alive()


async def _encode_body(
    content: bytes | AsyncIterable[bytes] | None, *, in_chunks: bool
) -> AsyncIterator[bytes | memoryview]:
    if isinstance(content, bytes):
        view = memoryview(content)
        for start in range(0, len(content), _PIECE_BYTES):
            yield view[start : start + _PIECE_BYTES]
    elif content is not None:
        async for piece in content:
            if piece:  # an empty chunk would be the last
                yield b"%x\r\n%s\r\n" % (len(piece), piece) if in_chunks else piece
        if in_chunks:
            yield b"0\r\n\r\n"


def _trusting_context() -> ssl.SSLContext:
    """Which certificates are trusted: a stack's own, else as with httpx, which is not loaded where nothing needs them."""
    if (own := stack_trust()) is not None:
        return own
    from httpx import create_ssl_context

    return create_ssl_context(trust_env=False)
