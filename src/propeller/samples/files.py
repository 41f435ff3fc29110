"""Files of samples as columns: CSV, JSON, NumPy's, safetensors and Parquet."""

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from propeller.errors import InvalidError
from propeller.samples.csv_files import assemble_columns, is_finite, read_csv
from propeller.samples.idx_files import pixels

Array = npt.NDArray[Any]

SUFFIXES = (".csv", ".csv.gz", ".npz", ".json", ".safetensors", ".parquet")
"""How the names of the files end that are read here."""

DEMO_SCHEMA = "fl-demo-dataset-v1"
"""Of documents as the demo's; those of another schema are their programs' own."""

_TEXT = "U"
_DTYPES = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.int64}
"""What programs have of numbers, by NumPy's kind of them; true is 1 and false 0."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples as arrays with a row a sample.

    Attributes:
        name: where it is from.
        columns: what programs are given, by name: numbers, of shape [samples, …]. Images are float32 from 0 to 1 and of shape
            [samples, pixels], labels int64 of shape [samples].
        apart: columns by which samples can be divided and which programs do not see: texts, and those that were asked for; of
            shape [samples].
        test: the columns of samples that no client has, where there are such.
        header: the names of a table's columns, in its order, of which ``x`` is made; empty where columns are as they are.
    """

    name: str
    columns: Mapping[str, Array]
    apart: Mapping[str, Array]
    test: Mapping[str, Array] | None = None
    header: tuple[str, ...] = ()

    @classmethod
    def of_columns(
        cls,
        columns: Mapping[str, npt.ArrayLike],
        *,
        test: Mapping[str, npt.ArrayLike] | None = None,
        apart: Sequence[str] = (),
        name: str = "what was given",
    ) -> Self:
        """Arrays, or lists, with the dtypes that programs have: float32 or int64, as which true is 1. Columns of texts are apart.

        Args:
            columns: each with a row a sample.
            test: of samples that no client has.
            apart: columns for partitions alone, beside those of texts.
            name: where they are from, for errors.

        Raises:
            InvalidError: a column is neither numbers nor texts, or they are not equally long, or there is none.
        """
        unknown = [one for one in apart if one not in columns]
        if unknown:
            raise InvalidError(
                f"apart: {name} has no column {', '.join(unknown)}; there are {', '.join(columns)}"
            )
        given = {key: _typed(name, key, column) for key, column in columns.items()}
        for key, column in given.items():
            if column.dtype.kind == _TEXT and column.ndim > 1:
                raise InvalidError(f"data: {name}: {key} has several texts a sample: a column apart has one")
        seen = {
            key: column for key, column in given.items() if column.dtype.kind != _TEXT and key not in apart
        }
        if not seen:
            raise InvalidError(f"data: {name} has no column of numbers")
        held_out = None
        if test is not None:
            held_out = {
                key: _typed(name, f"{key}_test", column) for key, column in test.items() if key in seen
            }
        for rows in filter(None, (given, held_out)):
            lengths = {key: len(column) for key, column in rows.items()}
            if len(set(lengths.values())) > 1:
                shown = ", ".join(f"{key} {length}" for key, length in lengths.items())
                raise InvalidError(
                    f"data: {name}: the columns must have a row for each sample; they have: {shown}"
                )
        if not len(next(iter(seen.values()))):
            raise InvalidError(f"data: {name} has no samples")
        rest = {key: column for key, column in given.items() if key not in seen}
        return cls(name, seen, rest, held_out)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


def kind_of_file(path: Path) -> str | None:
    """Which of ``SUFFIXES`` a file's name ends in, without ``.gz``; ``None``: in none of them."""
    suffix = next((one for one in SUFFIXES if path.name.lower().endswith(one)), None)
    return None if suffix is None else suffix.removesuffix(".gz")


