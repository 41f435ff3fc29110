"""Means of integers and truth values that stay in their dtype.

Integers are averaged as they are, in int64 or uint64, by their differences to one of them: equal updates give exactly that update,
2**60 + 1 too, and small differences between large numbers are exact, wherever the base model is. What a dtype cannot hold is
taken as the nearest that it can.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.fl.tensors import Array, Float64

Integers = npt.NDArray[np.integer[Any]]
"""Integers of any dtype, in int64; of uint64, in uint64."""

_BELOW_2_64 = 2.0**64 - 2048
"""The largest float64 that uint64 can hold."""


class IntegerMean:
    """The weighted mean of one integer tensor over updates that come one at a time."""

    def __init__(self, base: Array) -> None:
        """The mean will have the dtype and shape of ``base``."""
        self._base = base
        self._sums = np.zeros(base.shape, np.float64)
        self._first: Integers | None = None

    def add(self, values: Integers, weight: float) -> None:
        """Add an update's integers."""
        if self._first is None:
            self._first, self._low, self._high = values, values.copy(), values.copy()
            return
        self._sums += weight * offsets(values, self._first)
        np.minimum(self._low, values, out=self._low)
        np.maximum(self._high, values, out=self._high)

    def mean(self, total: float) -> Array:
        """The mean, of weights that add up to ``total``: exact where all updates agree, otherwise rounded to the nearest integer, of two the even one."""
        if self._first is None:
            return self._base
        rounded = moved(self._first, self._sums / total)
        return in_dtype(np.clip(rounded, self._low, self._high), self._base.dtype)


class MajorityVote:
    """Truth values by weighted majority; a tie keeps the base model's."""

    def __init__(self, base: Array) -> None:
        """The result will have the shape of ``base``."""
        self._base = base
        self._margin = np.zeros(base.shape, np.float64)

    def add(self, values: Array, weight: float) -> None:
        """Add an update's truth values."""
        self._margin += np.where(values.astype(bool), weight, -weight)

    def mean(self, total: float) -> Array:
        """The majority's values, of weights that add up to ``total``."""
        return majority(self._base, self._margin / total)


def majority(base: Array, margin: Float64) -> Array:
    """True where the margin is above zero, the base's value where there is none (or only rounding)."""
    decided = np.abs(margin) > 2.0**-40
    return np.where(decided, margin > 0, base)


def as_weights(values: Array, base: Array, of_base: Array | None) -> Integers:
    """An update's integers as weights beside the base model's.

    Args:
        values: the update's, of any dtype.
        base: of the model that the result replaces.
        of_base: of the model that the update started from; ``None``: ``values`` are differences to it.
    """
    wide = widened(base)
    if of_base is base:
        return widened(in_dtype(values, base.dtype))
    if of_base is None:
        minuend = widened(values if values.dtype.kind == "u" else in_dtype(values, np.dtype(np.int64)))
        return _shifted(wide, *_difference(minuend, np.zeros_like(minuend)))
    return _shifted(wide, *_difference(widened(in_dtype(values, base.dtype)), widened(of_base)))


def widened(values: Array) -> Integers:
    """Integers of any dtype, without loss."""
    return values.astype(np.uint64 if values.dtype == np.uint64 else np.int64)


def offsets(values: Integers, start: Integers) -> Float64:
    """``values - start``: exact up to ``2**53``, else the nearest float64."""
    down, gap = _difference(values, start)
    return np.where(down, -1.0, 1.0) * gap


def moved(start: Integers, offset: Float64) -> Integers:
    """``start + offset``, rounded to the nearest integer, and of two to the even one; beyond the range, the nearest that it holds."""
    nearest = np.rint(offset)
    tie = np.abs(offset - np.trunc(offset)) == 0.5
    # Where the start is odd, the even one of the two is at the odd offset.
    nearest = np.where(tie & (start & 1).astype(bool), 2 * offset - nearest, nearest)
    gap = np.minimum(np.abs(nearest), _BELOW_2_64).astype(np.uint64)
    return _shifted(start, nearest < 0, gap)


def _difference(values: Integers, start: Integers) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint64]]:
    """Whether values are below the start, and by how much they differ from it."""
    down = values < start
    with np.errstate(over="ignore"):  # modulo 2**64 the smaller from the larger is right
        first, second = values.view(np.uint64), start.view(np.uint64)
        return down, np.where(down, second - first, first - second)


def _shifted(start: Integers, down: npt.NDArray[np.bool_], gap: npt.NDArray[np.uint64]) -> Integers:
    """``start`` with ``gap`` added, or taken away where ``down``; beyond the range, the nearest that it holds."""
    info, bits = np.iinfo(start.dtype), start.view(np.uint64)
    top, bottom = (np.array(end, start.dtype).view(np.uint64) for end in (info.max, info.min))
    with np.errstate(over="ignore"):
        below, above = bits - np.minimum(gap, bits - bottom), bits + np.minimum(gap, top - bits)
    result: Integers = np.where(down, below, above).view(start.dtype)
    return result


def in_dtype(values: Array, dtype: np.dtype[Any]) -> Array:
    """Values as integers of a dtype: rounded, and the nearest that it can hold."""
    if values.dtype == dtype:
        return values
    info = np.iinfo(dtype)
    if values.dtype.kind == "b":
        return values.astype(dtype)
    if values.dtype.kind not in "iu":
        # float64 has the ends of all but 64-bit dtypes.
        top = float(info.max) if info.bits < 64 else float(np.nextafter(float(info.max), 0.0))
        return np.clip(np.rint(values.astype(np.float64)), float(info.min), top).astype(dtype)
    low = max(int(np.iinfo(values.dtype).min), int(info.min))
    high = min(int(np.iinfo(values.dtype).max), int(info.max))
    inside: Array = np.clip(values, low, high).astype(dtype)
    return inside
