"""The model registry's HTTP API."""

import asyncio
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request, Response
from pydantic import Field

from propeller.errors import InvalidError, RefusedError
from propeller.fl.tensors import (
    JSON,
    TensorError,
    Tensors,
    decode,
    from_json,
    media_type,
    negotiate,
)
from propeller.model_registry.service import Models
from propeller.protocol.rounds import model_uri
from propeller.protocol.wire import Message
from propeller.web.app import MAX_BODY, create_app
from propeller.web.auth import Principal, Verify, caller
from propeller.web.etag import matches

Caller = Annotated[Principal, Depends(caller)]

_LONGEST_KEY = 256

_READERS = frozenset({"proplet", "proxy", "device"})
"""Roles of clients that read models and never store one: a device must not replace what the others train on."""


class NewModel(Message):
    """``POST /models`` in JSON. Without a version the next one is allocated."""

    version: Annotated[int, Field(strict=True)] | None = None
    model: dict[str, Any]


def create_api(models: Models, *, verify: Verify | None = None, max_body: int = MAX_BODY) -> FastAPI:
    """The app; ``verify`` checks who calls, ``max_body`` is the largest body in bytes."""
    app = create_app("model-registry", verify=verify, max_body=max_body)

    @app.get("/models")
    async def list_versions() -> dict[str, list[int]]:
        return {"versions": await models.versions()}

    @app.post("/models", status_code=201)
    async def add(
        request: Request,
        who: Caller,
        version: int | None = None,
        idempotency_key: Annotated[str, Header()] = "",
    ) -> dict[str, Any]:
        """Store a model: JSON ``{"version"?, "model"}``, or safetensors with ``?version=``."""
        _check_writer(who, idempotency_key)
        tensors, metadata, named = await asyncio.to_thread(
            _read, request.headers.get("content-type"), await request.body()
        )
        stored = await models.add(tensors, metadata, version if named is None else named, idempotency_key)
        return {"version": stored, "status": "stored", "uri": model_uri(stored)}

    @app.get("/models/latest")
    async def latest(request: Request) -> Response:
        return await _answer(request, await models.latest())

    @app.get("/models/{version}")
    async def one(request: Request, version: str) -> Response:
        if not (version.isascii() and version.isdigit() and len(version) <= 16):
            raise InvalidError(f"Invalid version: {version[:40]!r} is not a number from 0, nor 'latest'")
        return await _answer(request, int(version))

    async def _answer(request: Request, version: int) -> Response:
        chosen = negotiate(request.headers.get("accept"))
        encoded = await models.encoded(version, chosen)
        headers = {
            "ETag": encoded.etag,
            "Vary": "Accept",
            "Cache-Control": "no-cache",
            "X-Model-Version": str(version),
        }
        if matches(request.headers.get("if-none-match", ""), encoded.etag):
            return Response(status_code=304, headers=headers)
        return Response(encoded.content, media_type=chosen, headers=headers)

    return app


def _check_writer(who: Principal, key: str) -> None:
    if who.kind == "client" and who.role in _READERS:
        raise RefusedError(f"client {who.id} is a {who.role}: it may read models, not store them")
    if len(key) > _LONGEST_KEY or not key.isprintable():
        raise InvalidError(f"Idempotency-Key: use up to {_LONGEST_KEY} printable characters")


def _read(content_type: str | None, body: bytes) -> tuple[Tensors, dict[str, str], int | None]:
    try:
        if media_type(content_type) == JSON:
            new = NewModel.decode(body)
            return from_json(new.model), {}, new.version
        tensors, metadata = decode(content_type, body)
    except TensorError as error:
        raise InvalidError(f"model: {error}") from None
    return tensors, metadata, None
