"""Reading small bodies that registries and token servers send."""

import json

import httpx

from propeller.oci.errors import TooLargeError

MAX_DOCUMENT = 4 * 1024 * 1024
"""The largest manifest, token or error body that is read, in bytes (the limit that registries have)."""


async def read_document(response: httpx.Response, what: str) -> bytes:
    """The whole of a small body.

    Raises:
        TooLargeError: it is not small.
    """
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > MAX_DOCUMENT:
            raise TooLargeError(f"{what}: the answer is over {MAX_DOCUMENT} bytes", "this is not a registry")
    return bytes(data)


async def detail_of(response: httpx.Response) -> str:
    """What an error body says, in the form of the distribution specification; empty if it says nothing."""
    if response.request.method == "HEAD":
        return ""
    try:
        document = json.loads(await read_document(response, "error"))
        first = document["errors"][0]
        return str(first.get("message") or first.get("code"))[:300]
    except (TooLargeError, httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError):
        return ""
