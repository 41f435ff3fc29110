"""Parquet files as columns (pyarrow, which the extra ``parquet`` installs)."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.errors import InvalidError
from propeller.samples.csv_files import is_finite

Array = npt.NDArray[Any]


def read_parquet(path: Path) -> dict[str, Array]:
    """The columns of a file: numbers as float64, texts, and lists of numbers as arrays with a row a sample.

    Raises:
        InvalidError: pyarrow is not installed, or the file cannot be read so; the text names row and column.
        OSError: the file cannot be read.
    """
    try:
        import pyarrow as pa  # 30 MB and 0.2 s, for those alone who have such a file
        import pyarrow.parquet as pq
    except ImportError:
        raise InvalidError(
            f"data: {path}: reading Parquet needs pyarrow, which is not installed: pip install 'propeller[parquet]'"
        ) from None
    read: Any = pq.read_table
    try:
        with path.open("rb") as file:
            table = read(file)
    except pa.ArrowException as error:
        raise InvalidError(f"data: {path} is no Parquet file that can be read: {error}") from None
    if not table.num_rows:
        raise InvalidError(f"data: {path} has no samples")
    return {name: _column(path, name, table.column(name), pa.types) for name in table.column_names}


def _column(path: Path, name: str, column: Any, types: Any) -> Array:
    kind = column.type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    of = kind.value_type if is_list else kind
    is_text = types.is_string(of) or types.is_large_string(of)
    if not (types.is_integer(of) or types.is_floating(of) or types.is_boolean(of) or is_text):
        raise InvalidError(
            f"data: {path}: {name} is of {kind}: a column is of numbers, texts, or lists of numbers"
        )
    if column.null_count:
        raise InvalidError(
            f"data: {path}, row {column.is_null().to_pylist().index(True)}: {name} is empty: fill it in, or leave the row out"
        )
    values = column.to_pylist()
    if is_list:
        return _rows(path, name, values)
    if is_text:
        return np.array(values, np.str_)
    numbers = np.array(values, np.float64)
    if wrong := np.flatnonzero(~is_finite(numbers)).tolist():
        raise InvalidError(
            f"data: {path}, row {wrong[0]}: {name} is no finite float32: write a number, or leave the row out"
        )
    return numbers


def _rows(path: Path, name: str, values: list[Any]) -> Array:
    for at, value in enumerate(values):
        if len(value) != len(values[0]) or None in value:
            raise InvalidError(
                f"data: {path}, row {at}: {name} has {len(value)} numbers, and in the first row {len(values[0])}; none may be empty"
            )
    return np.array(values)
