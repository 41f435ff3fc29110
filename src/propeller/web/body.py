"""Reading a request's body whole, up to a limit of its own."""

from fastapi import Request

from propeller.errors import TooLargeError


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, where only some of an app's requests may be as large as the app's own limit.

    Raises:
        TooLargeError: it is longer than ``max_bytes``.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise TooLargeError(f"the request body is over the limit of {max_bytes} bytes")
        parts.append(part)
    return b"".join(parts)
