"""HTTP in two forms, so that the client is written once: one waits in an event loop, the other blocks.

What the client does with a stack is ``async`` code over a ``Transport``. Over the blocking one it never waits for an event loop,
so ``complete`` and ``iterate`` run it to its end in the thread of the caller: without a loop, and without a second thread.
"""

import functools
import os
import time
from abc import ABC, abstractmethod
from asyncio import sleep, to_thread
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, cast

import httpx
from httpx_sse import EventSource, ServerSentEvent

from propeller.process.http import verify_for

P = ParamSpec("P")
T = TypeVar("T")
Inner_co = TypeVar("Inner_co", covariant=True)


_PIECE_BYTES = 1024 * 1024
"""How much of a file is in memory at a time, in bytes."""


class Upload(NamedTuple):
    """What is sent of a file.

    Attributes:
        file: the file.
        head: what is sent before it.
        start: where in it begins what is sent, in bytes.
    """

    file: BinaryIO
    head: bytes = b""
    start: int = 0

    @property
    def length(self) -> int:
        """In bytes."""
        return len(self.head) + os.fstat(self.file.fileno()).st_size - self.start

    def pieces(self) -> Iterator[bytes]:
        """All of it; may be called again."""
        if self.head:
            yield self.head
        self.file.seek(self.start)
        while piece := self.file.read(_PIECE_BYTES):
            yield piece


class Transport(ABC):
    """Sends requests to the services of a stack."""

    @abstractmethod
    async def send(self, method: str, url: str, **options: Any) -> httpx.Response:
        """A request and its whole answer; ``options`` are httpx's."""

    @abstractmethod
    async def upload(self, url: str, content: Upload, **options: Any) -> httpx.Response:
        """A ``POST`` of a file, and its whole answer."""

    @abstractmethod
    async def download(self, url: str, content: BinaryIO, **options: Any) -> httpx.Response:
        """A ``GET`` whose answer, if it is a good one, is written to a file; else it has been read."""

    @abstractmethod
    def stream(self, url: str, **options: Any) -> AbstractAsyncContextManager["EventStream"]:
        """A stream of server-sent events, for the length of the block."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait."""

    @abstractmethod
    async def call(self, function: Callable[[], T]) -> T:
        """Call a function that blocks."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close every connection."""


class EventStream(NamedTuple):
    """The answer, which has been read if it is an error, and its events."""

    answer: httpx.Response
    events: AsyncIterator[ServerSentEvent]


class AsyncTransport(Transport):
    """For programs with an event loop."""

    def __init__(
        self, *urls: str, auth: tuple[str, str] | None, timeout: float, ca_cert: Path | None
    ) -> None:
        """``urls`` are those that will be called, ``timeout`` is in seconds, ``ca_cert`` as in ``verify_for``."""
        self._http = httpx.AsyncClient(
            timeout=timeout, auth=auth, trust_env=False, verify=verify_for(*urls, ca_cert=ca_cert)
        )

    async def send(self, method: str, url: str, **options: Any) -> httpx.Response:
        """A request and its whole answer."""
        return await self._http.request(method, url, **options)

    async def upload(self, url: str, content: Upload, **options: Any) -> httpx.Response:
        """A ``POST`` of a file."""
        headers = options.pop("headers", {}) | {"Content-Length": str(content.length)}
        return await self._http.post(url, content=_as_async(content.pieces()), headers=headers, **options)

    async def download(self, url: str, content: BinaryIO, **options: Any) -> httpx.Response:
        """A ``GET`` whose answer is written to a file."""
        async with self._http.stream("GET", url, **options) as answer:
            if not answer.is_success:
                await answer.aread()
                return answer
            async for piece in answer.aiter_bytes():
                content.write(piece)
            return answer

    @asynccontextmanager
    async def stream(self, url: str, **options: Any) -> AsyncIterator[EventStream]:
        """A stream of server-sent events."""
        async with self._http.stream("GET", url, **options) as answer:
            if not answer.is_success:
                await answer.aread()
            yield EventStream(answer, EventSource(answer).aiter_sse())

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await sleep(seconds)

    async def call(self, function: Callable[[], T]) -> T:
        """Call a function that blocks, in a thread."""
        return await to_thread(function)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()


class BlockingTransport(Transport):
    """For programs without an event loop: its methods end before they are awaited."""

    def __init__(
        self, *urls: str, auth: tuple[str, str] | None, timeout: float, ca_cert: Path | None
    ) -> None:
        """``urls`` are those that will be called, ``timeout`` is in seconds, ``ca_cert`` as in ``verify_for``."""
        self._http = httpx.Client(
            timeout=timeout, auth=auth, trust_env=False, verify=verify_for(*urls, ca_cert=ca_cert)
        )

    async def send(self, method: str, url: str, **options: Any) -> httpx.Response:
        """A request and its whole answer."""
        return self._http.request(method, url, **options)

    async def upload(self, url: str, content: Upload, **options: Any) -> httpx.Response:
        """A ``POST`` of a file."""
        headers = options.pop("headers", {}) | {"Content-Length": str(content.length)}
        return self._http.post(url, content=content.pieces(), headers=headers, **options)

    async def download(self, url: str, content: BinaryIO, **options: Any) -> httpx.Response:
        """A ``GET`` whose answer is written to a file."""
        with self._http.stream("GET", url, **options) as answer:
            if not answer.is_success:
                answer.read()
                return answer
            content.writelines(answer.iter_bytes())
            return answer

    @asynccontextmanager
    async def stream(self, url: str, **options: Any) -> AsyncIterator[EventStream]:
        """A stream of server-sent events."""
        with self._http.stream("GET", url, **options) as answer:
            if not answer.is_success:
                answer.read()
            yield EventStream(answer, _as_async(EventSource(answer).iter_sse()))

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)  # noqa: ASYNC251 - it is never in an event loop

    async def call(self, function: Callable[[], T]) -> T:
        """Call a function that blocks."""
        return function()

    async def aclose(self) -> None:
        """Close every connection."""
        self._http.close()


async def _as_async(values: Iterable[T]) -> AsyncIterator[T]:
    for value in values:
        yield value


def complete(work: Coroutine[Any, Any, T]) -> T:
    """Run ``async`` code over a blocking transport to its end."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    work.close()
    raise RuntimeError("code over a blocking transport waited for an event loop")


def iterate(values: AsyncIterator[T]) -> Iterator[T]:
    """What an ``async`` generator over a blocking transport yields; it is closed with this one."""
    try:
        while True:
            try:
                yield complete(cast("Coroutine[Any, Any, T]", anext(values)))
            except StopAsyncIteration:
                return
    finally:
        if isinstance(values, AsyncGenerator):
            complete(values.aclose())


class Blocking(Generic[Inner_co]):
    """The blocking form of an object whose methods are ``async``."""

    def __init__(self, inner: Inner_co) -> None:
        self._inner = inner

    def __repr__(self) -> str:
        """Shows what the inner object shows, under its own name."""
        _name, _space, shown = repr(self._inner).partition(" ")
        return f"<{type(self).__name__} {shown}"


def blocking(
    method: Callable[Concatenate[Inner_co, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Blocking[Inner_co], P], T]:
    """A method that calls one of the inner object and blocks; arguments, result and documentation are the same."""

    @functools.wraps(method)
    def call(self: Blocking[Inner_co], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return complete(method(self._inner, *args, **kwargs))

    return cast("Callable[Concatenate[Blocking[Inner_co], P], T]", call)
