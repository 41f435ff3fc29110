"""The model registry's HTTP API, and its process."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request, Response
from pydantic import Field

from propeller.errors import InvalidError, RefusedError, StartError, TooLargeError, UnsupportedTypeError
from propeller.fl.tensors import (
    JSON,
    SAFETENSORS,
    Codec,
    TensorError,
    Tensors,
    decode,
    from_json,
    media_type,
)
from propeller.model_registry.encodings import EncodedModel
from propeller.model_registry.service import ModelRegistry
from propeller.model_registry.settings import MAX_BYTES, ModelRegistrySettings
from propeller.process.audit import note
from propeller.process.decoding import decode_in_thread
from propeller.process.logs import get_logger
from propeller.protocol.models import LINEAGE_FIELD, MODEL_DIGEST_HEADER, lineage_text
from propeller.protocol.roles import CONTROL, WATCH, Role
from propeller.protocol.rounds import model_uri
from propeller.protocol.wire import Message, decode_tensors
from propeller.web.access import AccessTable
from propeller.web.app import Router, create_app, etag_matches
from propeller.web.auth import Admission, Principal, admission
from propeller.web.body import read_body
from propeller.web.ranges import asked_ranges, respond
from propeller.web.server import bind_api, serve

log = get_logger("model-registry")

DEFAULT_PAGE = 100
"""How many versions are on a page of ``GET /models?details=1``."""

_MAX_KEY_CHARACTERS = 256

ACCESS: AccessTable = {
    "GET /models": WATCH | {Role.COORDINATOR, Role.MANAGER},
    "POST /models": CONTROL | {Role.COORDINATOR},
    "GET /models/{version}": WATCH | {Role.COORDINATOR, Role.MANAGER, Role.PROPLET},
    "GET /models/{version}/info": WATCH | {Role.COORDINATOR, Role.MANAGER},
    "GET /models/{first}/diff/{second}": WATCH | {Role.COORDINATOR},
    "GET /models/{version}/state": WATCH | {Role.COORDINATOR, Role.PROPLET},
    "PUT /models/{version}/state": CONTROL | {Role.COORDINATOR},
    "GET /aliases": WATCH | {Role.COORDINATOR, Role.MANAGER},
    "GET /aliases/{name}": WATCH | {Role.COORDINATOR, Role.MANAGER},
    "PUT /aliases/{name}": CONTROL | {Role.COORDINATOR},
    "DELETE /aliases/{name}": CONTROL,
}
"""A device reads the model that its task names, by its digest (``_check_reader``), and never stores one: others train on it."""


class NewModel(Message):
    """``POST /models`` in JSON. Without a version the next one is allocated."""

    version: Annotated[int, Field(strict=True)] | None = None
    model: dict[str, Any]
    lineage: dict[str, Any] | None = None


class AliasedVersion(Message):
    """``PUT /aliases/{name}``."""

    version: Annotated[int, Field(strict=True, ge=0)]


def create_api(
    registry: ModelRegistry,
    *,
    admission: Admission | None = None,
    max_body: int = MAX_BYTES,
    named_models_only: bool = True,
) -> FastAPI:
    """The app.

    Args:
        registry: what it answers for.
        admission: finds out who calls.
        max_body: the largest body, in bytes.
        named_models_only: whether a device reads only what its task names.
    """
    app = create_app(
        "model-registry",
        admission=admission,
        access=ACCESS,
        max_body=max_body,
        max_body_setting="REGISTRY_MAX_BYTES",
    )
    app.include_router(_model_routes(registry))
    app.include_router(_document_routes(registry, named_models_only=named_models_only))
    app.include_router(_alias_routes(registry))
    return app


def _model_routes(registry: ModelRegistry) -> Router:
    """What is known of versions, and new ones."""
    router, encodings = Router(), registry.encodings

    @router.get("/models")
    async def list_versions(
        details: bool = False,
        experiment: str | None = None,
        strategy: str | None = None,
        alias: str | None = None,
        limit: Annotated[int | None, Query(ge=1, le=1000)] = None,
        offset: Annotated[int | None, Query(ge=0)] = None,
    ) -> dict[str, Any]:
        """The numbers of all versions; with any of the parameters, a page of what is known of those that fit."""
        if not details and {experiment, strategy, alias, limit, offset} == {None}:
            return {"versions": await registry.versions()}
        return await registry.page(
            experiment=experiment,
            strategy=strategy,
            alias=alias,
            limit=limit or DEFAULT_PAGE,
            offset=offset or 0,
        )

    @router.post("/models", status_code=201)
    async def add(
        request: Request,
        version: int | None = None,
        idempotency_key: Annotated[str, Header()] = "",
    ) -> dict[str, Any]:
        """Store a model: JSON ``{"version"?, "model", "lineage"?}``, or safetensors with ``?version=``."""
        _check_key(idempotency_key)
        content_type = request.headers.get("content-type")
        try:
            if media_type(content_type) == SAFETENSORS:
                stored = await registry.add_document(request.stream(), version, idempotency_key)
            else:
                body = await read_decoded(request)
                tensors, metadata, in_body = await decode_in_thread(
                    lambda text: _decode_model(content_type, text, encodings.codecs), body
                )
                chosen = version if in_body is None else in_body
                stored = await registry.add(tensors, metadata, chosen, idempotency_key)
        except TensorError as error:
            raise InvalidError(f"model: {error}") from None
        note(version=stored.version)
        return {
            "version": stored.version,
            "status": "stored",
            "uri": model_uri(stored.version),
            "digest": stored.digest,
        }

    @router.get("/models/{version:path}/info")
    async def get_info(version: str) -> dict[str, Any]:
        return await registry.info(await registry.find(version))

    @router.get("/models/{first:path}/diff/{second:path}")
    async def get_diff(first: str, second: str) -> dict[str, Any]:
        """How the second version differs from the first."""
        return await registry.diff(await registry.find(first), await registry.find(second))

    @router.put("/models/{version:path}/state")
    async def put_state(request: Request, version: str) -> dict[str, Any]:
        """Keep the server state that belongs to a version: safetensors, its values in ``__metadata__.values``."""
        content_type, number = request.headers.get("content-type"), await registry.find(version)
        if media_type(content_type) != SAFETENSORS:
            raise UnsupportedTypeError(
                f"Content-Type {str(content_type)[:80]!r} cannot be read; send {SAFETENSORS}"
            )
        try:
            await registry.add_state(number, request.stream())
        except TensorError as error:
            raise InvalidError(f"state: {error}") from None
        return {"version": number, "status": "stored"}

    async def read_decoded(request: Request) -> bytes:
        """A body that is decoded in memory."""
        try:
            return await read_body(request, encodings.max_decoded)
        except TooLargeError:
            raise TooLargeError(
                f"the model is over REGISTRY_MAX_DECODED_BYTES ({encodings.max_decoded}) in this encoding: send it as {SAFETENSORS}"
            ) from None

    return router


def _document_routes(registry: ModelRegistry, *, named_models_only: bool) -> Router:
    """What is sent of a version; ``/models/{version}`` fits whatever no other route does."""
    router, encodings = Router(), registry.encodings

    @router.get("/models/{version:path}/state")
    async def get_state(request: Request, version: str) -> Response:
        number = await registry.find(version)
        state = await encodings.state(number)
        return await answer(request, state, number, encodings.check_state)

    @router.get("/models/{version:path}")
    async def get(request: Request, version: str) -> Response:
        return await answer_model(request, await registry.find(version))

    async def answer_model(request: Request, version: int) -> Response:
        media_type = encodings.choose(version, request.headers.get("accept"))
        encoded = await encodings.model(version, media_type)
        return await answer(request, encoded, version, encodings.check_model)

    async def answer(
        request: Request,
        encoded: EncodedModel,
        version: int,
        check: Callable[[int], Awaitable[None]],
    ) -> Response:
        if named_models_only:
            _check_reader(request, encoded, version)
        headers = {
            "ETag": encoded.etag,
            "Vary": "Accept",
            "Cache-Control": "no-cache",
            "X-Model-Version": str(version),
        }
        if etag_matches(request.headers.get("if-none-match", ""), encoded.etag):
            return Response(status_code=304, headers=headers)
        ranges = asked_ranges(request.headers, encoded.body.length, encoded.etag)
        if encoded.body.open_rest is not None and (
            ranges is None or any(part.stop > len(encoded.body.head) for part in ranges)
        ):
            await check(version)
        return respond(encoded.body, ranges, headers, encoded.media_type)

    return router


def _alias_routes(registry: ModelRegistry) -> Router:
    router = Router()

    @router.get("/aliases")
    async def list_aliases() -> dict[str, dict[str, int]]:
        return {"aliases": await registry.aliases()}

    @router.get("/aliases/{name:path}")
    async def get_alias(name: str) -> dict[str, Any]:
        return {"name": name, "version": await registry.alias(name)}

    @router.put("/aliases/{name:path}")
    async def put_alias(name: str, given: AliasedVersion) -> dict[str, Any]:
        """Have an alias stand for a version from now on."""
        await registry.put_alias(name, given.version)
        return {"name": name, "version": given.version}

    @router.delete("/aliases/{name:path}", status_code=204)
    async def delete_alias(name: str) -> None:
        await registry.delete_alias(name)

    return router


def _check_reader(request: Request, encoded: EncodedModel, version: int) -> None:
    """Refuse a device that was not told of the version: its task names version and digest, and nobody guesses a digest.

    Raises:
        RefusedError: it sends no digest, or another one.
    """
    who: Principal = request.state.principal
    if who.kind != "client" or who.role != Role.PROPLET:
        return
    told = request.headers.get(MODEL_DIGEST_HEADER, "")
    if not secrets.compare_digest(told.encode(), encoded.digest.encode()):
        raise RefusedError(
            f"{who} may read the model that its task names: send the task's MODEL_DIGEST as {MODEL_DIGEST_HEADER}; that of version "
            f"{version} is another. For a task of your own, propeller model info {version} shows it"
        )


def _check_key(key: str) -> None:
    if len(key) > _MAX_KEY_CHARACTERS or not key.isprintable():
        raise InvalidError(f"Idempotency-Key: use up to {_MAX_KEY_CHARACTERS} printable characters")


def _decode_model(
    content_type: str | None, body: bytes, codecs: Mapping[str, Codec]
) -> tuple[Tensors, dict[str, str], int | None]:
    if media_type(content_type) == JSON:
        new = NewModel.decode(decode_tensors(body, "model"))
        metadata = {} if new.lineage is None else {LINEAGE_FIELD: lineage_text(new.lineage)}
        return from_json(new.model), metadata, new.version
    try:
        tensors, metadata = decode(content_type, body, codecs)
    except TooLargeError as error:
        raise TooLargeError(f"model: {error} (REGISTRY_MAX_DECODED_BYTES)") from None
    return tensors, metadata, None


async def main(settings: ModelRegistrySettings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        StartError: the port or the folder cannot be had, or the initial model is not one.
    """
    bind = bind_api("model-registry", settings, settings.host, settings.port, "REGISTRY_PORT")
    try:
        registry = ModelRegistry.open(
            settings.folder, cache_bytes=settings.cache_bytes, max_decoded=settings.max_decoded_bytes
        )
        await registry.seed(settings.read_initial_model())
    except OSError as error:
        raise StartError(f"MODELS_DIR {settings.folder} cannot be used: {error.strerror}") from None
    except TensorError as error:
        raise StartError(f"REGISTRY_INITIAL_MODEL: {error}") from None
    if settings.device_models == "any":
        log.warning("devices may read any model (REGISTRY_DEVICE_MODELS=any)")
    app = create_api(
        registry,
        admission=admission("model-registry", settings),
        max_body=settings.max_bytes,
        named_models_only=settings.device_models == "named",
    )
    await serve([(bind, app)], stop)
