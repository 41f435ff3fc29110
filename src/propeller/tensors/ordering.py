"""Functions in the order of an axis: running sums, sorting, the largest."""

from propeller.tensors.arranging import flip
from propeller.tensors.array import Array, record
from propeller.tensors.shapes import axis_of

__all__ = ["argsort", "cumsum", "sort", "top_k"]


def cumsum(x: Array, axis: int | None = None) -> Array:
    """The sum from the first element along ``axis`` to each (None: of all elements in order, in one dimension)."""
    if axis is None:
        return record("cumsum", x.flatten(), params=0)
    return record("cumsum", x, params=axis)


def argsort(x: Array, axis: int = -1, *, descending: bool = False) -> Array:
    """Where the elements along an axis are in the order of their size; equal ones in their own order.

    NaN counts as the largest: it comes last, and first where the order is ``descending``.
    """
    if not descending:
        return record("argsort", x, params=axis)
    # What is equal keeps its order where both what is sorted and the result are turned around.
    last = x.shape[axis_of("argsort", axis, x.ndim)] - 1
    return last - flip(record("argsort", flip(x, axis), params=axis), axis)


def sort(x: Array, axis: int = -1, *, descending: bool = False) -> Array:
    """The elements along an axis in the order of their size, NaN as the largest."""
    return record("gather", x, argsort(x, axis, descending=descending), params=axis)


def top_k(x: Array, k: int, axis: int = -1) -> tuple[Array, Array]:
    """The ``k`` largest elements along an axis, and where they are; the largest first, and of equal ones the first.

    Raises:
        TensorError: There are fewer.
    """
    places = record("top_k", x, params=[k, axis])
    return record("gather", x, places, params=axis), places
