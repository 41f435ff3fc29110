"""Errors of the HTTP APIs: a status and ``{"error": "what is wrong and what to do"}``."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from propeller.process.http import ServiceError
from propeller.process.logs import get_logger
from propeller.protocol.ids import InvalidIdError
from propeller.protocol.wire import MalformedMessageError

log = get_logger("web")


class ApiError(Exception):
    """A request that is refused.

    Attributes:
        status: the HTTP status.
        reason: the text for the caller: what is wrong, and what to do.
    """

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        self.status, self.reason, self.headers = status, reason, headers
        super().__init__(reason)


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


def error_response(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The body of every error."""
    return JSONResponse({"error": reason}, status, headers)


def install(app: FastAPI) -> None:
    """Answer every exception of a handler in the one form; the unforeseen ones are logged and say nothing."""

    @app.exception_handler(ApiError)
    async def _api(_request: Request, error: ApiError) -> JSONResponse:
        return error_response(error.status, error.reason, error.headers)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        reason = str(error.detail)
        if error.status_code == 404 and reason == "Not Found":
            reason = f"no such path: {request.url.path}"
        return error_response(error.status_code, reason, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def _validation(_request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(400, "; ".join(_describe(dict(item)) for item in error.errors()))

    @app.exception_handler(MalformedMessageError)
    @app.exception_handler(InvalidIdError)
    async def _malformed(_request: Request, error: ValueError) -> JSONResponse:
        return error_response(400, str(error))

    @app.exception_handler(ServiceError)
    async def _peer(_request: Request, error: ServiceError) -> JSONResponse:
        # A peer's verdict on what the caller sent is the caller's to correct; anything else is a bad gateway.
        if error.status is not None and 400 <= error.status < 500 and error.status not in {401, 403}:
            return error_response(error.status, error.reason)
        return error_response(502, str(error))

    @app.exception_handler(Exception)
    async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
        log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
        return error_response(500, "internal error: see the service's log")


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
