"""What becomes of one tensor of all updates where that is no mean: its sum or an extreme, in memory that does not grow with their number, or all of them."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from propeller.fl.tensors import Array, Float64, TensorError, is_floating

_LOW_BITS = 32


class Reduction(Protocol):
    """One tensor of all updates, which come one at a time and flat: ``add`` each, then ``result``."""

    def add(self, values: Array, slot: int) -> None:
        """Add an update's numbers, as weights: finite float64, integers in int64 or uint64, truth values, or bytes as they are.

        Args:
            values: the numbers.
            slot: the participant's position in the round.
        """

    def result(self) -> Array:
        """What they became, flat and in the base model's dtype.

        Raises:
            TensorError: the dtype cannot hold it.
        """


class FloatSum:
    """The sum of floating-point numbers, as if it were computed in twice the precision of float64.

    Ogita, Rump and Oishi, *Accurate Sum and Dot Product*, SIAM Journal on Scientific Computing 26(6), 2005, algorithm 4.4 (Sum2):
    of ``K`` numbers it differs from the exact sum ``s`` by at most ``u |s| + g² Σ |x|`` with ``u = 2**-53`` and
    ``g = (K - 1) u / (1 - (K - 1) u)`` (their proposition 4.5).
    """

    def __init__(self, base: Array) -> None:
        """The result will have the dtype of ``base``."""
        self._dtype = base.dtype
        self._sum: Float64 = np.zeros(base.size)
        self._lost: Float64 = np.zeros(base.size)

    def add(self, values: Array, slot: int) -> None:
        """As ``Reduction.add``."""
        del slot
        with np.errstate(over="ignore", invalid="ignore"):
            total = self._sum + values
            part = total - self._sum
            self._lost += (self._sum - (total - part)) + (values - part)
        self._sum = total

    def result(self) -> Array:
        """As ``Reduction.result``."""
        with np.errstate(over="ignore", invalid="ignore"):
            total = (self._sum + self._lost).astype(self._dtype)
        if not np.isfinite(total).all():
            raise TensorError(f"the sum is too large for {self._dtype}")
        return total


class IntegerSum:
    """The exact sum of integers of any dtype, of up to ``2**31`` updates."""

    def __init__(self, base: Array) -> None:
        """The result will have the dtype of ``base``."""
        self._dtype = base.dtype
        self._high: npt.NDArray[np.int64] = np.zeros(base.size, np.int64)
        self._low: npt.NDArray[np.int64] = np.zeros(base.size, np.int64)

    def add(self, values: Array, slot: int) -> None:
        """As ``Reduction.add``."""
        del slot
        self._high += (values >> _LOW_BITS).astype(np.int64)
        self._low += (values & (2**_LOW_BITS - 1)).astype(np.int64)

    def result(self) -> Array:
        """As ``Reduction.result``."""
        high, low = self._high + (self._low >> _LOW_BITS), self._low & (2**_LOW_BITS - 1)
        info = np.iinfo(self._dtype)
        wide = np.dtype(np.uint64 if self._dtype == np.uint64 else np.int64)
        ends = np.iinfo(wide)
        if high.size and not (ends.min >> _LOW_BITS <= high.min() and high.max() <= ends.max >> _LOW_BITS):
            raise TensorError(f"the sum is beyond {self._dtype}")
        total: Array = (high.astype(wide) << wide.type(_LOW_BITS)) | low.astype(wide)
        if total.size and not (info.min <= total.min() and total.max() <= info.max):
            raise TensorError(f"the sum is beyond {self._dtype}")
        result: Array = total.astype(self._dtype)
        return result


class Extreme:
    """The smallest or the largest of each number; of truth values, whether all are true or any is."""

    def __init__(self, base: Array, pick: Callable[..., Any]) -> None:
        """The result will have the dtype of ``base``; ``pick`` is ``np.minimum`` or ``np.maximum``."""
        self._base, self._pick = base, pick
        self._found: Array | None = None

    def add(self, values: Array, slot: int) -> None:
        """As ``Reduction.add``."""
        del slot
        self._found = values.copy() if self._found is None else self._pick(self._found, values)

    def result(self) -> Array:
        """As ``Reduction.result``."""
        if self._found is None:
            return self._base
        with np.errstate(over="ignore"):
            found = self._found.astype(self._base.dtype)
        if is_floating(found.dtype) and not np.isfinite(found).all():
            raise TensorError(f"the number is too large for {found.dtype}")
        return found


class OfEnough:
    """Another reduction, whose numbers are left out where fewer than so many updates have one."""

    def __init__(self, reduction: Reduction, base: Array, least: int, nothing: float = 0) -> None:
        """``reduction`` is of the same ``base``; ``nothing`` is what an update has instead of a number, and then the result."""
        self._reduction, self._least = reduction, least
        self._nothing = np.array(nothing, base.dtype)
        self._having: npt.NDArray[np.int32] = np.zeros(base.size, np.int32)

    def add(self, values: Array, slot: int) -> None:
        """As ``Reduction.add``."""
        self._having += values != self._nothing
        self._reduction.add(values, slot)

    def result(self) -> Array:
        """As ``Reduction.result``."""
        return np.where(self._having >= self._least, self._reduction.result(), self._nothing)


class Collection:
    """The base model's bytes, and those of the updates behind them, in the order of the participants. Holds all of them."""

    def __init__(self, base: Array) -> None:
        """Begin with the base model's.

        Raises:
            TensorError: it is not of bytes.
        """
        if base.dtype != np.uint8:
            raise TensorError(f"is {base.dtype}; what is collected is opaque bytes, a vector of uint8")
        self._base = base
        self._came: dict[int, Array] = {}

    def add(self, values: Array, slot: int) -> None:
        """As ``Reduction.add``.

        Raises:
            TensorError: they are not bytes.
        """
        if values.dtype != np.uint8:
            raise TensorError(f"is {values.dtype}; what is collected is opaque bytes, a vector of uint8")
        self._came[slot] = values

    def result(self) -> Array:
        """As ``Reduction.result``; longer than the base model's."""
        return np.concatenate([self._base, *(self._came[slot] for slot in sorted(self._came))])
