"""Bodies that came compressed: zstd (RFC 8878) as the content coding of HTTP, and over MQTT, which names none, by its first bytes."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator

import zstandard

from propeller.errors import InvalidError, TooLargeError, UnsupportedTypeError

ZSTD = "zstd"

_MAGIC = b"\x28\xb5\x2f\xfd"
"""The first bytes of a zstd frame; no JSON text begins so, and no safetensors document that is short enough to be read."""

_MAX_WINDOW = 8 * 1024 * 1024
"""What a decoder must take, and need not take more than (RFC 9659)."""

_PIECE = 1024 * 1024

_SLICE = 2048
"""Bytes that are decompressed at once of a stream: of the worst kind, they are 64 MiB."""


def coding_of(content_encoding: str | None) -> str | None:
    """The coding in a ``Content-Encoding`` header; ``None``: the body is as it is.

    Raises:
        UnsupportedTypeError: it is another one, or there are several.
    """
    coding = (content_encoding or "").strip().lower()
    if coding in {"", "identity"}:
        return None
    if coding != ZSTD:
        raise UnsupportedTypeError(f"Content-Encoding {coding[:80]!r} cannot be read; send {ZSTD}, or none")
    return coding


def coding_of_message(payload: bytes) -> str | None:
    """The coding of an MQTT message, as its first bytes tell it."""
    return ZSTD if payload.startswith(_MAGIC) else None


class LongContentError(TooLargeError):
    """A body is over the limit without its content coding."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"decompressed, the body is over the limit of {max_bytes} bytes")


def decompress(body: bytes, max_bytes: int) -> bytes:
    """What a body was before zstd; no more than ``max_bytes`` are ever in memory.

    Raises:
        LongContentError: it is longer.
        InvalidError: the body is not zstd, or needs a larger window than 8 MiB.
    """
    pieces, size = [], 0
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(
            body, read_across_frames=True
        )
        while piece := reader.read(_PIECE):
            size += len(piece)
            if size > max_bytes:
                raise LongContentError(max_bytes)
            pieces.append(piece)
    except zstandard.ZstdError as error:
        raise _not_zstd(error) from None
    return b"".join(pieces)


async def decompress_stream(pieces: AsyncIterable[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    """What a body was before zstd, as it comes; some megabytes of it are in memory.

    Raises:
        LongContentError: it is longer than ``max_bytes``.
        InvalidError: as ``decompress``; or it is cut off.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj(
        read_across_frames=True
    )
    size = 0
    async for piece in pieces:
        # A few bytes may stand for a block of 128 KiB.
        for start in range(0, len(piece), _SLICE):
            part = piece[start : start + _SLICE]
            try:
                content = await asyncio.to_thread(decompressor.decompress, part)
            except zstandard.ZstdError as error:
                raise _not_zstd(error) from None
            size += len(content)
            if size > max_bytes:
                raise LongContentError(max_bytes)
            yield content


def _not_zstd(error: zstandard.ZstdError) -> InvalidError:
    return InvalidError(f"the body is not zstd that can be read: {error}")
