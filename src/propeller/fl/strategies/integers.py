"""Means of integers and truth values that stay in their dtype.

Integers are averaged as differences to the base model, which fit into int64 however large the numbers are: equal updates give
exactly that update, 2**60 + 1 too, and small differences between large numbers are exact. What a dtype cannot hold is taken
as the nearest that it can.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.fl.strategies.strategy import Float64
from propeller.fl.tensors import Array

_Int64 = npt.NDArray[np.int64]

_BELOW_2_63 = 2.0**63 - 1024
"""The largest float64 that int64 can hold."""


class IntegerMean:
    """The weighted mean of one integer tensor over updates that come one at a time."""

    def __init__(self, base: Array) -> None:
        """The mean will have the dtype and shape of ``base``."""
        self._base = base
        self._sums = np.zeros(base.shape, np.float64)
        self._low = np.full(base.shape, np.iinfo(np.int64).max)
        self._high = np.full(base.shape, np.iinfo(np.int64).min)

    def add(self, difference: _Int64, weight: float) -> None:
        """Add an update's difference to the base model."""
        self._sums += weight * difference
        np.minimum(self._low, difference, out=self._low)
        np.maximum(self._high, difference, out=self._high)

    def mean(self, total: float) -> Array:
        """The mean, of weights that add up to ``total``: exact where all updates agree, otherwise rounded to the nearest integer, of two the even one."""
        rounded = np.clip(round_about(self._base, self._sums / total), self._low, self._high)
        return moved(self._base, np.where(self._low == self._high, self._low, rounded))


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


def differences(values: Array, base: Array) -> _Int64:
    """``values - base``, as int64; beyond its range, the nearest that it holds."""
    first, second = _in_dtype(values, base.dtype), base
    wide = np.dtype(np.uint64 if base.dtype.kind == "u" else np.int64)
    first, second = first.astype(wide), second.astype(wide)
    ahead = first >= second
    up, down = first.view(np.uint64), second.view(np.uint64)
    with np.errstate(over="ignore"):  # modulo 2**64 the smaller from the larger is right
        gap = np.where(ahead, up - down, down - up)
    gap = np.minimum(gap, np.uint64(2**63 - 1)).astype(np.int64)
    return np.where(ahead, gap, -gap)


def moved(base: Array, difference: _Int64) -> Array:
    """``base + difference`` in the base's dtype; beyond its range, the nearest that it holds."""
    info = np.iinfo(base.dtype)
    wide = np.dtype(np.uint64 if base.dtype.kind == "u" else np.int64)
    start = base.astype(wide).view(np.uint64)
    top, bottom = (np.array(end, wide).view(np.uint64) for end in (info.max, info.min))
    with np.errstate(over="ignore"):
        size = np.where(difference < 0, -difference, difference).view(np.uint64)
        up, down = start + np.minimum(size, top - start), start - np.minimum(size, start - bottom)
    result: Array = np.where(difference < 0, down, up).view(wide).astype(base.dtype)
    return result


def round_about(base: Array, offset: Float64) -> _Int64:
    """The integer ``d`` for which ``base + d`` is nearest to ``base + offset``, and of two the one that makes it even."""
    offset = np.clip(offset, -(2.0**63), _BELOW_2_63)
    nearest = np.rint(offset)
    tie = np.abs(offset - np.trunc(offset)) == 0.5
    odd = (
        (base.astype(np.int64) if base.dtype != np.uint64 else base.view(np.int64)) ^ nearest.astype(np.int64)
    ) & 1
    rounded: _Int64 = np.where(tie & (odd == 1), 2 * offset - nearest, nearest).astype(np.int64)
    return rounded


def _in_dtype(values: Array, dtype: np.dtype[Any]) -> Array:
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
