"""Errors of the HTTP APIs: a status and ``{"error": "what is wrong and what to do"}``."""

import asyncio
import errno
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from propeller.process.errors import BusyError
from propeller.process.http import ServiceError
from propeller.process.logs import get_logger
from propeller.protocol.ids import InvalidIdError
from propeller.protocol.wire import MalformedMessageError

log = get_logger("web")


class ApiError(HTTPException):
    """A request that is refused.

    It is an ``HTTPException`` since FastAPI lets no other exception pass while it reads a body.

    Attributes:
        status: the HTTP status.
        reason: the text for the caller: what is wrong, and what to do.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.reason = status, reason
        super().__init__(status, reason, headers)

    def __str__(self) -> str:
        """The reason."""
        return self.reason


class BadRequestError(ApiError):
    """400."""

    def __init__(self, reason: str) -> None:
        super().__init__(400, reason)


class NotFoundError(ApiError):
    """404."""

    def __init__(self, reason: str) -> None:
        super().__init__(404, reason)


class ConflictError(ApiError):
    """409."""

    def __init__(self, reason: str) -> None:
        super().__init__(409, reason)


def error_response(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer for every error."""
    return JSONResponse({"error": reason}, status, headers)


async def respond(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer from a middleware."""
    await error_response(error.status, error.reason, error.headers)(scope, receive, send)


def install(app: FastAPI) -> None:
    """Answer every exception of a handler in the one form (``Guarded`` answers those that no one foresaw)."""

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        headers, reason = error.headers or {}, error.detail
        if isinstance(error, ApiError):
            pass
        elif error.status_code == 404 and reason == "Not Found":
            reason = f"no such path: {request.url.path}"
        elif error.status_code == 405:
            reason = f"{request.method} is not for {request.url.path}: use {headers.get('Allow', 'another method')}"
        return error_response(error.status_code, reason, headers)

    @app.exception_handler(RequestValidationError)
    async def _validation(_request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(400, "; ".join(_describe(dict(item)) for item in error.errors()))

    @app.exception_handler(MalformedMessageError)
    @app.exception_handler(InvalidIdError)
    async def _malformed(_request: Request, error: ValueError) -> JSONResponse:
        return error_response(400, str(error))

    @app.exception_handler(BusyError)
    async def _busy(_request: Request, error: BusyError) -> JSONResponse:
        return error_response(503, f"try again: {error}")

    @app.exception_handler(ServiceError)
    async def _peer(_request: Request, error: ServiceError) -> JSONResponse:
        # A peer's verdict on what the caller sent is the caller's to correct; anything else is a bad gateway.
        if error.status is not None and 400 <= error.status < 500 and error.status not in {401, 403}:
            return error_response(error.status, error.reason)
        return error_response(502, str(error))


class Guarded:
    """ASGI middleware: an exception that no one foresaw is logged once, and answered 500 without its text.

    A request that is cut off by the end of the service is answered 503.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:  # there is no one to answer, and nothing failed here
            log.info("the caller went away", method=scope["method"], path=scope["path"])
        except Exception as error:
            if started or scope["type"] != "http":
                raise  # the server logs it and cuts the connection: the caller must not take the half for the whole
            log.exception("request failed", method=scope["method"], path=scope["path"])
            if _is_full(error):
                reason = "the service's disk is full: free some space there, then try again"
                await error_response(507, reason)(scope, receive, send)
                return
            await error_response(500, "internal error: see the service's log")(scope, receive, send)
        except asyncio.CancelledError:  # the server ends what is still open some time after a stop
            if started:
                raise
            await error_response(503, "the service is stopping: try again")(scope, receive, send)


def _is_full(error: BaseException | None) -> bool:
    """Whether an error comes from a disk without space, as the system or SQLite says it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return True
        if "database or disk is full" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _describe(item: dict[str, object]) -> str:
    location = item["loc"]
    steps = (
        [str(step) for step in location if step not in {"body", "query", "path"}]
        if isinstance(location, tuple)
        else []
    )
    text = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "json_invalid":
        return f"Invalid JSON: {dict(item.get('ctx') or {}).get('error', text)}"  # type: ignore[call-overload]
    return f"{'.'.join(steps) or 'body'}: {text}"
