"""The aggregator's HTTP API."""

import asyncio

from fastapi import FastAPI, Request, Response

from propeller.aggregator.service import Aggregator
from propeller.errors import (
    UnsupportedTypeError,
)
from propeller.fl.tensors import (
    JSON,
    SAFETENSORS_SEQ,
    encode,
    media_type,
    negotiate,
)
from propeller.web.app import create_app
from propeller.web.auth import Verify
from propeller.web.body import read_body


def create_api(
    service: Aggregator, *, verify: Verify | None = None, max_bytes: int, max_json_bytes: int
) -> FastAPI:
    """The app; ``verify`` checks who calls, the limits are on request bodies."""
    app = create_app("aggregator", verify=verify, max_body=max(max_bytes, max_json_bytes))

    @app.post("/aggregate")
    async def aggregate(request: Request, strategy: str = "fedavg") -> Response:
        """Aggregate updates: ``{"updates": [...]}`` in JSON, or a stream of safetensors documents."""
        accept = request.headers.get("accept")
        kind = media_type(request.headers.get("content-type"))
        negotiate(accept)  # before the work, not after it
        if kind == SAFETENSORS_SEQ:
            model = await service.aggregate_stream(request.stream(), strategy)
        elif kind == JSON:
            body = await read_body(request, max_json_bytes)
            model = await service.aggregate(body, strategy)
        else:
            raise UnsupportedTypeError(
                f"Content-Type {kind[:80]!r} cannot be read; send {JSON} or {SAFETENSORS_SEQ}"
            )
        chosen, content = await asyncio.to_thread(encode, model, accept)
        return Response(content, media_type=chosen)

    return app
