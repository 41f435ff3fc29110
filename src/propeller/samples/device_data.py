"""A device's own data: a file, or a folder of files of one kind, as the document that programs are given."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import to_json

from propeller.errors import InvalidError
from propeller.protocol.booleans import as_numbers
from propeller.protocol.task import encode_json
from propeller.samples.files import (
    SUFFIXES,
    Samples,
    has_own_schema,
    kind_of_file,
    read_document,
    read_samples,
    samples_of,
)

COLUMNS_SCHEMA = "propeller-columns-v1"
"""Of documents whose samples have other columns than the demo's: a data store leaves them to programs."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class DeviceData:
    """What programs are given.

    Attributes:
        content: JSON, as a data store gives it: ``{"data": [samples], "size": number}``.
        samples: how many there are.
        columns: what they have under which names, as ``float32 [30]``; empty for a document of a schema of its own.
        left_out: columns that programs are not given: those of texts, in a table.
    """

    content: bytes
    samples: int
    columns: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The content, as a data store takes it: samples that are not as the demo's have a schema that says so."""
        document: dict[str, Any] = json.loads(self.content)
        if "schema" not in document and not _is_of_demo(document["data"][0]):
            document["schema"] = COLUMNS_SCHEMA
        return document


def read_device_data(path: Path, label: str | None = None) -> DeviceData:
    """Read a device's data.

    Args:
        path: a file as ``read_samples`` reads it, or a folder of such files of one kind, which are read in the order of their names.
        label: of tables, the column with labels; by default one that is called y, label, target or class.

    Raises:
        InvalidError: it cannot be read; the text names the file, the row and the column, and what to do.
    """
    files = _files_of(path)
    if kind_of_file(files[0]) == ".json":
        if label is not None:
            raise InvalidError(f"label: only a table's label is named; {path} has its columns by name")
        return _read_documents(files)
    parts = [read_samples(file, label=label, text_labels=False) for file in files]
    for part in parts:
        if part.test is not None:
            raise InvalidError(
                f"data: {part.name} has arrays whose names end in _test: a device has one set, of which data.split holds a part out"
            )
    columns = _joined(parts)
    content = to_json({"data": rows_of(columns), "size": len(next(iter(columns.values())))})
    return DeviceData(content, len(next(iter(columns.values()))), _described(columns), tuple(parts[0].apart))


def _is_of_demo(sample: Mapping[str, Any]) -> bool:
    """Whether a sample, which all others are like, has a list of numbers ``x`` and a number ``y``."""
    x, y = sample.get("x"), sample.get("y")
    return (
        isinstance(x, list)
        and bool(x)
        and all(isinstance(one, int | float) for one in x)
        and isinstance(y, int | float)
    )


def rows_of(columns: Mapping[str, Array]) -> list[dict[str, Any]]:
    """The samples of columns, as a document has them."""
    lists = [column.tolist() for column in columns.values()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise InvalidError(f"data: there is no file or folder {path}")
        return [path]
    files = sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith("."))
    kinds = sorted({kind_of_file(one) or one.name for one in files})
    if len(kinds) != 1 or kinds[0] not in SUFFIXES:
        there = ", ".join(kinds) or "nothing"
        raise InvalidError(
            f"data: {path}: a folder has files of one kind, {', '.join(SUFFIXES)}; this one has {there}"
        )
    return files


def _read_documents(files: Sequence[Path]) -> DeviceData:
    every: list[Any] = []
    told: dict[str, Any] = {}
    columns: dict[str, str] | None = None
    for file in files:
        try:
            fields, samples = read_document(file)
        except OSError as error:
            raise InvalidError(f"data: {file} cannot be read: {error.strerror or error}") from None
        told = fields | told
        if not has_own_schema(fields):
            found = _described(_all_of(samples_of(samples, name=str(file))))
            if columns is not None and found != columns:
                raise _different(files[0], columns, file, found)
            columns = found
            samples = [as_numbers(sample) for sample in samples]
        every += samples
    try:
        content = encode_json({**told, "data": every, "size": len(every)})
    except ValueError:
        raise InvalidError(
            f"data: {files[0].parent if len(files) > 1 else files[0]} has a number that is not finite"
        ) from None
    return DeviceData(content, len(every), columns or {})


def _all_of(samples: Samples) -> dict[str, Array]:
    return {**samples.columns, **samples.apart}


def _joined(parts: Sequence[Samples]) -> dict[str, Array]:
    first = parts[0]
    for part in parts[1:]:
        for known, found in ((first.header, part.header), (_shapes(first.columns), _shapes(part.columns))):
            if known != found:
                raise _different(Path(first.name), known, Path(part.name), found)
    joined = {name: np.concatenate([part.columns[name] for part in parts]) for name in first.columns}
    # Whole numbers in one file and others in the next are floats together.
    return {
        name: column.astype(np.float32) if column.dtype == np.float64 else column
        for name, column in joined.items()
    }


def _shapes(columns: Mapping[str, Array]) -> dict[str, list[int]]:
    return {name: list(column.shape[1:]) for name, column in columns.items()}


def _different(first: Path, known: Any, other: Path, found: Any) -> InvalidError:
    return InvalidError(
        f"data: {other} has other columns than {first}: {_shown(found)}, and there {_shown(known)}: files of a folder have the same ones"
    )


def _shown(columns: Mapping[str, Any] | Sequence[str]) -> str:
    if isinstance(columns, Mapping):
        return ", ".join(f"{name} {what}" for name, what in columns.items())
    return ", ".join(columns)


def _described(columns: Mapping[str, Array]) -> dict[str, str]:
    return {
        name: ("text" if column.dtype.kind == "U" else str(column.dtype))
        + (f" {list(column.shape[1:])}" if column.ndim > 1 else "")
        for name, column in columns.items()
    }
