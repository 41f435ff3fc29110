"""The HTTP client, against a server that says byte by byte what it is told to: bodies both ways, and whatever can go wrong."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from propeller.process.http_connection import MAX_WAITING_BYTES, HttpClient, HttpError
from support.certificates import make_certificates

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
MEGABYTE = bytes(range(256)) * 4096


@contextlib.asynccontextmanager
async def serving(serve: Serve, timeout_s: float = 5.0) -> AsyncIterator[HttpClient]:
    """A client of a server that does ``serve`` with each connection."""

    handlers: set[asyncio.Task[Any]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            handlers.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base/"
    client = HttpClient(url, timeout_s=timeout_s, authorization="Basic eDp5")
    try:
        yield client
    finally:
        await client.aclose()
        server.close()
        if handlers:
            await asyncio.wait(handlers, timeout=10)


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def answering(*pieces: bytes) -> Serve:
    """Answers each request, none of which has a body, with these pieces, each sent by itself."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head_of(reader)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)

    return serve


async def get(client: HttpClient, **options: Any) -> tuple[int, bytes]:
    async with client.exchange("GET", "/x", **options) as answer:
        return answer.status_code, await answer.aread()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], Any]]:
    """Runs a coroutine in each of the two event loops that processes use."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",),
        (b"HTTP/1.1 200", b" OK\r\nContent-Le", b"ngth: 5\r\n\r\nhe", b"llo"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n", b"3\r\nllo\r\n0\r\n\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    ],
)
def test_answers_of_each_form_on_one_connection(run: Callable[[Any], Any], pieces: tuple[bytes, ...]) -> None:
    async def ask() -> None:
        async with serving(answering(*pieces)) as client:
            for _ in range(3):
                assert await get(client) == (200, b"hello")

    run(ask())


def test_a_body_goes_out_whole_or_as_it_comes_and_large_ones_come_back(run: Callable[[Any], Any]) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await head_of(reader):
            body = b""
            if b"chunked" in head:
                while size := int(await reader.readline(), 16):
                    body += await reader.readexactly(size)
                    await reader.readline()
                await reader.readline()
            else:
                body = await reader.readexactly(
                    int(head.lower().partition(b"content-length: ")[2].split()[0])
                )
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async def ask() -> None:
        async with serving(echo) as client:
            for sent in (b"", b"small", 9 * MEGABYTE):
                async with client.exchange("POST", "/x", content=sent) as answer:
                    assert await answer.aread() == sent
                for headers in ({}, {"Content-Length": str(1 + len(sent))}):
                    async with client.exchange(
                        "POST", "/x", content=pieces(b"a", b"", sent), headers=headers
                    ) as answer:
                        assert await answer.aread() == b"a" + sent

    run(ask())


def test_a_large_answer_waits_for_its_reader_and_comes_in_pieces(run: Callable[[Any], Any]) -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * len(MEGABYTE)))
        for _ in range(64):
            writer.write(MEGABYTE)
            await writer.drain()
            sent += 1

    async def ask() -> None:
        async with serving(serve) as client, client.exchange("GET", "/x") as answer:
            before = -1
            while before != sent:  # until nothing more is taken
                before = sent
                await asyncio.sleep(0.05)
            assert sent < 60  # buffers of the system, and a quarter of a megabyte here
            sizes = [len(piece) async for piece in answer.aiter_bytes(MAX_WAITING_BYTES)]
            assert sizes == [MAX_WAITING_BYTES] * 256

    run(ask())


async def test_what_a_request_says() -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(await head_of(reader))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: b\r\na: c\r\n\r\n")

    async with serving(serve) as client:
        async with client.exchange(
            "GET", "/ä b?/%2F", params={"q": "1 &"}, headers={"authorization": "Bearer t"}
        ) as answer:
            assert (answer.reason_phrase, answer.headers["a"], answer.is_success) == ("OK", "b, c", True)
        async with client.exchange("POST", "/x"):
            pass
        with pytest.raises(ValueError, match="line break"):
            await get(client, headers={"A": "b\r\nC: d"})
    first, second = (head.decode().split("\r\n") for head in heads)
    assert first[0] == "GET /base/%C3%A4%20b%3F/%2F?q=1+%26 HTTP/1.1"
    assert "authorization: Bearer t" in first
    assert first[1].startswith("Host: 127.0.0.1:")
    assert {"Authorization: Basic eDp5", "Content-Length: 0"} <= set(second)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "closed the connection"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", "compressed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "not HTTP"),
    ],
)
async def test_an_answer_that_is_none(answer: bytes, reason: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(answer)

    async with serving(serve) as client:
        with pytest.raises(HttpError, match=reason):
            await get(client)


async def test_an_answer_that_ends_with_its_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello")

    async with serving(serve) as client:
        for _ in range(2):
            assert await get(client) == (200, b"hello")


async def test_what_comes_after_an_answer_ends_the_connection() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n")(reader, writer)

    async with serving(serve) as client:
        with contextlib.suppress(HttpError):
            await get(client)
        with contextlib.suppress(HttpError):
            await get(client)
    assert connections == 2


async def test_a_server_that_refuses_a_body_before_it_has_come() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlong")
        await writer.drain()
        await reader.read()  # not one that resets the connection

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield MEGABYTE
            await asyncio.sleep(0)

    async with serving(serve) as client, client.exchange("POST", "/x", content=endless()) as answer:
        assert (answer.status_code, await answer.aread()) == (413, b"long")


async def test_a_body_that_breaks_off_here_is_not_taken_for_the_whole() -> None:
    ends: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        with contextlib.suppress(ConnectionError):
            ends.append(await reader.read())

    async def half() -> AsyncIterator[bytes]:
        yield b"half"
        raise KeyError

    async with serving(serve) as client:
        with pytest.raises(KeyError):
            async with client.exchange("POST", "/x", content=half()):
                pass
    assert not any(b"0\r\n\r\n" in end for end in ends)


async def test_silence_is_measured_from_the_last_sign_of_life() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        for _ in range(8):
            await asyncio.sleep(0.1)
            writer.write(b"x")

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        await reader.read()

    async with serving(slow, timeout_s=0.6) as client:
        assert await get(client) == (200, b"x" * 8)
    async with serving(silent, timeout_s=30.0) as client:
        with pytest.raises(HttpError, match="no answer in time"):
            await get(client, timeout_s=0.1)


async def test_a_cancelled_request_leaves_no_connection_that_its_answer_could_come_on() -> None:
    asked = asyncio.Event()
    bodies = [b"first", b"second"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        body = bodies.pop(0)
        if body == b"first":
            asked.set()
            await reader.read()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    async with serving(serve) as client:
        first = asyncio.create_task(get(client))
        await asked.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await get(client) == (200, b"second")


@pytest.mark.parametrize("url", ["ftp://host/x", "http://", "//host", "http://[::1", "http://host:port", ""])
async def test_what_is_no_url_of_a_server(url: str) -> None:
    with pytest.raises(HttpError, match="is not the URL of an HTTP server"):
        await get(HttpClient(url, timeout_s=1.0))


async def test_a_certificate_of_an_unknown_authority_is_not_trusted(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    client = HttpClient(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=5.0)
    with pytest.raises(HttpError, match=r"certificate|CERTIFICATE"):
        await get(client)
    server.close()
