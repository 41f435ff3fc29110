"""Connections whose requests come slowly, are too long in their headers, or are too many."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx
import pytest
from fastapi import FastAPI

from propeller.web import http_protocol, server

Serving = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

REQUEST = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
WAIT_S = 20.0


async def connect(http: httpx.AsyncClient) -> Streams:
    return await asyncio.open_connection(http.base_url.host, http.base_url.port)


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), WAIT_S)
    except ConnectionResetError:
        return b""


async def answer(streams: Streams, request: bytes = REQUEST) -> bytes:
    """The first line of an answer on a connection that goes on."""
    reader, writer = streams
    writer.write(request)
    line = await asyncio.wait_for(reader.readline(), WAIT_S)
    while (await reader.readline()).strip():
        pass
    await reader.readexactly(len(b'{"status":"ok"}\n'))
    return line


@pytest.mark.parametrize("first", [b"", REQUEST], ids=["first request", "second request"])
async def test_headers_that_do_not_end_are_cut_off(
    app: FastAPI, serving: Serving, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    monkeypatch.setattr(http_protocol, "HEADERS_S", 0.2)
    async with serving(app) as http:
        streams = reader, writer = await connect(http)
        if first:
            assert b"200" in await answer(streams, first)
        writer.write(b"GET /health HTTP/1.1\r\n")

        said = await until_closed(reader)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"the headers have not come within 0.2 s" in said
        writer.close()


async def test_headers_that_come_drop_by_drop_are_cut_off(
    app: FastAPI, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEADERS_S", 0.2)
    async with serving(app) as http:
        reader, writer = await connect(http)
        writer.write(b"GET /health HTTP/1.1\r\n")

        async def drip() -> None:
            while True:
                writer.write(b"X: x\r\n")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert b"200" not in await until_closed(reader)  # its last words are lost to who goes on sending
        dripping.cancel()
        writer.close()


async def test_headers_without_end_are_cut_off(app: FastAPI, serving: Serving) -> None:
    async with serving(app) as http:
        reader, writer = await connect(http)
        writer.write(b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 20_000)
        assert (await until_closed(reader)).startswith(b"HTTP/1.1 431 ")
        writer.close()


async def test_a_connection_on_which_nothing_comes_is_closed(
    app: FastAPI, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 1)
    async with serving(app) as http:
        reader, writer = await connect(http)
        assert await until_closed(reader) == b""
        writer.close()


async def test_a_body_that_stands_still_is_cut_off(
    app: FastAPI, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "BODY_PAUSE_S", 0.2)
    async with serving(app) as http:
        reader, writer = await connect(http)
        writer.write(b"POST /stream HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nsome")
        assert b"HTTP/1.1 2" not in await until_closed(reader)
        writer.close()


async def test_of_too_many_connections_the_one_that_is_idle_longest_makes_room(
    app: FastAPI, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "max_connections", lambda: 3)
    async with serving(app) as http:
        many = []
        for _ in range(3):
            streams = await connect(http)
            assert b"200" in await answer(streams)
            many.append(streams)
        assert b"200" in await answer(many[0])  # it is the second one now that is idle longest
        newest = await connect(http)
        assert b"200" in await answer(newest)
        assert await until_closed(many[1][0]) == b""
        for streams in (many[0], many[2], newest):
            assert b"200" in await answer(streams)
        for _reader, writer in (*many, newest):
            writer.close()


async def test_requests_one_behind_the_other_are_all_answered(app: FastAPI, serving: Serving) -> None:
    async with serving(app) as http:
        reader, writer = await connect(http)
        writer.write(REQUEST * 40 + REQUEST.replace(b"Host: x", b"Host: x\r\nConnection: close"))
        assert (await until_closed(reader)).count(b"HTTP/1.1 200") == 41
        writer.close()
