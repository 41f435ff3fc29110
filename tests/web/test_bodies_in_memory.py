"""What the bodies of one caller may take in memory at once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import httpx
import pytest
from fastapi import FastAPI, Request

from propeller.errors import ThrottledError
from propeller.web import body as web_body
from propeller.web.app import create_app
from propeller.web.auth import Principal
from propeller.web.body import BodiesInMemory, HeldBody, read_body

Serving = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]


def test_a_callers_only_body_may_have_any_size_and_a_second_one_what_is_left() -> None:
    bodies = BodiesInMemory(of_a_caller=100, of_anyone=1000)

    def begin(who: Principal | None, address: str = "10.0.0.1") -> HeldBody:
        state = {} if who is None else {"principal": who}
        return bodies.begin(Request({"type": "http", "client": (address, 1), "headers": [], "state": state}))

    one, other, anyone = Principal("client", "d-1"), Principal("client", "d-2"), Principal("anyone")
    first, second = begin(one), begin(one)
    first.grow(150)
    first.grow(50)
    with pytest.raises(ThrottledError, match="have 200 bytes of bodies, and with this one more than 100"):
        second.grow(1)
    begin(other).grow(100)  # nobody else is kept waiting
    first.release()
    second.grow(60)
    first.grow(40)
    with pytest.raises(ThrottledError):
        first.grow(1)
    begin(anyone).grow(900)
    with pytest.raises(ThrottledError):
        begin(None).grow(200)
    begin(anyone, "10.0.0.2").grow(200)
    for held in (first, second):
        held.release()
    begin(one).grow(100)


@pytest.mark.parametrize("path", ["/object", "/part"])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_caller_with_too_many_bodies_is_told_to_wait(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, path: str, announced: bool
) -> None:
    monkeypatch.setattr(web_body, "_bodies", BodiesInMemory(of_anyone=150_000))
    app = create_app("demo")
    body = b'{"a":"' + b"x" * 90_000 + b'"}'
    begun, go_on = asyncio.Event(), asyncio.Event()

    @app.post("/object")
    async def take(request: Request) -> dict[str, int]:
        await request.json()
        begun.set()
        await go_on.wait()
        return {}

    @app.post("/part")
    async def take_part(request: Request) -> dict[str, int]:
        await read_body(request, 1_000_000)
        begun.set()
        await go_on.wait()
        return {}

    async with serving(app) as http:

        async def post() -> httpx.Response:
            async def pieces() -> AsyncIterator[bytes]:
                yield body

            headers = {"content-type": "application/json"}
            return await http.post(path, content=body if announced else pieces(), headers=headers)

        first = asyncio.create_task(post())
        await asyncio.wait_for(begun.wait(), 20)
        refused = await post()
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert "send fewer at once, try again in 1 s" in refused.json()["error"]
        assert (await http.get("/health")).status_code == 200
        go_on.set()
        assert (await first).status_code == 200
        assert (await post()).status_code == 200
