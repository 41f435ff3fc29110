"""A task's files as NumPy arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from propeller.tensors.files import TaskFiles
from propeller.tensors.shapes import Spec, elements

LITTLE = {"float32": "<f4", "float64": "<f8", "int64": "<i8", "uint8": "u1", "bool": "?"}
"""NumPy's names of the dtypes, little-endian."""

_COLUMNS = {"f": np.float32, "i": np.int64, "b": np.bool_}


class ArrayFiles(TaskFiles):
    """``TaskFiles`` whose tensors are arrays; the model's share the file's bytes."""

    def tensor(self, document: bytes, start: int, dtype: str, shape: tuple[int, ...]) -> Any:
        """An array over the document."""
        return np.frombuffer(document, LITTLE[dtype], elements(shape), start).reshape(shape)

    def columns(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Spec, Any]]:
        """An array for each name whose values are numbers of one shape in every sample."""
        found: dict[str, tuple[Spec, Any]] = {}
        for name in samples[0] if samples else ():
            if all(name in sample for sample in samples):
                column = _column([sample[name] for sample in samples])
                if column is not None:
                    found[name] = ((str(column.dtype), column.shape), column)
        return found


def _column(values: list[Any]) -> Any:
    try:
        array = np.array(values)
    except (ValueError, OverflowError):
        return None
    wanted = _COLUMNS.get(array.dtype.kind)
    return None if wanted is None else array.astype(wanted, copy=False)
