"""The aggregator's HTTP API, and its process."""

import asyncio

from fastapi import FastAPI, Request, Response

from propeller.aggregator.service import Aggregator
from propeller.aggregator.settings import AggregatorSettings
from propeller.errors import UnsupportedTypeError
from propeller.fl.tensors import JSON, SAFETENSORS_SEQ, encode, media_type, negotiate
from propeller.web.app import Router, create_app
from propeller.web.auth import Verify, verifier
from propeller.web.body import read_body
from propeller.web.server import bind_api, serve


def create_api(
    aggregator: Aggregator, *, verify: Verify | None = None, max_bytes: int, max_json_bytes: int
) -> FastAPI:
    """The app; ``verify`` checks who calls, the limits are on request bodies."""
    app = create_app("aggregator", verify=verify, max_body=max(max_bytes, max_json_bytes))
    app.include_router(_aggregation_routes(aggregator, max_json_bytes))
    return app


def _aggregation_routes(aggregator: Aggregator, max_json_bytes: int) -> Router:
    router = Router()

    @router.post("/aggregate")
    async def aggregate(request: Request, strategy: str = "fedavg") -> Response:
        """Aggregate updates: ``{"updates": [...]}`` in JSON, or a stream of safetensors documents."""
        accept = request.headers.get("accept")
        negotiate(accept)  # before the work, not after it
        kind = media_type(request.headers.get("content-type"))
        if kind == SAFETENSORS_SEQ:
            model = await aggregator.aggregate_stream(request.stream(), strategy)
        elif kind == JSON:
            model = await aggregator.aggregate(await read_body(request, max_json_bytes), strategy)
        else:
            raise UnsupportedTypeError(
                f"Content-Type {kind[:80]!r} cannot be read; send {JSON} or {SAFETENSORS_SEQ}"
            )
        answer_type, content = await asyncio.to_thread(encode, model, accept)
        return Response(content, media_type=answer_type)

    return router


async def main(settings: AggregatorSettings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        StartError: the port cannot be had.
    """
    bind = bind_api("aggregator", settings, settings.host, settings.port, "AGGREGATOR_PORT")
    app = create_api(
        Aggregator(max_update_bytes=settings.max_update_bytes),
        verify=verifier(settings),
        max_bytes=settings.max_bytes,
        max_json_bytes=settings.max_json_bytes,
    )
    await serve([(bind, app)], stop)
