"""The FastAPI app of a service, with what they all share already in it."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.params import Form
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from propeller import __version__
from propeller.errors import PropellerError, RefusedError, UnsupportedTypeError
from propeller.process.decoding import decode
from propeller.protocol.roles import CONTROL
from propeller.protocol.wire import MalformedMessageError, decode_object
from propeller.web import errors
from propeller.web.access import COMMON, AccessTable, check_access
from propeller.web.api_page import add_api_page
from propeller.web.audit import MAX_ENTRIES, Audited, AuditMiddleware, all_paths, entries_after
from propeller.web.auth import ANYONE, OPEN_PATHS, Admission, Caller, Principal
from propeller.web.body import BodyLimit, BodyLimitMiddleware, HoldingRequest
from propeller.web.limits import MAX_BODY
from propeller.web.logs import After, Level, Lines, newest_lines
from propeller.web.metrics import CONTENT_TYPE, HttpMetrics, MetricsMiddleware


class _StrictRequest(HoldingRequest):
    """A request whose JSON must be an object without NaN."""

    async def json(self) -> Any:
        try:
            return await decode(decode_object, await self.body())
        except MalformedMessageError as error:
            raise errors.BodyError(error) from None


class _StrictRoute(APIRoute):
    """A route that looks at who calls, and then reads JSON bodies strictly."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Wrap the handler so that callers are checked before it, and it sees the strict request."""
        handle = super().get_route_handler()
        methods, path = tuple(sorted(self.methods or ())), self.path_format
        takes_json = self.body_field is not None and not isinstance(self.body_field.field_info, Form)

        async def strict(request: Request) -> Response:
            table: AccessTable | None = request.app.state.access
            if table is not None:
                check_access(table, methods, path, request.state.principal)
            if takes_json:
                check_is_json(request.headers.get("content-type"))
            made = _StrictRequest(request.scope, request.receive)
            try:
                answer: Response = await handle(made)
            finally:
                made.release()
            return answer

        return strict


def check_is_json(content_type: str | None) -> None:
    """See that a body is announced as JSON.

    A page of another site can have a browser send anything else without asking first: ``curl -d`` and forms must not do what a
    person wants only from their own programs.

    Raises:
        UnsupportedTypeError: it is announced as something else, or not at all.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        told = f"Content-Type is {kind[:80]!r}" if kind else "there is no Content-Type"
        raise UnsupportedTypeError(
            f"{told}: send application/json (curl -H 'Content-Type: application/json')"
        )


class Router(APIRouter):
    """Routes to be included in an app: FastAPI's ``APIRouter``, reading JSON as strictly as the app itself."""

    def __init__(self, **options: Any) -> None:
        """``options`` are FastAPI's own (``prefix``, ``tags`` …)."""
        super().__init__(route_class=_StrictRoute, **{"default_response_class": CompactJson} | options)

    def include_router(self, router: APIRouter, **options: Any) -> None:
        """Take over a router's routes; as ``_App.include_router``."""
        _check_strict(router)
        if options or self.prefix or self.dependencies:
            super().include_router(router, **options)
        else:
            self.routes.extend(router.routes)