def read_samples(
    path: Path, *, label: str | None = None, apart: Sequence[str] = (), text_labels: bool = True
) -> Samples:
    """Read a file.

    - ``.csv`` (or ``.csv.gz``) with names in the first line: the label becomes ``y`` (whole numbers as int64, others as float32; of
      texts, their numbers in sorted order; ``true`` is 1 and ``false`` 0), the other columns of numbers become ``x``, float32 of shape [samples, columns].
    - ``.parquet``: likewise; if some of its columns are lists of numbers, each column is one.
    - ``.npz``: each array is a column. Where names end in ``_train`` and ``_test``, those are the two sets. Arrays of bytes of
      three or more dimensions are images.
    - ``.safetensors``: each tensor is a column.
    - ``.json``: ``{"data": [{"x": [0.1, 0.2], "y": 1}, …]}``; each field is a column.

    Args:
        path: the file.
        label: of a table, the column with labels; by default one that is called y, label, target or class.
        apart: columns that programs are not given, beside those of texts.
        text_labels: whether labels may be texts.

    Raises:
        InvalidError: it cannot be read; the text names the file with the line, array or sample, and what to do.
    """
    kind = kind_of_file(path)
    if kind is None:
        raise InvalidError(f"data: {path}: the name must end in {', '.join(SUFFIXES)}")
    if label is not None and kind not in {".csv", ".parquet"}:
        raise InvalidError(f"label: only a table's label is named; {path} has its columns by name")
    try:
        match kind:
            case ".csv":
                columns, rest, header = read_csv(path, label, apart, text_labels=text_labels)
                return Samples(str(path), columns, rest, header=header)
            case ".parquet":
                return _read_parquet(path, label, apart, text_labels=text_labels)
            case ".npz":
                return _read_npz(path, apart)
            case ".safetensors":
                return _read_safetensors(path, apart)
            case _:
                _fields, samples = read_document(path)
                return samples_of(samples, apart=apart, name=str(path))
    except OSError as error:
        raise InvalidError(f"data: {path} cannot be read: {error.strerror or error}") from None


def _read_parquet(path: Path, label: str | None, apart: Sequence[str], *, text_labels: bool) -> Samples:
    from propeller.samples.parquet_files import read_parquet

    columns = read_parquet(path)
    if label is None and any(column.ndim > 1 for column in columns.values()):
        return Samples.of_columns(columns, apart=apart, name=str(path))
    if wide := next((name for name, column in columns.items() if column.ndim > 1), None):
        raise InvalidError(
            f"label: {path}: {wide} is a column of lists, so each column is one, and none is made of others"
        )
    seen, rest = assemble_columns(path, columns, label, apart, text_labels=text_labels)
    return Samples(str(path), seen, rest, header=tuple(columns))


def _read_safetensors(path: Path, apart: Sequence[str]) -> Samples:
    from propeller.fl.tensors.safetensors import from_safetensors
    from propeller.tensors.shapes import TensorError

    try:
        tensors, _metadata = from_safetensors(path.read_bytes())
    except TensorError as error:
        raise InvalidError(f"data: {path}: {error}") from None
    return Samples.of_columns(tensors, apart=apart, name=str(path))


def _read_npz(path: Path, apart: Sequence[str]) -> Samples:
    found: dict[str, Array] = {}
    if not zipfile.is_zipfile(path):
        raise InvalidError(f"data: {path} is not an .npz file: write it with numpy.savez")
    try:
        # Opened here, as numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for name in arrays.files:
                found[name] = _npz_column(path, name, arrays)
    except InvalidError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, OSError) as error:
        raise InvalidError(f"data: {path} is damaged ({error}): write it again with numpy.savez") from None
    train = {
        name.removesuffix("_train"): column for name, column in found.items() if not name.endswith("_test")
    }
    test = {name.removesuffix("_test"): column for name, column in found.items() if name.endswith("_test")}
    if test and test.keys() != train.keys():
        name = min(test.keys() - train.keys() or train.keys() - test.keys())
        has, lacks = ("test", "train") if name in test else ("train", "test")
        raise InvalidError(
            f"data: {path}: {name}_{has} is there without {name}_{lacks}: give both sets the same arrays"
        )
    return Samples.of_columns(train, test=test or None, apart=apart, name=str(path))


def _npz_column(path: Path, name: str, arrays: Mapping[str, Array]) -> Array:
    try:
        array = arrays[name]
    except ValueError:  # an array of objects, which would be unpickled: anybody's code
        raise InvalidError(
            f"data: {path}: the array {name!r} is of Python objects: save it as numbers or texts"
        ) from None
    return pixels(array.reshape(len(array), -1)) if array.dtype == np.uint8 and array.ndim > 2 else array


