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

from propeller.errors import NotFoundError, PropellerError, RefusedError, StartError, UnauthenticatedError
from propeller.oci.credentials import Login
from propeller.oci.errors import DamagedLayoutError
from propeller.oci.layout import Layout
from propeller.oci_registry import blob_routes, manifest_routes
from propeller.oci_registry.errors import DistributionError
from propeller.oci_registry.settings import MAX_BLOB_BYTES, OciRegistrySettings
from propeller.process.audit import AuditLog
from propeller.process.logs import get_logger
from propeller.protocol.roles import CONTROL, WATCH, Role
from propeller.web.audit import MAX_ENTRIES, AuditMiddleware, entries_after
from propeller.web.auth import Admission, Principal, admission, open_audit
from propeller.web.errors import status_of
from propeller.web.logs import newest_lines, parse_query
from propeller.web.metrics import CONTENT_TYPE, HttpMetrics, MetricsMiddleware
from propeller.web.server import bind_api, serve

log = get_logger("oci-registry")

PULL = WATCH | {Role.PROXY, Role.COORDINATOR}
"""Who may pull: services that run programs or pass them on."""

_FOR_OPERATORS = frozenset({"/audit", "/logs"})

PUSH = CONTROL
"""Who may push: what is pushed runs on every device."""

_CODES = {401: "UNAUTHORIZED", 403: "DENIED", 404: "NAME_UNKNOWN", 405: "UNSUPPORTED"}


class _Authentication:
    """ASGI middleware: credentials on everything but ``/health``: the registry's own login, or what identity knows."""

    def __init__(self, app: ASGIApp, login: Login | None, admission: Admission | None) -> None:
        self._app, self._admission = app, admission
        self._expected = None if login is None else login.basic.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            try:
                await self._check(scope)
            except DistributionError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _check(self, scope: Scope) -> None:
        header = dict(scope["headers"]).get(b"authorization", b"")
        state = scope.setdefault("state", {})
        if self._expected is not None and secrets.compare_digest(header, self._expected):
            state["principal"] = Principal("user", "login", Role.OPERATOR)
            return
        if self._admission is None:
            raise _unauthorized("a user name and password are needed")
        try:
            who = state["principal"] = await self._admission(scope)
        except UnauthenticatedError as error:
            raise _unauthorized(str(error)) from None
        except PropellerError as error:
            code = "DENIED" if isinstance(error, RefusedError) else "UNAVAILABLE"
            raise DistributionError(status_of(error), code, str(error)) from None
        is_pull = scope["method"] in {"GET", "HEAD"} and scope["path"] not in _FOR_OPERATORS
        allowed = PULL if is_pull else PUSH
        if who.role not in allowed:
            raise DistributionError(
                403,
                "DENIED",
                f"{who} is a {who.role}: this is for {', '.join(sorted(allowed))}",
            )


def _changes_an_artifact(_method: str, path: str) -> bool:
    """A manifest names what was pushed; the pieces of its blobs are not worth an entry each."""
    return "/manifests/" in path


def _unauthorized(reason: str) -> DistributionError:
    return DistributionError(401, "UNAUTHORIZED", reason, {"WWW-Authenticate": 'Basic realm="propeller"'})


def create_api(
    layout: Layout,
    *,
    login: Login | None = None,
    admission: Admission | None = None,
    audit: AuditLog | None = None,
    max_blob: int = MAX_BLOB_BYTES,
) -> Starlette:
    """The registry's app; without ``login`` and ``admission`` anyone may use it.

    Args:
        layout: where everything is kept.
        login: a user name and password that may do everything.
        admission: finds out who calls without that login: ``PULL`` and ``PUSH`` say who may do what.
        audit: where it is written down who pushed and deleted what.
        max_blob: the largest blob, in bytes.
    """
    metrics = HttpMetrics("oci-registry")

    async def base(_request: Request) -> Response:
        return JSONResponse({}, headers={"Docker-Distribution-Api-Version": "registry/2.0"})

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def exposition(_request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def entries(request: Request) -> Response:
        query = request.query_params
        try:
            after, limit = int(query.get("after", 0)), int(query.get("limit", 1000))
        except ValueError:
            after = limit = -1
        if after < 0 or not 1 <= limit <= MAX_ENTRIES:
            raise DistributionError(400, "UNSUPPORTED", f"after: 0 or more; limit: 1 to {MAX_ENTRIES}")
        try:
            return await entries_after(audit, after, limit)
        except NotFoundError as error:
            raise DistributionError(404, "UNSUPPORTED", str(error)) from None

    async def lines(request: Request) -> Response:
        try:
            return JSONResponse(newest_lines("oci-registry", *parse_query(request.query_params)))
        except PropellerError as error:
            raise DistributionError(status_of(error), "UNSUPPORTED", str(error)) from None

    routes = [
        Route("/health", health),
        Route("/metrics", exposition),
        Route("/audit", entries),
        Route("/logs", lines),
        Route("/v2/", base),
        Route("/v2", base),
        *manifest_routes.create_routes(layout),
        *blob_routes.create_routes(layout, max_blob),
    ]
    middleware = [Middleware(MetricsMiddleware, metrics=metrics)]
    if audit is not None:
        middleware.append(Middleware(AuditMiddleware, log=audit, audited=_changes_an_artifact))
    if login is not None or admission is not None:
        middleware.append(Middleware(_Authentication, login=login, admission=admission))
    handlers: dict[Any, Any] = {
        DistributionError: _refusal,
        HTTPException: _http_error,
        ClientDisconnect: _disconnected,
        DamagedLayoutError: _damaged,
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


async def _damaged(request: Request, error: DamagedLayoutError) -> Response:
    """It is read for each request: once it is mended, the next one is answered."""
    log.error(
        "the index cannot be read", method=request.method, path=request.url.path[:200], reason=str(error)
    )
    return DistributionError(
        503, "UNAVAILABLE", "the registry's index is damaged: its log names the file and the remedy"
    ).response()


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
    # A login of its own is asked for of everyone, unless identity knows them.
    only_login = settings.login is not None and (settings.auth == "off" or settings.identity_url is None)
    callers = None if only_login else admission("oci-registry", settings)
    audit = open_audit("oci-registry", settings) if callers is None else callers.audit
    app = create_api(layout, login=settings.login, admission=callers, audit=audit, max_blob=settings.max_blob)
    try:
        await serve([(bind, app)], stop)
    finally:
        if callers is not None:
            await callers.aclose()