class _App(FastAPI):
    """An app that refuses routes which would read JSON their own way."""

    def include_router(self, router: APIRouter, **options: Any) -> None:
        """Take over a router's routes.

        Without options nothing about them changes, and they become the app's own: FastAPI looks twice for the route of a
        request, in each router that was included, which took half of its time.
        """
        _check_strict(router)
        if options:
            super().include_router(router, **options)
        else:
            self.router.routes.extend(router.routes)

    def openapi(self) -> dict[str, Any]:
        """FastAPI's description, with the errors that every service answers with in place of FastAPI's own."""
        if self.openapi_schema is None:
            described = super().openapi()
            for operations in described["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    for answer in operation["responses"].values():
                        for content in answer.get("content", {}).values():
                            if content.get("schema") == {"type": "string"}:
                                content[
                                    "schema"
                                ] = {}  # the handler makes the answer, of which FastAPI knows nothing
                    operation["responses"] |= {"4XX": _REFUSED, "503": _UNAVAILABLE}
            schemas = described.setdefault("components", {}).setdefault("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            schemas["Error"] = _ERROR
        return self.openapi_schema or {}


_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string", "description": "What is wrong, and what to do about it."}},
    "required": ["error"],
}
_ERROR_BODY = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
_REFUSED = {"description": "The request is wrong, or not the caller's to send.", "content": _ERROR_BODY}
_UNAVAILABLE = {"description": "It may succeed later: something is away or busy.", "content": _ERROR_BODY}


def _check_strict(router: APIRouter) -> None:
    if not issubclass(router.route_class, _StrictRoute):
        raise TypeError("include a propeller.web.app.Router: FastAPI's own APIRouter lets NaN in")


class CompactJson(Response):
    """JSON as absmach/propeller's services write it: compact, one trailing newline, no NaN."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode ``content``."""
        return (
            json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        )


class AuthenticationMiddleware:
    """ASGI middleware: puts the caller into ``request.state.principal``, or answers 401."""

    def __init__(
        self, app: ASGIApp, admission: Admission | None, open_paths: frozenset[str] = OPEN_PATHS
    ) -> None:
        self.app, self.admission, self.open_paths = app, admission, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on once it is known who calls."""
        if scope["type"] == "http":
            principal: Principal = ANYONE
            if self.admission is not None and scope["path"] not in self.open_paths:
                try:
                    principal = await self.admission(scope)
                except PropellerError as error:
                    await errors.response_of(error)(scope, receive, send)
                    return
            scope.setdefault("state", {})["principal"] = principal
        await self.app(scope, receive, send)


def _lifespan(admission: Admission | None, inner: Any) -> Any:
    """The app's own lifespan, and the end of the connections to identity."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with contextlib.AsyncExitStack() as stack:
            if admission is not None:
                stack.push_async_callback(admission.aclose)
            yield await stack.enter_async_context(inner(app)) if inner else None

    return lifespan


_OPTIONS: dict[str, Any] = {"telemetry": {"tracing": False, "metrics": False, "logs": False}}
"""FastAPI's own telemetry is off, for which newer versions look for a provider in each request: ``/metrics`` and the log tell what happens."""


def create_app(
    service: str,
    *,
    admission: Admission | None = None,
    access: AccessTable | None = None,
    open_paths: frozenset[str] = frozenset(),
    max_body: int = MAX_BODY,
    max_body_setting: str = "",
    larger_bodies: Mapping[str, BodyLimit] | None = None,
    health: Callable[[], dict[str, Any]] = lambda: {"status": "ok"},
    metrics: HttpMetrics | None = None,
    audited: Audited = all_paths,
    **options: Any,
) -> FastAPI:
    """An app with ``/health``, ``/metrics``, errors in one form, a body limit and authentication.

    Args:
        service: its name, in the metrics and the API's title.
        admission: finds out who calls; ``None`` lets anyone in: for loopback only.
        access: who may use which route, beside those that every service has; ``None`` where the handlers see to it.
        open_paths: answered to anyone, beside ``/health``.
        max_body: the largest request body, in bytes.
        max_body_setting: the setting that says so, for the error.
        larger_bodies: limits of paths that take longer ones, which they do not read into memory.
        health: the body of ``/health``.
        metrics: the service's collectors, made here if not given.
        audited: which requests of people are written down, if there is an audit log.
        options: FastAPI's own (``lifespan`` …).
    """
    measured = metrics or HttpMetrics(service)
    app = _App(
        title=f"Propeller {service}",
        version=__version__,
        default_response_class=CompactJson,
        lifespan=_lifespan(admission, options.pop("lifespan", None)),
        docs_url=None,
        redoc_url=None,
        **_OPTIONS | options,
    )
    app.router.route_class = _StrictRoute
    app.state.access = None if access is None else {**COMMON, **access}
    errors.add_handlers(app)
    app.add_middleware(AuthenticationMiddleware, admission=admission, open_paths=OPEN_PATHS | open_paths)
    app.add_middleware(
        BodyLimitMiddleware, max_bytes=max_body, setting=max_body_setting, larger=larger_bodies
    )
    app.add_middleware(errors.ErrorMiddleware)
    audit = None if admission is None else admission.audit
    if audit is not None:
        app.add_middleware(AuditMiddleware, log=audit, audited=audited)
    app.add_middleware(MetricsMiddleware, metrics=measured)

    add_api_page(app)

    @app.get("/health", include_in_schema=False)
    async def _health() -> CompactJson:
        return CompactJson(health())

    @app.get("/metrics", include_in_schema=False)
    async def _metrics() -> Response:
        return Response(measured.text(), headers={"content-type": CONTENT_TYPE})

    @app.get("/audit", include_in_schema=False)
    async def _audit(
        who: Caller,
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_ENTRIES)] = 1000,
    ) -> Response:
        if access is None:
            _check_reader(who, "audit log")
        return await entries_after(audit, after, limit)

    @app.get("/logs", include_in_schema=False)
    async def _logs(
        who: Caller, lines: Lines = 200, level: Level = "debug", after: After = None
    ) -> dict[str, Any]:
        if access is None:
            _check_reader(who, "log")
        return newest_lines(service, lines, level, after)

    return app


def _check_reader(who: Principal, what: str) -> None:
    """See that a caller may read a log of a service that is no domain's, as identity: who is an operator of one may not.

    Raises:
        RefusedError: the caller may not.
    """
    if who.role not in CONTROL or who.kind == "client":
        raise RefusedError(
            f"{who} may not read this {what}, which is about all domains: it is for admins of the service"
        )


def etag_matches(header: str, etag: str) -> bool:
    """Whether an ``If-None-Match`` header names a tag (RFC 9110, section 13.1.2).

    Args:
        header: ``*``, or a list of tags, which are compared weakly; empty if there is none.
        etag: the strong tag of what would be sent, in its quotes.
    """
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags
