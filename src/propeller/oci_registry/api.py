"""The embedded registry's HTTP API, and its process: the OCI distribution specification 1.1 over an image-layout folder.

It is for machines that have no registry, and keeps what ``propeller push``, oras and docker push. All repositories
share their blobs, and whoever may use the registry may use all of it.
"""

import asyncio
import secrets
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from propeller.errors import PropellerError, StartError, UnauthenticatedError
from propeller.oci.credentials import Login
from propeller.oci.layout import Layout
from propeller.oci_registry import blob_routes, manifest_routes
from propeller.oci_registry.errors import DistributionError
from propeller.oci_registry.settings import MAX_BLOB_BYTES, OciRegistrySettings
from propeller.process.logs import get_logger
from propeller.web.auth import Verify, verifier
from propeller.web.errors import status_of
from propeller.web.metrics import CONTENT_TYPE, HttpMetrics, MetricsMiddleware
from propeller.web.server import bind_api, serve

log = get_logger("oci-registry")

_CODES = {401: "UNAUTHORIZED", 403: "DENIED", 404: "NAME_UNKNOWN", 405: "UNSUPPORTED"}


class _Authentication:
    """ASGI middleware: credentials on everything but ``/health``: the registry's own login, or what identity knows."""

    def __init__(self, app: ASGIApp, login: Login | None, verify: Verify | None) -> None:
        self._app, self._verify = app, verify
        self._expected = None if login is None else login.basic.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            try:
                await self._check(dict(scope["headers"]).get(b"authorization", b""), scope["method"])
            except DistributionError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _check(self, header: bytes, method: str) -> None:
        if self._expected is not None and secrets.compare_digest(header, self._expected):
            return
        reason = "a user name and password are needed"
        if self._verify is not None and header:
            try:
                who = await self._verify(header.decode("latin-1"))
            except PropellerError as error:
                if not isinstance(error, UnauthenticatedError):
                    raise DistributionError(status_of(error), "UNAVAILABLE", str(error)) from None
                reason = str(error)
            else:
                if who.kind == "client" and who.role != "manager" and method not in {"GET", "HEAD"}:
                    raise DistributionError(
                        403, "DENIED", f"client {who.id} is a {who.role}: it may pull, not push"
                    )
                return
        raise DistributionError(401, "UNAUTHORIZED", reason, {"WWW-Authenticate": 'Basic realm="propeller"'})


def create_api(
    layout: Layout,
    *,
    login: Login | None = None,
    verify: Verify | None = None,
    max_blob: int = MAX_BLOB_BYTES,
) -> Starlette:
    """The registry's app; without ``login`` and ``verify`` anyone may use it.

    Args:
        layout: where everything is kept.
        login: a user name and password that may do everything.
        verify: checks other credentials with identity: users and managers may push, every client may pull.
        max_blob: the largest blob, in bytes.
    """
    metrics = HttpMetrics("oci-registry")

    async def base(_request: Request) -> Response:
        return JSONResponse({}, headers={"Docker-Distribution-Api-Version": "registry/2.0"})

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def exposition(_request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    routes = [
        Route("/health", health),
        Route("/metrics", exposition),
        Route("/v2/", base),
        Route("/v2", base),
        *manifest_routes.create_routes(layout),
        *blob_routes.create_routes(layout, max_blob),
    ]
    middleware = [Middleware(MetricsMiddleware, metrics=metrics)]
    if login is not None or verify is not None:
        middleware.append(Middleware(_Authentication, login=login, verify=verify))
    handlers: dict[Any, Any] = {
        DistributionError: _refusal,
        HTTPException: _http_error,
        ClientDisconnect: _disconnected,
        Exception: _unforeseen_error,
    }
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


async def _refusal(_request: Request, error: DistributionError) -> Response:
    return error.response()


async def _http_error(request: Request, error: HTTPException) -> Response:
    code = _CODES.get(error.status_code, "UNKNOWN")
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return DistributionError(error.status_code, code, message, dict(error.headers or {})).response()


async def _disconnected(_request: Request, _error: ClientDisconnect) -> Response:
    """Nobody reads this answer; the bytes of an upload that have come are kept, so that it can go on."""
    return Response(status_code=400)


async def _unforeseen_error(request: Request, error: Exception) -> Response:
    log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
    return DistributionError(500, "UNKNOWN", "internal error: see the registry's log").response()


async def main(settings: OciRegistrySettings, stop: asyncio.Event) -> None:
    """Serve the registry until ``stop`` is set.

    Raises:
        StartError: the folder or the port cannot be used, or the registry would be open to a network.
    """
    bind = bind_api(
        "oci-registry",
        settings,
        settings.host,
        settings.port,
        "OCI_REGISTRY_PORT",
        has_login=settings.login is not None,
    )
    try:
        layout = await asyncio.to_thread(Layout, settings.folder)
    except OSError as error:
        raise StartError(
            f"oci-registry: cannot keep artifacts in {settings.folder}: {error.strerror}; set OCI_REGISTRY_FOLDER"
        ) from None
    app = create_api(layout, login=settings.login, verify=verifier(settings), max_blob=settings.max_blob)
    await serve([(bind, app)], stop)