def read_document(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """The fields of a dataset document beside its samples, and these, which are not looked at.

    Raises:
        InvalidError: it is none, or has no samples, as only one with a schema of its own may.
        OSError: the file cannot be read.
    """
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"data: {path} is not JSON: {error}") from None
    fields = document if isinstance(document, dict) else {"data": document}
    samples = fields.pop("data", None)
    if not isinstance(samples, list):
        raise InvalidError(f'data: {path}: must be {{"data": [{{"x": [0.1, 0.2], "y": 1}}, …]}}')
    if not samples and not has_own_schema(fields):
        raise InvalidError(f"data: {path}: has no samples")
    return fields, samples


def has_own_schema(fields: Mapping[str, Any]) -> bool:
    """Whether the fields of a document say that its samples are of no form but its program's."""
    return fields.get("schema") not in {None, DEMO_SCHEMA}


def samples_of(samples: Sequence[Any], *, apart: Sequence[str] = (), name: str) -> Samples:
    """The columns of a document's samples.

    Raises:
        InvalidError: they are not all numbers, arrays of one shape, or texts under the same names; ``name`` is where they are from.
    """
    if not samples:
        raise InvalidError(f"data: {name} has no samples")
    first = samples[0]
    for at, sample in enumerate(samples):
        if not isinstance(sample, dict) or not sample:
            raise InvalidError(
                f'data: {name}, sample {at}: must be an object such as {{"x": [0.1, 0.2], "y": 1}}'
            )
        if sample.keys() != first.keys():
            field = min(first.keys() - sample.keys() or sample.keys() - first.keys())
            what = (
                "is not in the first sample" if field in sample else "is missing, and the first sample has it"
            )
            raise InvalidError(f"data: {name}, sample {at}: {field} {what}: give all samples the same fields")
    columns = {field: _json_column(name, field, [sample[field] for sample in samples]) for field in first}
    return Samples.of_columns(columns, apart=apart, name=name)


def _json_column(path: str, name: str, values: list[Any]) -> Array:
    if all(isinstance(value, str) for value in values):
        return np.array(values, np.str_)
    array = _array(values)
    if array is not None:
        return array
    first = _array(values[0])
    shape = () if first is None else first.shape
    at, wrong = next((at, why) for at, value in enumerate(values) if (why := _explain(value, shape)))
    raise InvalidError(
        f"data: {path}, sample {at}: {name} {wrong}: give all samples a number, an array of them of one shape, or a text"
    )


def _explain(value: Any, shape: tuple[int, ...]) -> str | None:
    """Why a value is none of a column whose first sample has this shape; ``None`` if it is one."""
    array = _array(value)
    if array is None:
        return "is neither a number nor an array of them"
    if array.shape != shape:
        return f"has the shape {list(array.shape)}, and in the first sample {list(shape)}"
    return None


def _array(value: Any) -> Array | None:
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # rows of several lengths
        return None
    return array if array.dtype.kind in _DTYPES else None


def _typed(name: str, key: str, values: npt.ArrayLike) -> Array:
    try:
        column = np.asarray(values)
    except (ValueError, OverflowError):
        raise InvalidError(
            f"data: {name}: {key} has rows of different shapes: a column is an array with a row for each sample"
        ) from None
    if column.ndim == 0:
        raise InvalidError(f"data: {name}: {key} is a single value: a column has a row for each sample")
    if column.dtype.kind == "O" and all(isinstance(value, str) for value in column.flat):  # as of pandas
        column = column.astype(np.str_)
    if column.dtype.kind == _TEXT:
        return column
    wanted = _DTYPES.get(column.dtype.kind)
    if wanted is None:
        raise InvalidError(f"data: {name}: {key} is {column.dtype}: a column is numbers or texts")
    if column.dtype.kind == "f" and not is_finite(column).all():
        raise InvalidError(
            f"data: {name}: {key} has a number that is no finite float32 in sample {int(np.argwhere(~is_finite(column))[0][0])}: leave such samples out, or fill them in"
        )
    if column.dtype == np.uint64 and column.max(initial=0) > np.iinfo(np.int64).max:
        raise InvalidError(f"data: {name}: {key} has a number of 2^63 or more: programs have int64")
    return column.astype(wanted, copy=False)
