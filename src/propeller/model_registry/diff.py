"""How two models differ: tensor by tensor, in little memory whatever their size.

The sums are of float64, with an exponent of their own: norms are right also where a square is beyond float64. Differences of
integers are exact before they are squared.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from propeller.fl.tensors import Array, Float64, Specs, TensorSpec, is_integer
from propeller.store.documents import Document

_BLOCK_NUMBERS = 128 * 1024
"""Numbers of a tensor that are compared at a time."""

_SAFE_EXPONENT = 300
"""Squares of numbers below 2**300 and above 2**-300 are sums of float64 without scaling."""


class _Sum:
    """A sum of float64 numbers, each times a power of two that may be beyond float64."""

    def __init__(self) -> None:
        self.value, self.exponent = 0.0, 0

    def add(self, number: float, exponent: int) -> None:
        """Add ``number * 2**exponent``."""
        if number == 0:
            return
        fraction, own = math.frexp(number)
        exponent += own
        if self.value == 0:
            self.value, self.exponent = fraction, exponent
        elif exponent <= self.exponent:
            self.value += math.ldexp(fraction, exponent - self.exponent)
        else:
            self.value, self.exponent = (
                math.ldexp(self.value, self.exponent - exponent) + fraction,
                exponent,
            )

    def plus(self, other: "_Sum") -> None:
        """Add another sum."""
        self.add(other.value, other.exponent)


@dataclass
class Difference:
    """How numbers of one model differ from those of another.

    Attributes:
        numbers: how many were compared.
        changed: how many of them are not equal.
        largest: the largest absolute difference.
        of_difference: the sum of the squares of the differences.
        of_first: that of the first model's numbers.
        of_second: that of the second's.
        of_both: the sum of the products of both.
    """

    numbers: int = 0
    changed: int = 0
    largest: float = 0.0
    of_difference: _Sum = field(default_factory=_Sum)
    of_first: _Sum = field(default_factory=_Sum)
    of_second: _Sum = field(default_factory=_Sum)
    of_both: _Sum = field(default_factory=_Sum)

    def add(self, first: Array, second: Array) -> None:
        """Compare two flat arrays of one length, which are not empty."""
        self.numbers += first.size
        a, b = first.astype(np.float64), second.astype(np.float64)
        of_a, of_b = _exponent(a), _exponent(b)
        if _are_alike(first, second):
            difference, scale = _integer_difference(first, second), 0
        else:
            scale = max(of_a, of_b, 0)
            difference = _scaled(b, scale) - _scaled(a, scale)
            tiny = _exponent(difference)
            difference, scale = _scaled(difference, tiny), scale + tiny
        self.changed += int(np.count_nonzero(first != second))
        self.largest = max(self.largest, _ldexp(float(np.abs(difference).max()), scale))
        self.of_difference.add(float(np.square(difference).sum()), 2 * scale)
        a, b = _scaled(a, of_a), _scaled(b, of_b)
        self.of_first.add(float(np.square(a).sum()), 2 * of_a)
        self.of_second.add(float(np.square(b).sum()), 2 * of_b)
        self.of_both.add(float((a * b).sum()), of_a + of_b)

    def plus(self, other: "Difference") -> None:
        """Add what was found in other tensors."""
        self.numbers += other.numbers
        self.changed += other.changed
        self.largest = max(self.largest, other.largest)
        self.of_difference.plus(other.of_difference)
        self.of_first.plus(other.of_first)
        self.of_second.plus(other.of_second)
        self.of_both.plus(other.of_both)

    def to_json(self) -> dict[str, Any]:
        """The figures; ``null`` where one is beyond float64, or there is none (a cosine with zeros)."""
        return {
            "numbers": self.numbers,
            "changed": self.changed,
            "l2": _finite(_ldexp(*_root(self.of_difference))),
            "relative": self._relative(),
            "max_abs": _finite(self.largest),
            "cosine": self._cosine(),
        }

    def _relative(self) -> float | None:
        """The norm of the difference over that of the first model."""
        if self.of_difference.value == 0:
            return 0.0
        if self.of_first.value == 0:
            return None
        (value, exponent), (by, of_by) = _root(self.of_difference), _root(self.of_first)
        return _finite(_ldexp(value / by, exponent - of_by))

    def _cosine(self) -> float | None:
        if self.of_first.value == 0 or self.of_second.value == 0:
            return None
        (a, of_a), (b, of_b) = _root(self.of_first), _root(self.of_second)
        cosine = _ldexp(self.of_both.value / (a * b), self.of_both.exponent - of_a - of_b)
        return max(-1.0, min(1.0, cosine))


def diff_documents(first: Document, second: Document) -> dict[str, Any]:
    """Compare two models.

    Returns:
        ``tensors``: by name, ``status`` (``same``, ``changed``, ``reshaped``, ``added``, ``removed``), ``dtype`` and ``shape``
        in both (``null`` where there is none), and the figures of ``Difference`` where the shapes are the same.
        ``total``: the figures over all of these, and how many tensors have which status.

    Raises:
        TensorError: a file became shorter.
    """
    ours, theirs = first.specs, second.specs
    tensors: dict[str, Any] = {}
    total, counts = Difference(), dict.fromkeys(("same", "changed", "reshaped", "added", "removed"), 0)
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        status = _status(ours.get(name), theirs.get(name))
        figures = _diff_tensor(name, first, second) if status == "same" else None
        if figures is not None and (figures.changed or ours[name].dtype != theirs[name].dtype):
            status = "changed"
        counts[status] += 1
        tensors[name] = {
            "status": status,
            "dtype": [_part(specs, name, "dtype") for specs in (ours, theirs)],
            "shape": [_part(specs, name, "shape") for specs in (ours, theirs)],
            **({} if figures is None else figures.to_json()),
        }
        if figures is not None:
            total.plus(figures)
    return {"tensors": tensors, "total": {**total.to_json(), "tensors": counts}}


def diff_lineages(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """The fields of two lineages that differ, with both values; the updates are left out."""
    ours, theirs = first or {}, second or {}
    names = dict.fromkeys([*ours, *theirs])
    return {
        name: [ours.get(name), theirs.get(name)]
        for name in names
        if name != "updates" and ours.get(name) != theirs.get(name)
    }


def _status(first: TensorSpec | None, second: TensorSpec | None) -> str:
    """What the shapes alone say."""
    if first is None:
        return "added"
    if second is None:
        return "removed"
    return "same" if first.shape == second.shape else "reshaped"


def _diff_tensor(name: str, first: Document, second: Document) -> Difference:
    found = Difference()
    blocks = first.blocks(name, _BLOCK_NUMBERS), second.blocks(name, _BLOCK_NUMBERS)
    for pair in zip(*blocks, strict=True):
        found.add(*pair)
    return found


def _part(specs: Specs, name: str, part: str) -> Any:
    spec = specs.get(name)
    if spec is None:
        return None
    return spec.dtype if part == "dtype" else list(spec.shape)


def _are_alike(first: Array, second: Array) -> bool:
    """Whether both are integers whose differences are exact in 64 bits."""
    return is_integer(first.dtype) and is_integer(second.dtype) and first.dtype.kind == second.dtype.kind


def _integer_difference(first: Array, second: Array) -> Float64:
    """The absolute differences, exact but for the rounding to float64."""
    high, low = np.maximum(first, second), np.minimum(first, second)
    return (high.astype(np.uint64) - low.astype(np.uint64)).astype(np.float64)


def _exponent(array: Float64) -> int:
    """The power of two to divide by so that squares are within float64; 0 where that is not needed."""
    exponent = math.frexp(float(np.abs(array).max()))[1]
    return 0 if abs(exponent) < _SAFE_EXPONENT else exponent


def _scaled(array: Float64, exponent: int) -> Float64:
    return np.ldexp(array, -exponent) if exponent else array


def _root(total: _Sum) -> tuple[float, int]:
    odd = total.exponent % 2
    return math.sqrt(math.ldexp(total.value, odd)), (total.exponent - odd) // 2


def _ldexp(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.copysign(math.inf, value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
