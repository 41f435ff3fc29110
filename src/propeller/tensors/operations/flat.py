"""Flat lists of elements in C order, which the kernels in plain Python work on: strides, broadcasting, rounding."""

import math
import struct
from array import array as _buffer
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from propeller.tensors.encoding import decode, encode
from propeller.tensors.shapes import HALVES, elements

_HALF = 1 << 63
_CONVERSIONS: dict[str, Callable[[Any], Any]] = {"float64": float, "bool": bool}
_MASKS = {"uint8": 0xFF, "uint64": 2 * _HALF - 1}


def strides_of(shape: Sequence[int]) -> list[int]:
    """How far apart neighbours along each axis are, in C order."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return strides


def spread(values: list[Any], shape: tuple[int, ...], out: tuple[int, ...]) -> list[Any]:
    """The elements repeated as broadcasting says."""
    if shape == out:
        return values
    if len(values) == 1:
        return values * elements(out)
    if shape == out[len(out) - len(shape) :]:
        return values * elements(out[: len(out) - len(shape)])
    padded = (1,) * (len(out) - len(shape)) + shape
    strides = [0 if size == 1 else stride for size, stride in zip(padded, strides_of(padded), strict=True)]
    return [values[at] for at in offsets_of(out, strides)]


def offsets_of(shape: Sequence[int], strides: Sequence[int], start: int = 0) -> list[int]:
    """Where the elements of a view are, in C order."""
    offsets = [start]
    for size, stride in zip(shape, strides, strict=True):
        steps = [stride * n for n in range(size)]
        offsets = [at + step for at in offsets for step in steps]
    return offsets


def groups_of(shape: tuple[int, ...], axes: Iterable[int]) -> list[list[int]]:
    """For each element of a reduction's result, where its members are."""
    gone = sorted(axis % len(shape) for axis in axes)
    strides = strides_of(shape)
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    inside = offsets_of([shape[axis] for axis in gone], [strides[axis] for axis in gone])
    outside = offsets_of([shape[axis] for axis in kept], [strides[axis] for axis in kept])
    return [[at + step for step in inside] for at in outside]


def rounded(values: Iterable[Any], dtype: str) -> list[Any]:
    """Numbers as the elements of a dtype: float32 loses digits, integers wrap around."""
    if dtype == "float32":
        try:
            return _buffer("f", values).tolist()
        except OverflowError:
            return [_as_float32(value) for value in values]
    if dtype in _CONVERSIONS:
        return list(map(_CONVERSIONS[dtype], values))
    if dtype in HALVES:
        return list(decode(encode(values, dtype), dtype))
    if dtype in _MASKS:
        mask = _MASKS[dtype]
        return [int(value) & mask for value in values]
    return [(int(value) + _HALF) % (2 * _HALF) - _HALF for value in values]


def _as_float32(value: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)
