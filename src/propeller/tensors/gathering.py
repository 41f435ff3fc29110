"""Functions that gather elements by integers, and put values back to where they were gathered from."""

from typing import Any

from propeller.tensors.array import Array, positions_of, record
from propeller.tensors.operations.flat import strides_of
from propeller.tensors.shapes import TensorError, axis_of, broadcast

__all__ = ["add_rows", "embedding", "nonzero", "take_along_axis"]


def take_along_axis(x: Array, indices: Array, axis: int) -> Array:
    """Elements along an axis, one for each of the indices: with axis 0 of a matrix ``x[indices[i, j], j]``.

    Args:
        x: What is indexed.
        indices: Integers, which may count from the end, in as many dimensions. In the other axes the two are broadcast.
        axis: Along which.

    Raises:
        TensorError: The shapes do not fit together.
    """
    if x.ndim != indices.ndim:
        raise TensorError(
            f"take_along_axis: indices of shape {list(indices.shape)} have not as many dimensions as {list(x.shape)}"
        )
    at = axis_of("take_along_axis", axis, x.ndim)
    shape = [*broadcast("take_along_axis", _without(x.shape, at), _without(indices.shape, at))]
    parts = []
    for each in (x, indices):
        sizes = [*shape[:at], each.shape[at], *shape[at:]]
        parts.append(each if sizes == list(each.shape) else record("broadcast_to", each, params=sizes))
    return record("gather", *parts, params=at)


def embedding(weights: Array, ids: Any) -> Array:
    """The row of ``weights`` for each of the integers ``ids``: ``[…]`` of them give ``[…, width]``."""
    return weights[ids]


def add_rows(values: Array, rows: Array, count: int) -> Array:
    """``count`` rows of zeros with each of the values added at its row.

    Args:
        values: One for each row number along the first axes; the other axes are a row's.
        rows: Integers, which may count from the end; several may be equal.
        count: How many rows there are.

    Raises:
        TensorError: There is not a value for each row number.
    """
    return record("add_rows", rows, values, params=count)


def nonzero(x: Array) -> tuple[Array, ...]:
    """Where the elements that are not zero are: their positions along each axis. How many they are is read.

    Raises:
        TensorError: A function is being traced, or the array has no axis.
    """
    if x.ndim == 0:
        raise TensorError("nonzero: a number has no positions")
    found = positions_of(x if x.dtype == "bool" else x != 0)
    return tuple(found // stride % size for stride, size in zip(strides_of(x.shape), x.shape, strict=True))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
