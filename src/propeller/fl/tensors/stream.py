"""Many safetensors documents, one after another in one stream of bytes, read one at a time."""

from collections.abc import AsyncIterable, AsyncIterator

from propeller.errors import TooLargeError
from propeller.fl.tensors.safetensors import PREFIX, header_length, read_header
from propeller.tensors.shapes import TensorError

MAX_DOCUMENT = 2 * 1024 * 1024 * 1024
"""The longest document that is read from a stream unless told otherwise, in bytes."""


class DocumentTooLargeError(TooLargeError, TensorError):
    """A document of a stream is over the limit."""


async def read_documents(
    chunks: AsyncIterable[bytes], *, max_document: int = MAX_DOCUMENT
) -> AsyncIterator[bytearray]:
    """Cut a stream into its documents, each in memory of its own; only one is held at a time.

    Args:
        chunks: the stream, in pieces of any sizes.
        max_document: the longest document, in bytes.

    Raises:
        TensorError: a header is malformed, or the stream ends inside a document.
        DocumentTooLargeError: a document is longer than ``max_document``.
    """
    buffer, filled, header_known = bytearray(PREFIX), 0, False
    async for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            taken = min(len(rest), len(buffer) - filled)
            buffer[filled : filled + taken] = rest[:taken]
            rest, filled = rest[taken:], filled + taken
            if filled < len(buffer):
                break
            # Three goals, one after the other: the prefix, the header, the whole document.
            if filled == PREFIX:
                goal = PREFIX + header_length(buffer)
            elif not header_known:
                goal, header_known = read_header(buffer).length, True
            else:
                goal = filled
            if goal > max_document:
                raise DocumentTooLargeError(
                    f"a document of {goal} bytes is over the limit of {max_document} bytes"
                )
            if goal > filled:
                grown = bytearray(goal)
                grown[:filled] = buffer
                buffer = grown
            else:
                yield buffer
                buffer, filled, header_known = bytearray(PREFIX), 0, False
    if filled:
        raise TensorError("the stream ends inside a safetensors document")
