"""Bodies that may be asked for in parts (RFC 9110, section 14): some bytes in memory, then the rest of a file."""

import asyncio
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from propeller.process.opening import open_in_thread
from propeller.web.errors import error_response

PIECE_BYTES = 256 * 1024
"""How much of a file is in memory at a time, in bytes."""

_MAX_RANGES = 16
"""More parts than this in one request are answered with the whole body: section 14.2 lets a server protect itself so."""

_RANGES = re.compile(r"\s*bytes\s*=\s*(.*)", re.IGNORECASE)
_RANGE = re.compile(r"(\d{0,20})-(\d{0,20})")


@dataclass(frozen=True)
class Body:
    """A body.

    Attributes:
        head: its first bytes.
        length: of the whole body, in bytes.
        open_rest: opens the file that has the rest; ``None`` if ``head`` is all.
        rest_at: where the rest begins in that file.
    """

    head: bytes
    length: int
    open_rest: Callable[[], BinaryIO] | None = None
    rest_at: int = 0


def asked_ranges(headers: Headers, length: int, etag: str) -> list[range] | None:
    """The parts of a body of ``length`` bytes that a request asks for.

    Args:
        headers: of the request: ``Range`` and ``If-Range``.
        length: of the body.
        etag: of what would be sent, a strong tag in its quotes.

    Returns:
        The positions of each part that there is, in the order asked for: none if the request asks only for what is not
        there. ``None`` if the whole body is to be sent: nothing else is asked for, in a way that is understood, or more than it.
    """
    match = _RANGES.fullmatch(headers.get("range", ""))
    condition = headers.get("if-range", "").strip()
    if match is None or (condition and condition != etag):
        return None
    found = []
    specs = [spec.strip() for spec in match[1].split(",") if spec.strip()]
    for spec in specs:
        ends = _RANGE.fullmatch(spec)
        if ends is None or not (ends[1] or ends[2]):
            return None
        if not ends[1]:
            part = range(max(0, length - int(ends[2])), length)
        else:
            first, last = int(ends[1]), int(ends[2]) if ends[2] else length - 1
            if ends[2] and last < first:
                return None
            part = range(first, min(last + 1, length))
        if part:
            found.append(part)
    # Parts that overlap may add up to many times the body, for a request of a few bytes.
    return found if 0 < len(specs) <= _MAX_RANGES and sum(map(len, found)) <= length else None


def respond(body: Body, ranges: list[range] | None, headers: Mapping[str, str], media_type: str) -> Response:
    """The answer with a body or parts of it: 200, 206 or 416."""
    headers = {**headers, "Accept-Ranges": "bytes"}
    if ranges is None:
        return _BodyResponse(body, [range(body.length)], 200, headers, media_type)
    if not ranges:
        reason = f"Range: there are {body.length} bytes, from 0 to {body.length - 1}"
        return error_response(416, reason, {**headers, "Content-Range": f"bytes */{body.length}"})
    if len(ranges) == 1:
        headers["Content-Range"] = _content_range(ranges[0], body.length)
        return _BodyResponse(body, ranges, 206, headers, media_type)
    boundary = secrets.token_hex(16)
    parts: list[bytes | range] = []
    for part in ranges:
        lines = f"\r\n--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: {_content_range(part, body.length)}"
        parts += [f"{lines}\r\n\r\n".encode(), part]
    parts.append(f"\r\n--{boundary}--\r\n".encode())
    return _BodyResponse(body, parts, 206, headers, f"multipart/byteranges; boundary={boundary}")


def _content_range(part: range, length: int) -> str:
    return f"bytes {part.start}-{part.stop - 1}/{length}"


class _BodyResponse(StreamingResponse):
    """Sends bytes and parts of a body."""

    def __init__(
        self,
        body: Body,
        parts: "list[bytes | range] | list[range]",
        status: int,
        headers: Mapping[str, str],
        kind: str,
    ) -> None:
        length = sum(map(len, parts))
        super().__init__(self._pieces(), status, {**headers, "Content-Length": str(length)}, media_type=kind)
        self._body, self._parts = body, parts
        self._end = max((part.stop for part in parts if isinstance(part, range)), default=0)
        self._rest: BinaryIO | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; the file is opened before anything is sent, so that it is known to be there."""
        if len(self._body.head) >= self._end and self._end <= PIECE_BYTES:
            # At hand, and no longer than a piece: without the tasks that watch over a stream.
            body = b"".join([piece async for piece in self._pieces()])
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            await send({"type": "http.response.body", "body": body})
            return
        needed = any(isinstance(part, range) and part.stop > len(self._body.head) for part in self._parts)
        if needed and self._body.open_rest is not None:
            self._rest = await open_in_thread(self._body.open_rest)
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._rest is not None:
                self._rest.close()

    async def _pieces(self) -> AsyncIterator[bytes]:
        head = self._body.head
        for part in self._parts:
            if isinstance(part, bytes):
                yield part
                continue
            if part.start < len(head):
                yield head[part.start : part.stop]
            for start in range(max(part.start, len(head)), part.stop, PIECE_BYTES):
                yield await self._read(start - len(head), min(PIECE_BYTES, part.stop - start))

    async def _read(self, start: int, count: int) -> bytes:
        if self._rest is None:
            raise EOFError("a body is shorter than its length says")
        piece = await asyncio.to_thread(os.pread, self._rest.fileno(), count, self._body.rest_at + start)
        if len(piece) != count:
            raise EOFError("a file became shorter while it was sent")
        return piece
