"""Columns of samples: arrays with a row a sample, by name."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.errors import InvalidError
from propeller.protocol.strict import nearest_names

Columns = Mapping[str, npt.NDArray[Any]]


def count_samples(columns: Columns) -> int:
    """How many rows the columns have.

    Raises:
        InvalidError: there are none, or they are not equally long.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "none"
        raise InvalidError(f"data: the columns must have a row for each sample; they have: {shown}")
    return next(iter(lengths.values()))


def classes_of(columns: Columns, by: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The values of a column in their order, and for each sample which of them it has.

    Raises:
        InvalidError: there is no such column, or it does not have one number or text a sample.
    """
    count = count_samples(columns)
    if by not in columns:
        near = nearest_names(by, columns)
        hint = f"; did you mean {near[0]!r}? There" if near else "; there"
        raise InvalidError(f"partition.by: there is no column {by!r}{hint} are {', '.join(columns)}")
    column = np.asarray(columns[by])
    if column.ndim != 1 or column.dtype.kind not in "biufUO":
        raise InvalidError(
            f"partition.by: the column {by!r} is {column.dtype} of shape {list(column.shape)}: name one with a number or a text a sample"
        )
    if column.dtype.kind == "f" and (empty := np.flatnonzero(np.isnan(column))).size:
        raise InvalidError(
            f"partition.by: {len(empty)} of the {count} samples have no value in the column {by!r} (it is NaN, the first in row "
            f"{empty[0]}): leave them out"
        )
    if column.dtype.kind == "O":
        column = column.astype(np.str_)
    values, codes = np.unique(column, return_inverse=True)
    return values, codes.reshape(count).astype(np.int64, copy=False)
