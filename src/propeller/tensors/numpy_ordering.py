"""The operations in the order of an axis, in NumPy."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from propeller.tensors.operations import Kernel, KernelFactory
from propeller.tensors.shapes import Spec, elements

_FEW = 64
"""So many along an axis are sorted faster than the largest of them are found."""


def _cumsum(_specs: Sequence[Spec], axis: Any, out: Spec) -> Kernel:
    return partial(np.add.accumulate, axis=axis, dtype=np.dtype(out[0]))


def _argsort(_specs: Sequence[Spec], axis: Any, _out: Spec) -> Kernel:
    return lambda x: np.argsort(x, axis=axis, kind="stable")


def _top_k(specs: Sequence[Spec], params: Any, _out: Spec) -> Kernel:
    count, axis = params
    shape = specs[0][1]
    size = shape[axis]
    lines = elements(shape[: axis % len(shape)]) * elements(shape[axis % len(shape) + 1 :])

    def kernel(x: Any) -> Any:
        moved = np.moveaxis(x, axis, -1)
        rows = moved.reshape(lines, size)
        found = _largest(rows, count) if size > _FEW and count else _descending(rows)[:, :count]
        return np.moveaxis(found.reshape(*moved.shape[:-1], count), -1, axis)

    return kernel


def _descending(rows: Any) -> Any:
    """Where the elements of each row are, from the largest to the smallest; equal ones in their own order."""
    return rows.shape[1] - 1 - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1]


def _largest(rows: Any, count: int) -> Any:
    """The beginning of ``_descending`` without sorting the rest."""
    last = rows.shape[1] - count
    limit = np.partition(rows, last, axis=1)[:, last : last + 1]
    if np.isnan(limit).any():
        return _descending(rows)[:, :count]
    above, equal = ~(rows <= limit), rows == limit  # NaN is above every number
    missing = count - above.sum(axis=1, keepdims=True)
    chosen = above | (equal & (np.cumsum(equal, axis=1) <= missing))
    found = np.nonzero(chosen)[1].reshape(-1, count)
    return np.take_along_axis(found, _descending(np.take_along_axis(rows, found, 1)), 1)


KERNELS: dict[str, KernelFactory] = {
    "cumsum": _cumsum,
    "argsort": _argsort,
    "top_k": _top_k,
}
"""The kernel of every operation in the order of an axis, from its specs and params."""
