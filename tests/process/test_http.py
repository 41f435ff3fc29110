"""Calls between services, against a server that answers, fails, hangs and hangs up as it is told."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from propeller.errors import ConflictError, InvalidError, NotFoundError, PropellerError, UnavailableError
from propeller.process.http import ServiceClient, ServiceError
from support.net import eventually, free_port

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}'
HANG, HANG_UP = b"hang", b""


def answer(status: int, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


@dataclass
class Server:
    """Gives its answers in turn, the last one for ever; keeps the heads of the requests."""

    answers: list[bytes]
    requests: list[bytes] = field(default_factory=list)
    url: str = ""
    open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.requests.append(head)
                reply = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if reply == HANG:
                    await reader.read()
                elif reply == HANG_UP:
                    break
                writer.write(reply)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self.open -= 1


@asynccontextmanager
async def serving(*answers: bytes, timeout: float = 5.0) -> AsyncIterator[tuple[Server, ServiceClient]]:
    peer = Server(list(answers))
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    peer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = ServiceClient("registry", f"{peer.url}/", timeout=timeout, retry_delays=(0.01, 0.02))
    async with client:
        yield peer, client
    server.close()
    await eventually(lambda: peer.open == 0, what="every connection closed")


async def test_an_answer() -> None:
    async with serving(OK) as (peer, client):
        response = await client.request("GET", "/models/1", params={"a": 1})
        assert response.json() == {"a": 1}
        assert peer.requests[0].startswith(b"GET /models/1?a=1 HTTP/1.1\r\n")
        assert b"authorization" not in peer.requests[0].lower()


async def test_not_modified_is_an_answer() -> None:
    async with serving(answer(304)) as (_peer, client):
        assert (await client.request("GET", "/models/1")).status_code == 304


async def test_credentials_are_sent() -> None:
    async with serving(OK) as (peer, _client):
        async with ServiceClient("x", peer.url, credentials=("id", "key")) as client:
            await client.request("POST", "/", json={})
        assert b"Authorization: Basic aWQ6a2V5" in peer.requests[0]


@pytest.mark.parametrize("fault", [answer(502), answer(503), answer(504), HANG_UP, b"garbage\r\n\r\n"])
async def test_a_passing_fault_is_tried_again(fault: bytes) -> None:
    async with serving(fault, OK) as (peer, client):
        assert (await client.request("GET", "/")).status_code == 200
        assert len(peer.requests) == 2


async def test_with_patience_it_is_tried_for_longer_than_there_are_delays() -> None:
    async with serving(*[answer(503)] * 9, OK) as (peer, _client):
        async with ServiceClient("x", peer.url, retry_delays=(0.001, 0.002), patience_s=30) as client:
            assert (await client.request("GET", "/")).status_code == 200
        assert len(peer.requests) == 10
        async with ServiceClient("x", "http://127.0.0.1:1", retry_delays=(0.01,), patience_s=0.05) as client:
            with pytest.raises(ServiceError, match="cannot be reached"):
                await client.request("GET", "/")


@pytest.mark.parametrize("fault", [answer(503, b'{"error":"busy"}'), HANG_UP])
async def test_retries_end_and_can_be_switched_off(fault: bytes) -> None:
    async with serving(fault) as (peer, client):
        for retry, requests in ((True, 3), (False, 4)):
            with pytest.raises(ServiceError) as error:
                await client.request("POST", "/", retry=retry)
            assert len(peer.requests) == requests
        assert error.value.status == (503 if fault else None)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (404, b'{"error":"no such model"}', "no such model"),
        (409, b'{"error":5}', '{"error":5}'),
        (400, b"plain text\n", "plain text"),
        (500, b"", "Internal Server Error"),
        (500, b"\xff\xfe", "\ufffd\ufffd"),
        (500, b"[" * 5000, "[" * 500),
        (301, b"", "Moved Permanently"),
    ],
)
async def test_a_refusal_has_its_status_and_reason_and_is_not_repeated(
    status: int, body: bytes, reason: str
) -> None:
    async with serving(answer(status, body).replace(b" X\r", b" %s\r" % reason.encode()[:40])) as (
        peer,
        client,
    ):
        with pytest.raises(ServiceError) as error:
            await client.request("GET", "/models/9")
        assert (error.value.service, error.value.status, error.value.reason) == ("registry", status, reason)
        assert str(error.value) == f"registry answered {status}: {reason}"
        assert len(peer.requests) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidError),
        (404, NotFoundError),
        (405, NotFoundError),
        (409, ConflictError),
        (418, InvalidError),
        (429, UnavailableError),
        (500, UnavailableError),
    ],
)
def test_a_status_is_a_kind_of_error(status: int | None, kind: type[PropellerError]) -> None:
    assert ServiceError("registry", status, "no").kind is kind


async def test_a_peer_that_hangs_is_given_up_after_the_timeout() -> None:
    async with serving(HANG, timeout=0.3) as (peer, client):
        begun = time.monotonic()
        with pytest.raises(ServiceError, match=r"registry cannot be reached: .*: no answer in time"):
            await client.request("GET", "/")
        assert time.monotonic() - begun < 10  # and not for as long as the peer hangs
        assert len(peer.requests) == 1


async def test_a_peer_that_is_not_there() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with ServiceClient("registry", url, retry_delays=(0.01,)) as client:
        with pytest.raises(ServiceError, match=f"registry cannot be reached: {url}: ") as error:
            await client.request("GET", "/")
    assert error.value.status is None


async def test_an_answer_that_cannot_be_decoded() -> None:
    bad = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"
    async with serving(bad) as (_peer, client):
        with pytest.raises(ServiceError):
            await client.request("GET", "/")


async def test_connections_are_kept() -> None:
    async with serving(OK) as (peer, client):
        for _ in range(3):
            await client.request("GET", "/")
        assert len(peer.requests) == 3


async def test_of_a_long_reason_the_start_is_told() -> None:
    async with serving(answer(422, b'{"error": "%s"}' % (b"x" * 2_000_000))) as (_peer, client):
        with pytest.raises(ServiceError) as error:
            await client.request("GET", "/")
    assert error.value.reason == "x" * 8000 + "…"
