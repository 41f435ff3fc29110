"""CSV files as columns: the label, the other numbers together, and what is apart."""

import csv
import gzip
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from propeller.errors import InvalidError
from propeller.protocol.strict import nearest_names

_LABELS = ("y", "label", "target", "class")
"""Names of the column with labels, where none is given."""

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs"}
"""Of files that are called CSV and are none."""

_BOOLEANS = {"false": 0.0, "true": 1.0}

_MAX_EXACT = 2**53
"""Whole numbers below are exact in float64, as which all are read."""

Array = npt.NDArray[Any]


def read_csv(
    path: Path, label: str | None, apart: Sequence[str], *, text_labels: bool = True
) -> tuple[dict[str, Array], dict[str, Array], tuple[str, ...]]:
    """The columns ``x`` and ``y`` of programs, those apart, and the names in the first line.

    Args:
        path: the file, UTF-8 with names in the first line; ``.gz`` if its name ends so.
        label: the column that becomes ``y``; if ``None``, one that is called y, label, target or class.
        apart: columns that do not go into ``x``, beside those of texts.
        text_labels: whether labels may be texts.

    Raises:
        InvalidError: it cannot be read so; the text names the line.
        OSError: the file cannot be read.
    """
    names, rows, lines = read_rows(path)
    columns = {
        name: _column(path, name, values, lines, may_be_text=name in apart)
        for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }
    return *assemble_columns(path, columns, label, apart, text_labels=text_labels), tuple(names)


def assemble_columns(
    path: Path,
    columns: Mapping[str, Array],
    label: str | None,
    apart: Sequence[str],
    *,
    text_labels: bool = True,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The columns ``x`` and ``y`` of programs, and those apart, of a table; the arguments are those of ``read_csv``.

    Raises:
        InvalidError: no column is the label, or none is left beside it.
    """
    names = list(columns)
    label = _find_label(path, names, label)
    wrong = [name for name in apart if name not in names or name == label]
    if wrong:
        raise InvalidError(
            f"apart: {', '.join(wrong)}: name columns other than the label; {path} has {', '.join(names)}"
        )
    texts = {name for name, column in columns.items() if column.dtype.kind == "U"}
    features = [name for name in names if name != label and name not in apart and name not in texts]
    if not features:
        raise InvalidError(
            f"data: {path} has no column of numbers beside the label {label!r} and those apart: programs would be given nothing"
        )
    if label in texts and not text_labels:
        raise InvalidError(
            f"data: {path}: the label {label!r} is of texts, which each device would number in its own way: write numbers"
        )
    x = np.empty((len(columns[label]), len(features)), np.float32)
    for at, name in enumerate(features):
        x[:, at] = columns[name]
    rest = {name: column for name, column in columns.items() if name in apart or name in texts}
    return {"x": x, "y": _label_numbers(columns[label])}, rest


def read_rows(
    path: Path, field: str = "data", noun: str = "sample"
) -> tuple[list[str], list[list[str]], list[int]]:
    """The names, the rows, and the line of each.

    Args:
        path: the file.
        field: whose it is, for errors.
        noun: what a line has, for errors.

    Raises:
        InvalidError: it cannot be read so; the text names the line.
        OSError: the file cannot be read.
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    with _open(path) as file:
        reader = csv.reader(file, strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
            for row in filter(None, reader):
                if len(row) != len(names):
                    raise InvalidError(
                        f"{field}: {path}, line {reader.line_num}: has {len(row)} values, and the first line {len(names)} names"
                    )
                rows.append(row)
                lines.append(reader.line_num)
        except csv.Error as error:
            raise InvalidError(f"{field}: {path}, line {reader.line_num}: {error}") from None
        except UnicodeDecodeError:
            raise InvalidError(
                f"{field}: {path}, after line {reader.line_num}: is not UTF-8: save it as UTF-8"
            ) from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InvalidError(f"{field}: {path}: is no whole gzip file ({error}): fetch it again") from None
    if not rows:
        raise InvalidError(
            f"{field}: {path}: has no {noun}s: write names in the first line, and a {noun} in each line after it"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidError(
            f"{field}: {path}, line 1: there are several columns {twice[0]!r}: give each a name of its own"
        )
    if len(names) == 1 and (other := next((one for one in _OTHER_SEPARATORS if one in names[0]), None)):
        raise InvalidError(
            f"{field}: {path}, line 1: has {_OTHER_SEPARATORS[other]} and no commas: separate values by commas"
        )
    if all(map(_is_number, names)):
        raise InvalidError(
            f"{field}: {path}, line 1: has numbers, not names of columns: write names above them"
        )
    return names, rows, lines


def _open(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _find_label(path: Path, names: list[str], label: str | None) -> str:
    if label is None:
        found = next((one for wanted in _LABELS for one in names if one.casefold() == wanted), None)
        if found is None:
            raise InvalidError(
                f"label: {path} has no column called {', '.join(_LABELS)}: name the one with labels; there are {', '.join(names)}"
            )
        return found
    if label not in names:
        near = nearest_names(label, names)
        hint = f"; did you mean {near[0]!r}? There" if near else "; there"
        raise InvalidError(f"label: {path} has no column {label!r}{hint} are {', '.join(names)}")
    return label


def _column(path: Path, name: str, values: Sequence[str], lines: list[int], *, may_be_text: bool) -> Array:
    """Numbers as float64, where all are finite, and 0 and 1 where all are ``true`` or ``false``; texts, where none is a number."""
    try:
        numbers = np.array(values, np.float64)
        if is_finite(numbers).all():
            return numbers
    except ValueError:
        numbers = np.array([float(value) if _is_number(value) else np.nan for value in values])
    if not may_be_text and all(value.strip().casefold() in _BOOLEANS for value in values):
        return np.array([_BOOLEANS[value.strip().casefold()] for value in values], np.float64)
    if may_be_text or not any(map(_is_number, values)):
        return np.array(values, np.str_)
    at = int(np.flatnonzero(~is_finite(numbers))[0])
    raise InvalidError(
        f"data: {path}, line {lines[at]}: {name} is {values[at]!r:.80}, no finite float32, and others in the column are: write a "
        "number, leave the line out, or name the column in apart if it is not for programs"
    )


def _label_numbers(column: Array) -> Array:
    if column.dtype.kind == "U":
        return np.unique(column, return_inverse=True)[1].astype(np.int64)
    whole = bool((column == np.floor(column)).all()) and bool((np.abs(column) < _MAX_EXACT).all())
    return column.astype(np.int64 if whole else np.float32)


def is_finite(numbers: Array) -> npt.NDArray[np.bool_]:
    """Which numbers are finite as float32, which is what programs have."""
    with np.errstate(over="ignore"):
        return np.isfinite(numbers.astype(np.float32, copy=False))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
