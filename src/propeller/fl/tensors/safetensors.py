"""Tensors as safetensors, one document or a stream of them: numpy arrays over ``propeller.tensors.safetensors``."""

import math
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Any

import numpy as np

from propeller.errors import TooLargeError
from propeller.fl.tensors.base import Tensors, check_array, check_tensors, specs_of
from propeller.fl.tensors.dtypes import DTYPES, Array, name_of
from propeller.tensors import safetensors
from propeller.tensors.limits import MAX_TENSORS, check_count
from propeller.tensors.safetensors import PREFIX, Entry, Header, header_length
from propeller.tensors.shapes import TensorError

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "PREFIX",
    "DocumentTooLargeError",
    "Header",
    "from_safetensors",
    "header_length",
    "read_documents",
    "read_header",
    "to_safetensors",
    "view_tensor",
]

MAX_DOCUMENT_BYTES = 2 * 1024 * 1024 * 1024
"""The longest document that is read from a stream unless told otherwise, in bytes."""


LONG_TEXT = 1024 * 1024
"""A shorter text has no more values than can be read at once."""


class DocumentTooLargeError(TooLargeError, TensorError):
    """A document of a stream is over the limit."""


def read_header(document: bytes | bytearray | memoryview) -> Header:
    """Read and check the header at the start of a document; the numbers need not be there yet, and there may be no tensors.

    Raises:
        TensorError: the header is malformed, or a type is not in ``DTYPES``: the text names the tensor where there is one.
    """
    end = PREFIX + header_length(document)
    if end > LONG_TEXT:
        check_long_text("the safetensors header", bytes(document[PREFIX:end]))
    return safetensors.read_header(document, _check_dtype)


def from_safetensors(
    document: bytes | bytearray | memoryview, *, finite: bool = True
) -> tuple[Tensors, dict[str, str]]:
    """Read a document: the tensors in its header's order, and its metadata.

    The arrays share the document's memory.

    Args:
        document: all of it.
        finite: whether to look for NaN and infinities, which takes longer than the rest; ``False`` for one who finds them in what
            is computed of the numbers.

    Raises:
        TensorError: the document is malformed, cut off or has bytes after its end; or a tensor is not finite.
    """
    header = read_header(document)
    check_count(len(header.entries))
    header.check_length(len(document))
    tensors: Tensors = {}
    for name, entry in header.entries.items():
        array = view_tensor(name, document, header.start + entry.begin, entry)
        check_array(name, array, finite=finite)
        tensors[name] = array
    return tensors, header.metadata


def to_safetensors(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """Write a document; the header keeps the order of ``tensors``, the numbers lie by falling size of their type.

    Args:
        tensors: arrays of dtypes in ``DTYPES``.
        metadata: texts to put under ``__metadata__``.

    Raises:
        TensorError: it could not be read back: naming the tensor, or the header is too long.
    """
    check_tensors(tensors)
    arrays = {name: _little_endian(array) for name, array in tensors.items()}
    header, order = safetensors.write_header(specs_of(arrays), metadata)
    return b"".join([header, *(arrays[name].reshape(-1).view(np.uint8).data for name in order)])


def view_tensor(name: str, document: bytes | bytearray | memoryview, start: int, entry: Entry) -> Array:
    """The elements of a tensor, or of a part of it, from byte ``start`` on, as an array over the same memory.

    Raises:
        TensorError: a BOOL is no BOOL.
    """
    flat: Array = np.frombuffer(document, DTYPES[entry.dtype], math.prod(entry.shape), start)
    if entry.dtype == "BOOL" and flat.size and flat.view(np.uint8).max() > 1:
        raise TensorError("is BOOL and holds bytes other than 0 and 1", name)
    return flat.reshape(entry.shape)


async def read_documents(
    chunks: AsyncIterable[bytes], *, max_document: int = MAX_DOCUMENT_BYTES
) -> AsyncIterator[bytearray]:
    """Cut a stream into its documents, each in memory of its own; only one is in memory at a time.

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
            count = min(len(rest), len(buffer) - filled)
            buffer[filled : filled + count] = rest[:count]
            rest, filled = rest[count:], filled + count
            if filled < len(buffer):
                break
            # Three neededs, one after the other: the prefix, the header, the whole document.
            if filled == PREFIX:
                needed = PREFIX + header_length(buffer)
            elif not header_known:
                needed, header_known = read_header(buffer).length, True
            else:
                needed = filled
            if needed > max_document:
                raise DocumentTooLargeError(
                    f"a document of {needed} bytes is over the limit of {max_document} bytes"
                )
            if needed > filled:
                grown = bytearray(needed)
                grown[:filled] = buffer
                buffer = grown
            else:
                yield buffer
                buffer, filled, header_known = bytearray(PREFIX), 0, False
    if filled:
        raise TensorError("the stream ends inside a safetensors document")


def _check_dtype(name: str, dtype: Any) -> None:
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise TensorError(f"type {str(dtype)[:20]} is none of {', '.join(DTYPES)}", name)


def _little_endian(array: Array) -> Array:
    array = np.ascontiguousarray(array).reshape(array.shape)
    return array.astype(DTYPES[name_of(array.dtype)], copy=False)


def check_long_text(what: str, text: str | bytes) -> None:
    """Refuse a JSON text in a header with more values than any number of tensors needs, before it is read.

    Raises:
        TensorError: it has; the text says of ``what``.
    """
    if len(text) <= LONG_TEXT:
        return
    from propeller.protocol.wire import MalformedMessageError, check_values  # as in ``json``

    try:
        check_values(text.encode() if isinstance(text, str) else text, 10 * MAX_TENSORS)
    except MalformedMessageError as error:
        raise TensorError(f"{what}: {error}") from None
