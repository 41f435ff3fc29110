"""The little-endian elements of arrays in plain Python, among them the two halves, which ``array`` of the standard library has not."""

import math
import struct
import sys
from array import array as _buffer
from collections.abc import Iterable, Sequence

from propeller.tensors.shapes import HALVES, TYPECODES

Number = float | int | bool


def encode(values: Iterable[Number], dtype: str) -> bytes:
    """The elements as bytes; floats are rounded to the dtype.

    Raises:
        OverflowError, TypeError: One does not fit it.
    """
    if dtype in HALVES:
        half = _float16 if dtype == "float16" else _bfloat16
        return b"".join(half(float(value)) for value in values)
    data = _buffer(TYPECODES[dtype], map(int, values) if dtype == "bool" else values)
    if sys.byteorder == "big":
        data.byteswap()
    return data.tobytes()


def decode(data: bytes, dtype: str) -> Sequence[Number]:
    """The elements of bytes: a list, or an array of the standard library."""
    if dtype == "float16":
        return struct.unpack(f"<{len(data) // 2}e", data)
    if dtype == "bfloat16":  # the upper half of a float32
        halves = struct.unpack(f"<{len(data) // 2}H", data)
        return struct.unpack(
            f"<{len(halves)}f", struct.pack(f"<{len(halves)}I", *(half << 16 for half in halves))
        )
    values = _buffer(TYPECODES[dtype])
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return [bool(value) for value in values] if dtype == "bool" else values


def _float16(value: float) -> bytes:
    try:
        return struct.pack("<e", value)
    except OverflowError:
        return struct.pack("<e", math.copysign(math.inf, value))


def _bfloat16(value: float) -> bytes:
    """Rounded to the nearest, of two to the even one."""
    try:
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
    except OverflowError:
        (bits,) = struct.unpack("<I", struct.pack("<f", math.copysign(math.inf, value)))
    if value != value:  # noqa: PLR0124 - NaN, of which the upper half might be infinity
        return struct.pack("<H", bits >> 16 | 0x40)
    return struct.pack("<H", bits + 0x7FFF + (bits >> 16 & 1) >> 16)
