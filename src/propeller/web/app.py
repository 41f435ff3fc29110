"""The FastAPI app of a service, with what they all share already in it."""

import json
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from propeller import __version__
from propeller.protocol.wire import MalformedMessageError, decode_object
from propeller.web import errors
from propeller.web.auth import ANYONE, OPEN_PATHS, Verify, unauthorized
from propeller.web.errors import ApiError, error_response
from propeller.web.limits import BodyLimit
from propeller.web.metrics import CONTENT_TYPE, HttpMetrics, Measured

MAX_BODY = 100 * 1024 * 1024
"""The default limit on a request body, in bytes."""


class _StrictRequest(Request):
    """A request whose JSON must be an object without NaN."""

    async def json(self) -> Any:
        try:
            return decode_object(await self.body())
        except MalformedMessageError as error:
            raise errors.BadRequestError(f"Invalid JSON: {str(error).removeprefix('not JSON: ')}") from None


class StrictRoute(APIRoute):
    """A route whose JSON bodies are read strictly."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Wrap the handler so that it sees the strict request."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            answer: Response = await handle(_StrictRequest(request.scope, request.receive))
            return answer

        return strict


class CompactJson(Response):
    """JSON as absmach/propeller's services write it: compact, one trailing newline, no NaN."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode ``content``."""
        return (
            json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        )


class Authenticated:
    """ASGI middleware: puts the caller into ``request.state.principal``, or answers 401."""

    def __init__(self, app: ASGIApp, verify: Verify | None) -> None:
        self.app, self.verify = app, verify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on once it is known who calls."""
        if scope["type"] == "http":
            state = scope.setdefault("state", {})
            state["principal"] = ANYONE
            if self.verify is not None and scope["path"] not in OPEN_PATHS:
                header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
                try:
                    if not header:
                        raise unauthorized(
                            "credentials required: a user's bearer token, or a client's id and key"
                        )
                    state["principal"] = await self.verify(header)
                except ApiError as error:
                    await error_response(error.status, error.reason, error.headers)(scope, receive, send)
                    return
        await self.app(scope, receive, send)


def create_app(
    service: str,
    *,
    verify: Verify | None = None,
    max_body: int = MAX_BODY,
    health: Callable[[], dict[str, Any]] = lambda: {"status": "ok"},
    metrics: HttpMetrics | None = None,
    **options: Any,
) -> FastAPI:
    """An app with ``/health``, ``/metrics``, errors in one form, a body limit and authentication.

    Args:
        service: its name, in the metrics and the API's title.
        verify: checks an ``Authorization`` header; ``None`` lets anyone in (DESIGN 4.5: loopback only).
        max_body: the largest request body, in bytes.
        health: the body of ``/health``.
        metrics: the service's collectors, made here if not given.
        options: FastAPI's own (``lifespan`` …).
    """
    measured = metrics or HttpMetrics(service)
    app = FastAPI(
        title=f"Propeller {service}",
        version=__version__,
        default_response_class=CompactJson,
        strict_content_type=False,
        **options,
    )
    app.router.route_class = StrictRoute
    errors.install(app)
    app.add_middleware(Authenticated, verify=verify)
    app.add_middleware(BodyLimit, max_bytes=max_body)
    app.add_middleware(Measured, metrics=measured)

    @app.get("/health", include_in_schema=False)
    async def _health() -> CompactJson:
        return CompactJson(health())

    @app.get("/metrics", include_in_schema=False)
    async def _metrics() -> Response:
        return Response(measured.text(), headers={"content-type": CONTENT_TYPE})

    return app
