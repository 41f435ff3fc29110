"""The aggregator's HTTP API, and its process."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from starlette.responses import StreamingResponse

from propeller.aggregator.aggregation import Answer
from propeller.aggregator.service import Aggregator
from propeller.aggregator.settings import AggregatorSettings
from propeller.aggregator.spill import SpillSpace
from propeller.errors import UnsupportedTypeError
from propeller.fl.tensors import JSON, SAFETENSORS_SEQ, encode, media_type, negotiate
from propeller.oci.signers import Signers
from propeller.program_host.settings import make_allowed, make_credential
from propeller.protocol.roles import CONTROL, Role
from propeller.protocol.wire import Message
from propeller.web.access import AccessTable
from propeller.web.app import Router, create_app
from propeller.web.auth import Admission, admission
from propeller.web.body import read_body
from propeller.web.server import bind_api, serve

if TYPE_CHECKING:
    from propeller.program_host.programs import ProgramHost

_STREAM_FROM_BYTES = 1024 * 1024
"""A longer answer is sent in pieces, as it may be on disk."""


class ProgramReference(Message):
    """The body of ``POST /programs``."""

    program: str


ACCESS: AccessTable = {
    "POST /aggregate": CONTROL | {Role.COORDINATOR},
    "POST /programs": CONTROL | {Role.COORDINATOR},
}


def create_api(
    aggregator: Aggregator, *, admission: Admission | None = None, max_bytes: int, max_json_bytes: int
) -> FastAPI:
    """The app; ``admission`` finds out who calls, the limits are on request bodies."""
    app = create_app(
        "aggregator",
        admission=admission,
        access=ACCESS,
        max_body=max(max_bytes, max_json_bytes),
        max_body_setting="AGGREGATOR_MAX_BYTES",
    )
    app.include_router(_aggregation_routes(aggregator, max_json_bytes))
    return app


def _aggregation_routes(aggregator: Aggregator, max_json_bytes: int) -> Router:
    router = Router()

    @router.post("/aggregate")
    async def aggregate(request: Request, strategy: str = "fedavg") -> Response:
        """Aggregate updates: ``{"updates": [...]}`` in JSON, or a plan and the documents that it announces."""
        kind = media_type(request.headers.get("content-type"))
        if kind == SAFETENSORS_SEQ:
            return _stream(await aggregator.aggregate(request.stream()))
        if kind != JSON:
            raise UnsupportedTypeError(
                f"Content-Type {kind[:80]!r} cannot be read; send {JSON} or {SAFETENSORS_SEQ}"
            )
        accept = request.headers.get("accept")
        negotiate(accept)  # before the work, not after it
        model = await aggregator.aggregate_json(
            await read_body(request, max_json_bytes, "AGGREGATOR_MAX_JSON_BYTES"), strategy
        )
        answer_type, content = await asyncio.to_thread(encode, model, accept)
        return Response(content, media_type=answer_type)

    @router.post("/programs")
    async def resolve_program(asked: ProgramReference) -> dict[str, Any]:
        """Find a program that aggregates: answers with the reference that names exactly it."""
        return {"program": await aggregator.resolve_program(asked.program)}

    return router


def _stream(answer: Answer) -> Response:
    def pieces() -> Iterator[bytes]:
        with contextlib.closing(answer):
            yield answer.result
            yield from answer.documents.pieces()

    if answer.size < _STREAM_FROM_BYTES:
        return Response(b"".join(pieces()), media_type=SAFETENSORS_SEQ)
    headers = {"content-length": str(answer.size)}
    return StreamingResponse(pieces(), media_type=SAFETENSORS_SEQ, headers=headers)


async def main(settings: AggregatorSettings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        StartError: the port cannot be had, or a file of signers cannot be used.
    """
    bind = bind_api("aggregator", settings, settings.host, settings.port, "AGGREGATOR_PORT")
    signers = Signers.read(settings.signers, "aggregator")
    aggregator = Aggregator(
        SpillSpace(settings.spill, settings.spill_bytes),
        max_update_bytes=settings.max_update_bytes,
        open_programs=lambda: _open_programs(settings, signers),
    )
    app = create_api(
        aggregator,
        admission=admission("aggregator", settings),
        max_bytes=settings.max_bytes,
        max_json_bytes=settings.max_json_bytes,
    )
    try:
        await serve([(bind, app)], stop)
    finally:
        await aggregator.close()


def _open_programs(settings: AggregatorSettings, signers: Signers) -> "ProgramHost":
    # Here, as an aggregator without such programs has no use for a sandbox and a registry's client.
    from propeller.oci.reference import DefaultRegistry
    from propeller.program_host.programs import HostSettings, ProgramHost
    from propeller.wasm.program_run import Limits

    credential = make_credential(
        settings.registry_username, settings.registry_password, settings.registry_token
    )
    limits = Limits(
        wall_time_s=settings.program_wall_time,
        memory_bytes=settings.program_memory,
        tensor_bytes=settings.program_tensor_bytes,
        out_bytes=settings.program_out_bytes,
    )
    registry = DefaultRegistry.parse(settings.registry_url)
    return ProgramHost(
        HostSettings(
            "aggregator",
            settings.cache,
            registry,
            credential,
            limits,
            settings.cache_bytes,
            settings.program_cache,
            make_allowed("aggregator", settings.registry_url, settings.allowed_registries),
            signers,
            settings.runtimes,
        )
    )
