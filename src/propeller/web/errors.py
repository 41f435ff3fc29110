"""Errors of the HTTP APIs: a status and ``{"error": "what is wrong and what to do"}``."""

import asyncio
import errno
import math
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from propeller.errors import PropellerError, ThrottledError, UnauthenticatedError, UnavailableError
from propeller.process.http import KINDS, ServiceError
from propeller.process.logs import get_logger

log = get_logger("web")

_STATUS = {kind: status for status, kind in KINDS.items()} | {ThrottledError: 429}
_CHALLENGE = {"WWW-Authenticate": 'Bearer, Basic realm="propeller"'}
"""The challenge to a caller without valid credentials (RFC 9110, 11.6.1)."""


class BodyError(HTTPException):
    """An error while a body is read: FastAPI lets no exception but an ``HTTPException`` pass there as it is."""

    def __init__(self, error: PropellerError) -> None:
        self.error = error
        super().__init__(status_of(error), str(error))


def status_of(error: PropellerError) -> int:
    """The HTTP status of an error's kind; 500 if it has none."""
    if isinstance(error, ServiceError):
        # What a peer refuses of the caller's request is the caller's to correct; anything else is a bad gateway.
        if error.status is not None and 400 <= error.status < 500 and error.status not in {401, 403}:
            return error.status
        return 502
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)


def error_response(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer for every error."""
    return JSONResponse({"error": reason}, status, headers)


def response_of(error: PropellerError) -> JSONResponse:
    """The answer for an error of the domain."""
    status = status_of(error)
    reason = error.reason if isinstance(error, ServiceError) and status != 502 else str(error)
    headers = {}
    if isinstance(error, UnauthenticatedError):
        headers = _CHALLENGE
    elif isinstance(error, ThrottledError):
        headers = {"Retry-After": str(math.ceil(error.retry_after_s))}
    return error_response(status, reason, headers)


def add_handlers(app: FastAPI) -> None:
    """Answer every exception of a handler in the one form (``ErrorMiddleware`` answers unexpected ones)."""

    @app.exception_handler(PropellerError)
    async def _domain(request: Request, error: PropellerError) -> JSONResponse:
        if _is_full(error):
            raise error  # ``ErrorMiddleware`` logs and answers it
        if isinstance(error, UnavailableError) and error.__cause__ is not None:
            log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
        return response_of(error)

    @app.exception_handler(BodyError)
    async def _body(_request: Request, error: BodyError) -> JSONResponse:
        return response_of(error.error)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        headers, reason = error.headers or {}, error.detail
        if error.status_code == 404 and reason == "Not Found":
            reason = f"no such path: {request.url.path}"
        elif error.status_code == 405:
            reason = f"{request.method} is not for {request.url.path}: use {headers.get('Allow', 'another method')}"
        return error_response(error.status_code, reason, headers)

    @app.exception_handler(RequestValidationError)
    async def _validation(_request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(400, "; ".join(_describe(dict(item)) for item in error.errors()))


class ErrorMiddleware:
    """ASGI middleware: an unexpected exception is logged once, and answered 500 without its text.

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
    """Whether an error comes from a disk without space, as the system or SQLite reports it."""
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
