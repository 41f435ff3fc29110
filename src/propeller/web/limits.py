"""A limit on request bodies: refused by their announced length, or while they stream in."""

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from propeller.web.errors import ApiError, respond

DRAIN_S = 2.0
"""How long a refused body is read on, in seconds: a caller that is cut off while it sends never sees the answer."""


class BodyLimit:
    """ASGI middleware: answers 413 to a body of more than ``max_bytes``."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting its body if its length was not announced."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length")
        if announced is not None:  # the server holds the caller to it
            if int(announced) <= self.max_bytes:
                await self.app(scope, receive, send)
            else:
                waits_for_consent = b"expect" in headers
                await respond(
                    await self._too_large(receive, drain=not waits_for_consent), scope, receive, send
                )
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise await self._too_large(receive, drain=bool(message.get("more_body")))
            return message

        await self.app(scope, counted, send)

    async def _too_large(self, receive: Receive, *, drain: bool) -> ApiError:
        drained = False
        if drain:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    while (await receive()).get("more_body"):
                        pass
                drained = True
        reason = f"the request body is over the limit of {self.max_bytes} bytes"
        return ApiError(413, reason, None if drained else {"connection": "close"})
