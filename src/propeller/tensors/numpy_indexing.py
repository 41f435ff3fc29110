"""The operations that index, in NumPy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from propeller.tensors.operations import Kernel, KernelFactory
from propeller.tensors.operations.indexing import PICKED
from propeller.tensors.shapes import Spec, elements

_ADDED_AT_ONCE = 1 << 15
"""Elements, whose places are computed beside them: what is more than the processor's cache takes longer."""


def _index(params: Any) -> tuple[Any, ...]:
    """An index as NumPy takes it, from ``cut``'s."""
    parts: list[Any] = []
    for part in params:
        if isinstance(part, int):
            parts.append(part)
        else:
            start, count, step = part
            stop = start + count * step
            parts.append(slice(start, None if stop < 0 else stop, step) if count else slice(0, 0))
    return tuple(parts)


def _checked_rows(indices: Any, count: int, what: str = "rows") -> Any:
    """Row numbers, checked: NumPy's own error is about another array than the program's."""
    rows = indices.astype(np.int64, copy=False)
    if rows.size and (int(rows.min()) < -count or int(rows.max()) >= count):
        wrong = rows[(rows < -count) | (rows >= count)][0]
        raise IndexError(f"index {wrong} is outside {count} {what}, 0 to {count - 1}")
    return rows


def _cut(_specs: Sequence[Spec], params: Any, _out: Spec) -> Kernel:
    index = _index(params)
    return lambda x: x[index]


def _put(_specs: Sequence[Spec], params: Any, _out: Spec) -> Kernel:
    index = _index(params)

    def kernel(x: Any, value: Any) -> Any:
        changed = np.array(x)
        changed[index] = value
        return changed

    return kernel


def put_into(params: Any) -> Kernel:
    """``put`` that writes over its first operand."""
    index = _index(params)

    def kernel(x: Any, value: Any) -> Any:
        x[index] = value
        return x

    return kernel


def _take(specs: Sequence[Spec], _params: Any, _out: Spec) -> Kernel:
    count = specs[0][1][0]
    return lambda x, indices: x[_checked_rows(indices, count)]


def _put_rows(specs: Sequence[Spec], _params: Any, _out: Spec) -> Kernel:
    count = specs[0][1][0]

    def kernel(x: Any, indices: Any, value: Any) -> Any:
        changed = np.array(x)
        changed[_checked_rows(indices, count)] = value
        return changed

    return kernel


def _pick(specs: Sequence[Spec], _params: Any, _out: Spec) -> Kernel:
    rows, columns = np.arange(specs[0][1][0]), specs[0][1][1]
    return lambda x, indices: x[rows, _checked_rows(indices, columns, PICKED)]


def _put_picked(_specs: Sequence[Spec], count: Any, out: Spec) -> Kernel:
    rows, dtype = np.arange(out[1][0]), np.dtype(out[0])

    def kernel(columns: Any, values: Any) -> Any:
        made = np.zeros(out[1], dtype)
        made[rows, _checked_rows(columns, count)] = values
        return made

    return kernel


def _one_hot(specs: Sequence[Spec], classes: Any, out: Spec) -> Kernel:
    every, dtype = np.arange(elements(specs[0][1])), np.dtype(out[0])

    def kernel(labels: Any) -> Any:
        if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= classes):
            raise IndexError(f"a label is outside {classes} classes")
        made = np.zeros((every.size, classes), dtype)
        made[every, labels.reshape(-1)] = 1
        return made.reshape((*labels.shape, classes))

    return kernel


def _add_rows(_specs: Sequence[Spec], count: Any, out: Spec) -> Kernel:
    dtype, width = np.dtype(out[0]), elements(out[1][1:])
    columns, at_once = np.arange(width), max(1, _ADDED_AT_ONCE // max(width, 1))

    def kernel(indices: Any, values: Any) -> Any:
        rows = _checked_rows(indices, count).reshape(-1) % max(count, 1)
        lines = np.ascontiguousarray(values, dtype).reshape(rows.size, width)
        total = np.zeros(count * width, dtype)
        # One dimension is several times as fast as rows (NumPy 1.25 and later).
        for at in range(0, rows.size, at_once):
            part = slice(at, at + at_once)
            places = rows[part, None] * width + columns
            np.add.at(total, places.reshape(-1), lines[part].reshape(-1))
        return total.reshape(out[1])

    return kernel


def _nonzero(_specs: Sequence[Spec], count: Any, _out: Spec) -> Kernel:
    def kernel(x: Any) -> Any:
        found = np.flatnonzero(x)
        if found.size != count:
            raise ValueError(f"{found.size} elements are true, not {count}")
        return found

    return kernel


def _gather(specs: Sequence[Spec], axis: Any, _out: Spec) -> Kernel:
    count = specs[0][1][axis]
    return lambda x, indices: np.take_along_axis(x, _checked_rows(indices, count), axis)


KERNELS: dict[str, KernelFactory] = {
    "cut": _cut,
    "put": _put,
    "take": _take,
    "put_rows": _put_rows,
    "add_rows": _add_rows,
    "gather": _gather,
    "nonzero": _nonzero,
    "pick": _pick,
    "put_picked": _put_picked,
    "one_hot": _one_hot,
}
"""The kernel of every operation that indexes, from its specs and params."""
