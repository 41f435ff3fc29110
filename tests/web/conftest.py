"""An app as services make them, over ASGI and over a real port."""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from propeller.errors import ConflictError, NotFoundError, UnavailableError
from propeller.process.http import ServiceError
from propeller.protocol.ids import Id, check_id
from propeller.protocol.rounds import Experiment
from propeller.protocol.wire import decode_object
from propeller.store.blobs import BlobStoreError
from propeller.web.app import Router, create_app
from propeller.web.server import Bind, serve
from support.net import eventually, free_port

LIMIT = 100_000

Serving = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.fixture
def app() -> FastAPI:  # noqa: C901 - one small route after another
    made = create_app("demo", max_body=LIMIT)
    router = Router(prefix="/included")

    async def take(experiment: Experiment) -> dict[str, str]:
        return {"round_id": experiment.round_id}

    made.post("/direct")(take)
    router.post("/routed")(take)
    made.include_router(router)

    @made.post("/raw")
    async def raw(request: Request) -> dict[str, int]:
        return {"fields": len(decode_object(await request.body()))}

    @made.post("/stream")
    async def stream(request: Request) -> dict[str, int]:
        return {"bytes": sum([len(part) async for part in request.stream()])}

    @made.get("/things/{thing}")
    async def thing(thing: Id, n: int = 0) -> dict[str, str | int]:
        return {"thing": thing, "n": n}

    @made.get("/fails/{how}")
    async def fails(how: str) -> dict[str, float]:
        if how == "bad-answer":
            return {"a": float("nan")}
        raise {
            "conflict": ConflictError("it is there already"),
            "missing": NotFoundError("no model 7; GET /models lists them"),
            "id": ValueError(),
            "peer-404": ServiceError("registry", 404, "no such model"),
            "peer-401": ServiceError("registry", 401, "who are you"),
            "peer-500": ServiceError("registry", 500, "oops"),
            "peer-gone": ServiceError("registry", None, "refused"),
            "full": OSError(errno.ENOSPC, "No space left on device"),
            "full-store": _caused(BlobStoreError("cannot write"), OSError(errno.ENOSPC, "No space left")),
            "broken-store": _caused(BlobStoreError("cannot write"), OSError(errno.EIO, "I/O error")),
            "busy": UnavailableError("no proplet is alive"),
            "unforeseen": RuntimeError("the password is hunter2"),
        }[how]

    @made.get("/bad-id")
    async def bad_id() -> None:
        check_id("../x")

    made.state.hanging = asyncio.Event()

    @made.get("/hang")
    async def hang() -> None:
        made.state.hanging.set()
        await asyncio.Event().wait()

    @made.get("/half")
    async def half() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError("no more")

        return StreamingResponse(parts())

    return made


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, without a server between."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo") as client:
        yield client


@pytest.fixture
def serving() -> Serving:
    """Serves an app on a port for the length of a block; gives a client of it."""

    @asynccontextmanager
    async def serve_it(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
        port, stop = free_port(), asyncio.Event()
        served = asyncio.create_task(serve([(Bind("demo", "127.0.0.1", port), app)], stop))
        # Others may have the processors for a while.
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60
        ) as client:

            async def answers() -> bool:
                if served.done():
                    await served
                try:
                    return (await client.get("/health")).is_success
                except httpx.TransportError:
                    return False

            await eventually(answers)
            try:
                yield client
            finally:
                stop.set()
                await served

    return serve_it
