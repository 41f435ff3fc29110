"""Serving: several apps on their ports, errors that say what to do, an end in time."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from propeller.errors import StartError
from propeller.process.settings import HttpSettings
from propeller.web.app import create_app
from propeller.web.server import Bind, bind_api, check_exposure, listen, serve
from propeller.web.sites import is_loopback
from support.net import eventually, free_port

Serving = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_loopback_may_be_open(host: str) -> None:
    assert is_loopback(host)
    check_exposure("manager", host, authenticated=False, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "example.org", "127.0.0.1.example.org"])
def test_anything_else_needs_authentication_or_a_word(host: str) -> None:
    check_exposure("manager", host, authenticated=True, insecure=False)
    check_exposure("manager", host, authenticated=False, insecure=True)
    with pytest.raises(StartError, match=r"manager would listen on .*PROPELLER_AUTH=on.*--insecure"):
        check_exposure("manager", host, authenticated=False, insecure=False)


def test_an_api_is_bound_beyond_loopback_only_with_authentication_or_a_word() -> None:
    closed = HttpSettings(PROPELLER_AUTH="on", PROPELLER_IDENTITY_URL="http://identity")
    trusted = HttpSettings(PROPELLER_INSECURE=True)
    expected = Bind("manager", "0.0.0.0", 7070, "MANAGER_HTTP_PORT")
    for settings in (closed, trusted):
        assert bind_api("manager", settings, "0.0.0.0", 7070, "MANAGER_HTTP_PORT") == expected
    assert (
        bind_api("manager", HttpSettings(), "0.0.0.0", 7070, "MANAGER_HTTP_PORT", has_login=True) == expected
    )
    with pytest.raises(StartError, match=r"^manager would listen on 0\.0\.0\.0 without authentication"):
        bind_api("manager", HttpSettings(), "0.0.0.0", 7070, "MANAGER_HTTP_PORT")


def test_a_port_in_use_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            StartError, match=f"manager: port {port} is already in use by .*; stop what listens"
        ):
            listen(Bind("manager", "127.0.0.1", port))


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        ("127.0.0.1", 99999, "99999 is not a port"),
        ("127.0.0.1", -1, "-1 is not a port"),
        ("203.0.113.1", 0, "cannot listen on 203.0.113.1"),
        ("no-such-host.invalid", 0, "cannot listen on no-such-host.invalid"),
    ],
)
def test_where_it_cannot_listen(host: str, port: int, says: str) -> None:
    with pytest.raises(StartError, match=f"manager: {says}"):
        listen(Bind("manager", host, port))


async def test_if_one_port_cannot_be_had_none_is_served() -> None:
    first = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        apps = [
            (Bind("a", "127.0.0.1", first), create_app("a")),
            (Bind("b", "127.0.0.1", taken.getsockname()[1]), create_app("b")),
        ]
        with pytest.raises(StartError, match="b: port"):
            await serve(apps, asyncio.Event())
    listen(Bind("a", "127.0.0.1", first)).close()


async def test_several_apps_and_ports_of_the_systems_choice() -> None:
    stop = asyncio.Event()
    with capture_logs() as logs:
        served = asyncio.create_task(
            serve([(Bind(name, "127.0.0.1", 0), create_app(name)) for name in ("a", "b")], stop)
        )
        await eventually(lambda: len(logs) == 2)
        async with httpx.AsyncClient(trust_env=False) as http:
            for line in logs:
                schema = (await http.get(f"http://127.0.0.1:{line['port']}/openapi.json")).json()
                assert schema["info"]["title"] == f"Propeller {line['service_name']}"
        stop.set()
        await served


async def test_an_app_that_cannot_start_ends_all() -> None:
    @asynccontextmanager
    async def fails(_app: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no model")
        yield

    apps = [
        (Bind("good", "127.0.0.1", free_port()), create_app("good")),
        (Bind("bad", "127.0.0.1", free_port()), create_app("bad", lifespan=fails)),
    ]
    with pytest.raises(StartError, match="bad: the app could not start"):
        await asyncio.wait_for(serve(apps, asyncio.Event()), 10)


async def test_a_lifespan_of_the_service_runs(serving: Serving) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        events.append("open")
        yield
        events.append("closed")

    async with serving(create_app("x", lifespan=lifespan)):
        assert events == ["open"]
    assert events == ["open", "closed"]


async def test_it_stops_in_time_with_a_request_open(app: FastAPI, serving: Serving) -> None:
    async with serving(app) as http:
        hanging = asyncio.create_task(http.get("/hang"))
        await asyncio.wait_for(app.state.hanging.wait(), 10)
        begun = time.monotonic()
    assert time.monotonic() - begun < 3
    answer = (await asyncio.gather(hanging, return_exceptions=True))[0]
    if isinstance(answer, httpx.Response):
        assert (answer.status_code, list(answer.json())) == (503, ["error"])
    else:
        assert isinstance(answer, httpx.TransportError)


async def test_half_an_answer_is_not_taken_for_a_whole_one(app: FastAPI, serving: Serving) -> None:
    async with serving(app) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get("/half")
        assert (await http.get("/health")).status_code == 200


async def test_a_caller_that_goes_away_is_no_failure(app: FastAPI, serving: Serving) -> None:
    with capture_logs() as logs:
        async with serving(app) as http:
            _, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
            writer.write(b"POST /raw HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            await eventually(lambda: any(line["event"] == "the caller went away" for line in logs), 5)
    assert [line["log_level"] for line in logs if "exc_info" in line] == []


async def test_nothing_of_an_unforeseen_error_reaches_the_caller(app: FastAPI, serving: Serving) -> None:
    async with serving(app) as http:
        with capture_logs() as logs:
            answer = await http.get("/fails/unforeseen")
        assert answer.status_code == 500
        assert "hunter2" not in answer.text
        assert [line["event"] for line in logs] == ["request failed"]
