"""Limits on request bodies: of an app, refused by the announced length or while the body streams in, and of one request."""

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from propeller.errors import TooLargeError
from propeller.web.errors import BodyError, error_response, status_of


async def read_body(request: Request, max_bytes: int, setting: str = "") -> bytes:
    """The body, where only some of an app's requests may be as large as the app's own limit.

    Raises:
        TooLargeError: it is longer than ``max_bytes``; the text names ``setting``.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise BodyLimit(max_bytes, setting).error()
        parts.append(part)
    return b"".join(parts)


@dataclass(frozen=True)
class BodyLimit:
    """The largest body, in bytes, and the setting that says so."""

    max_bytes: int
    setting: str = ""

    def error(self) -> TooLargeError:
        """The error of a body that is over it."""
        named = f" ({self.setting})" if self.setting else ""
        return TooLargeError(f"the request body is over the limit of {self.max_bytes} bytes{named}")


class BodyLimitMiddleware:
    """ASGI middleware: answers 413 to a body of more than ``max_bytes``.

    What is left of such a body is read and dropped by the server, so that the caller sees the answer (one that is
    cut off while it sends does not) and the connection goes on.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, setting: str = "", larger: Mapping[str, BodyLimit] | None = None
    ) -> None:
        """``larger`` has the limits of paths with their own."""
        self.app, self._limit, self._larger = app, BodyLimit(max_bytes, setting), larger or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting its body if its length was not announced."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, headers = self._larger.get(scope["path"], self._limit), dict(scope["headers"])
        announced = headers.get(b"content-length")
        if announced is not None:  # the server holds the caller to it
            if int(announced) <= limit.max_bytes:
                await self.app(scope, receive, send)
            else:
                # One that waits for "100 Continue" will not send the body: what it sends next is another request.
                error = limit.error()
                close = {"connection": "close"} if b"expect" in headers else None
                await error_response(status_of(error), str(error), close)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit.max_bytes:
                raise BodyError(limit.error())
            return message

        await self.app(scope, counted, send)
