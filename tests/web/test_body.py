"""Bodies over the limit: 413 by their length or while they stream, over a real connection."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from propeller.protocol.wire import MAX_VALUES, MalformedMessageError, decode_object
from propeller.web.app import create_app

LIMIT = 100_000  # conftest.py

Serving = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]

PATHS = ["/direct", "/included/routed", "/raw", "/stream"]


async def parts(count: int, size: int = 10_000) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


async def test_up_to_the_limit_everything_is_read(app: FastAPI, serving: Serving) -> None:
    async with serving(app) as http:
        for content in (b"x" * LIMIT, parts(10)):
            assert (await http.post("/stream", content=content)).json() == {"bytes": LIMIT}


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_over_the_limit_is_refused_and_the_connection_goes_on(
    app: FastAPI, serving: Serving, path: str
) -> None:
    async with serving(app) as http:
        for content in (b"x" * (LIMIT + 1), b"x" * 20_000_000, parts(11), parts(2000)):
            answer = await http.post(path, content=content, headers={"content-type": "application/json"})
            assert (answer.status_code, list(answer.json())) == (413, ["error"])
            assert answer.json()["error"] == "the request body is over the limit of 100000 bytes"
            assert (await http.get("/things/a")).status_code == 200


async def test_who_asks_before_sending_is_refused_before_sending(app: FastAPI, serving: Serving) -> None:
    async with serving(app) as http:
        reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port)
        writer.write(
            b"POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\nExpect: 100-continue\r\n\r\n"
        )
        answer = await asyncio.wait_for(reader.read(), 5)  # to the end: the connection is closed
        assert answer.startswith(b"HTTP/1.1 413 ")
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("value", ["[]", "{}", "0"])
async def test_a_body_with_too_many_values_is_refused_without_reading_them(
    serving: Serving, value: str
) -> None:
    app = create_app("demo")
    read: list[Any] = []

    @app.post("/object")
    async def take(request: Request) -> dict[str, int]:
        read.append(await request.json())
        return {}

    async with serving(app) as http:
        for count, status in ((MAX_VALUES // 2, 200), (4 * MAX_VALUES, 413)):
            text = '{"a":[' + ",".join([value] * count) + "]}"
            answer = await http.post("/object", content=text, headers={"content-type": "application/json"})
            assert answer.status_code == status
    assert "more than 100000 values" in answer.json()["error"]
    assert len(read) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":' + "[" * 300 + "]" * 300 + "}", "recursion limit"),
        ('{"a":' + "[" * 300_000 + "]" * 300_000 + "}", "more than 100000 values"),
        ('{"a":[' + ",".join(["1" * 4000] * 300) + "]}", "a number of more than 200 digits"),
        ("{" + ",".join(f'"k{one}":0' for one in range(200_000)) + "}", "more than 100000 values"),
    ],
)
def test_what_is_slow_to_read_is_refused(text: str, reason: str) -> None:
    with pytest.raises(MalformedMessageError, match=reason):
        decode_object(text)


def test_texts_in_quotes_count_as_one() -> None:
    inner = json.dumps({"a": [[]] * 300_000, "b": '"' * 1000})
    assert decode_object(json.dumps({"results": inner})) == {"results": inner}
