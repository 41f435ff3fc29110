"""Operations that index, in NumPy; their rules are in ``propeller.tensors.indexing``."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from propeller.tensors.routine import Kernel
from propeller.tensors.shapes import Spec, elements


def _place(params: Any) -> tuple[Any, ...]:
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


def cut(_specs: Sequence[Spec], params: Any, _dtype: Any) -> Kernel:
    """A part of an array, which may share its memory."""
    place = _place(params)
    return lambda x: x[place]


def put(_specs: Sequence[Spec], params: Any, _dtype: Any) -> Kernel:
    """A copy with a value at a place."""
    place = _place(params)

    def kernel(x: Any, value: Any) -> Any:
        changed = np.array(x)
        changed[place] = value
        return changed

    return kernel


def _rows(indices: Any, count: int) -> Any:
    """Row numbers, checked: NumPy's own error is about another array than the program's."""
    places = indices.astype(np.int64, copy=False)
    if places.size and (int(places.min()) < -count or int(places.max()) >= count):
        raise IndexError(f"an index is outside {count} rows")
    return places


def take(specs: Sequence[Spec], _params: Any, _dtype: Any) -> Kernel:
    """Rows by number."""
    count = specs[0][1][0]
    return lambda x, indices: x[_rows(indices, count)]


def put_rows(specs: Sequence[Spec], _params: Any, _dtype: Any) -> Kernel:
    """A copy with values in some rows."""
    count = specs[0][1][0]

    def kernel(x: Any, indices: Any, value: Any) -> Any:
        changed = np.array(x)
        changed[_rows(indices, count)] = value
        return changed

    return kernel


def pick(specs: Sequence[Spec], _params: Any, _dtype: Any) -> Kernel:
    """One column of each row."""
    rows, columns = np.arange(specs[0][1][0]), specs[0][1][1]
    return lambda x, indices: x[rows, _rows(indices, columns)]


def one_hot(specs: Sequence[Spec], classes: Any, dtype: Any) -> Kernel:
    """Ones at the labels, zeros elsewhere."""
    every = np.arange(elements(specs[0][1]))

    def kernel(labels: Any) -> Any:
        if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= classes):
            raise IndexError(f"a label is outside {classes} classes")
        made = np.zeros((every.size, classes), dtype)
        made[every, labels.reshape(-1)] = 1
        return made.reshape((*labels.shape, classes))

    return kernel
