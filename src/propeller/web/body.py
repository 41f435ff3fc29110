"""Limits on request bodies: of an app, refused by the announced length or while the body streams in; of one request; of a caller."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from propeller.errors import ThrottledError, TooLargeError
from propeller.process.allowance import caller_at
from propeller.web.errors import BodyError, error_response, status_of
from propeller.web.limits import BODIES_OF_A_CALLER, BODIES_OF_ANYONE

RETRY_AFTER_S = 1.0
"""When a caller whose bodies take too much is to try again, in seconds."""


_SMALL_BYTES = 64 * 1024
"""Bodies that say so little are not counted: there are no more of them at once than connections."""


class BodiesInMemory:
    """How much the bodies take that each caller has sent and that are not answered yet."""

    def __init__(self, of_a_caller: int = BODIES_OF_A_CALLER, of_anyone: int = BODIES_OF_ANYONE) -> None:
        """With limits in bytes: of a caller who is known, and of all from an address where callers are not."""
        self._of_a_caller, self._of_anyone = of_a_caller, of_anyone
        self._taken: Counter[tuple[str, str]] = Counter()

    def begin(self, request: Request) -> "HeldBody":
        """Count the body of a request, which has none yet."""
        who = getattr(request.state, "principal", None)
        if who is not None and who.kind != "anyone":
            return HeldBody(self._taken, (who.kind, who.id), self._of_a_caller)
        address = caller_at(request.client.host) if request.client else ""
        return HeldBody(self._taken, ("address", address), self._of_anyone)


class HeldBody:
    """What one request's body takes."""

    def __init__(self, taken: Counter[tuple[str, str]], caller: tuple[str, str], max_bytes: int) -> None:
        self._taken, self._caller, self._max_bytes = taken, caller, max_bytes
        self._size = 0

    def grow(self, size: int) -> None:
        """Count more of it. A caller's only body may be of any size that its own limit lets through.

        Raises:
            ThrottledError: with what the caller's other bodies it is too much.
        """
        others = self._taken[self._caller] - self._size
        if others and others + self._size + size > self._max_bytes:
            raise ThrottledError(
                f"your requests that are not answered yet have {others} bytes of bodies, and with this one more than "
                f"{self._max_bytes}: send fewer at once, try again in {RETRY_AFTER_S:g} s",
                RETRY_AFTER_S,
            )
        self._size += size
        self._taken[self._caller] += size

    def release(self) -> None:
        """It has been answered."""
        self._taken[self._caller] -= self._size
        if not self._taken[self._caller]:
            del self._taken[self._caller]
        self._size = 0


_bodies = BodiesInMemory()
"""Of this process."""


async def pieces_in_memory(request: Request) -> AsyncIterator[bytes]:
    """The pieces of a body that will be in memory as a whole, counted for its caller.

    Raises:
        ThrottledError: it is too much beside the caller's others.
    """
    announced = int(request.headers.get("content-length", "0"))
    is_small = 0 < announced <= _SMALL_BYTES
    held = request.hold() if isinstance(request, HoldingRequest) and not is_small else None
    if held is not None and announced:
        held.grow(announced)
    async for part in request.stream():
        if held is not None and not announced:
            held.grow(len(part))
        yield part


class HoldingRequest(Request):
    """A request whose body, where it is in memory as a whole, is counted for its caller until ``release``."""

    held: HeldBody | None = None

    async def body(self) -> bytes:
        """All of the body.

        Raises:
            BodyError: it is too much beside the caller's others.
        """
        if (
            not hasattr(self, "_body")
            and not 0 < int(self.headers.get("content-length", "0")) <= _SMALL_BYTES
        ):
            try:
                self._body = b"".join([piece async for piece in pieces_in_memory(self)])
            except ThrottledError as error:
                raise BodyError(error) from None
        return await super().body()

    def hold(self) -> HeldBody:
        """Begin to count."""
        self.held = self.held or _bodies.begin(self)
        return self.held

    def release(self) -> None:
        """The request has been answered."""
        if self.held is not None:
            self.held.release()


async def read_body(request: Request, max_bytes: int, setting: str = "") -> bytes:
    """The body, where only some of an app's requests may be as large as the app's own limit.

    Raises:
        TooLargeError: it is longer than ``max_bytes``; the text names ``setting``.
        ThrottledError: it is too much beside the caller's others.
    """
    limit = BodyLimit(max_bytes, setting)
    announced = request.headers.get("content-length")
    if announced is not None and int(announced) > max_bytes:
        raise limit.error()
    parts, size = [], 0
    async for part in pieces_in_memory(request):
        size += len(part)
        if size > max_bytes:
            raise limit.error()
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
