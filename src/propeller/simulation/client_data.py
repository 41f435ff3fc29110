"""What the clients of a simulation hold: arrays of which each has some rows, or a document for each, as devices have them.

Both are written to a folder that every worker maps, so that they are in memory once, however many workers and clients there are.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import to_json

from propeller.errors import InvalidError
from propeller.fl.data_split import split_positions
from propeller.protocol.task import encode_json
from propeller.samples.device_data import rows_of
from propeller.tensors.files import Source
from propeller.tensors.numpy_machine import ArrayFiles

Rows = npt.NDArray[np.int64]

_DTYPES = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}
"""What programs see of a column, by NumPy's kind of it; the same as of a device's JSON (``ArrayFiles.columns``)."""

_ROWS, _ENDS, _DOCUMENTS = "rows.npy", "ends.npy", "documents"


class ClientData(ABC):
    """The data sets of clients 0, 1, 2, …."""

    @abstractmethod
    def __len__(self) -> int:
        """How many clients there are."""

    @abstractmethod
    def samples(self, client: int) -> int:
        """How many samples a client has."""

    @abstractmethod
    def source(self, client: int, part: "Part | None") -> Source:
        """A client's columns as the host's tensors: arrays with a row a sample."""

    @abstractmethod
    def document(self, client: int, part: "Part | None") -> bytes:
        """A client's data set as JSON, as a data store gives it to a device: ``{"data": [samples], "size": number}``."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write everything into a folder, for ``open_client_data``."""


class Part:
    """Which part of a client's samples a task is for: what is trained on, or what is held out (``data.split``)."""

    def __init__(self, holdout: float, seed: int, *, evaluates: bool) -> None:
        """As ``fl.data_split.split_positions``; ``evaluates``: the part that is held out."""
        self._holdout, self._seed, self._evaluates = holdout, seed, evaluates

    def of(self, count: int) -> Rows:
        """The positions of this part among so many samples.

        Raises:
            InvalidError: there are fewer than 2.
        """
        try:
            train, held_out = split_positions(count, self._holdout, self._seed)
        except ValueError as error:
            raise InvalidError(
                f"data.split: {error}: give each client more data, or take data.split out"
            ) from None
        return np.array(held_out if self._evaluates else train, np.int64)


class ArrayData(ClientData):
    """Columns of which each client has some rows."""

    def __init__(self, columns: Mapping[str, npt.NDArray[Any]], rows: Rows, ends: Rows) -> None:
        """``rows`` are those of all clients one after the other, ``ends`` where each client's end."""
        self._columns, self._rows, self._ends = dict(columns), rows, ends

    @classmethod
    def of_parts(cls, columns: Mapping[str, npt.ArrayLike], parts: Sequence[npt.ArrayLike]) -> "ArrayData":
        """Columns with a row a sample, and the rows of each client.

        Raises:
            InvalidError: a column is not numbers, the columns are not equally long, or a client has no sample.
        """
        found = {name: _column(name, value) for name, value in columns.items()}
        lengths = {name: len(column) for name, column in found.items()}
        if len(set(lengths.values())) != 1:
            shown = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "none"
            raise InvalidError(f"data: the columns must have a row for each sample; they have: {shown}")
        count = next(iter(lengths.values()))
        rows = [np.asarray(part, np.int64) for part in parts]
        for client, mine in enumerate(rows):
            if not len(mine):
                raise InvalidError(
                    f"data: client-{client + 1} has no samples: take fewer clients, or divide otherwise"
                )
            if mine.min() < 0 or mine.max() >= count:
                raise InvalidError(
                    f"data: client-{client + 1} has rows that are not among the {count} samples"
                )
        ends = np.cumsum([len(mine) for mine in rows], dtype=np.int64)
        return cls(found, np.concatenate(rows) if rows else np.zeros(0, np.int64), ends)

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def columns(self) -> Mapping[str, npt.NDArray[Any]]:
        """The columns of all clients."""
        return self._columns

    def samples(self, client: int) -> int:
        """As ``ClientData.samples``."""
        return len(self.rows(client))

    def rows(self, client: int) -> Rows:
        """The rows of a client, in its order."""
        return self._rows[self._ends[client - 1] if client else 0 : self._ends[client]]

    def source(self, client: int, part: Part | None) -> Source:
        """As ``ClientData.source``; a column is copied when it is used."""
        mine = self._rows_of(client, part)
        return {
            name: ((str(column.dtype), (len(mine), *column.shape[1:])), partial(_taken, column, mine))
            for name, column in self._columns.items()
        }

    def document(self, client: int, part: Part | None) -> bytes:
        """As ``ClientData.document``."""
        mine = self._rows_of(client, part)
        samples = rows_of({name: column[mine] for name, column in self._columns.items()})
        return to_json(
            {"data": samples, "size": len(samples)}
        )  # ten times as quick as json, which writes the same numbers

    def write(self, folder: Path) -> None:
        """As ``ClientData.write``."""
        np.save(folder / _ROWS, self._rows)
        np.save(folder / _ENDS, self._ends)
        for number, (name, column) in enumerate(self._columns.items()):
            np.save(folder / f"column-{number}.npy", np.ascontiguousarray(column))
            (folder / f"column-{number}.name").write_text(name, encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> "ArrayData":
        """What was written to a folder, mapped."""
        columns = {}
        for number in range(len(list(folder.glob("column-*.npy")))):
            name = (folder / f"column-{number}.name").read_text(encoding="utf-8")
            columns[name] = _mapped(folder / f"column-{number}.npy")
        return cls(columns, _mapped(folder / _ROWS), np.load(folder / _ENDS))

    def _rows_of(self, client: int, part: Part | None) -> Rows:
        mine = self.rows(client)
        return mine if part is None else mine[part.of(len(mine))]


class DocumentData(ClientData):
    """A document for each client, as its device would have it; samples may be anything."""

    def __init__(self, documents: Sequence[bytes | Path]) -> None:
        """``documents`` are JSON: ``{"data": [samples]}``, or the samples alone."""
        self._documents = list(documents)
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._documents)

    def samples(self, client: int) -> int:
        """As ``ClientData.samples``; a document is read once for it."""
        if client not in self._counts:
            self._counts[client] = len(self._samples(client, None))
        return self._counts[client]

    def source(self, client: int, part: Part | None) -> Source:
        """As ``ClientData.source``."""
        found = ArrayFiles(Path()).columns(self._samples(client, part))
        return {name: (spec, partial(_given, column)) for name, (spec, column) in found.items()}

    def document(self, client: int, part: Part | None) -> bytes:
        """As ``ClientData.document``."""
        samples = self._samples(client, part)
        return encode_json({"data": samples, "size": len(samples)})

    def write(self, folder: Path) -> None:
        """As ``ClientData.write``."""
        target = folder / _DOCUMENTS
        target.mkdir()
        for client in range(len(self)):
            (target / f"{client}.json").write_bytes(self._content(client))

    @classmethod
    def open(cls, folder: Path) -> "DocumentData":
        """What was written to a folder."""
        target = folder / _DOCUMENTS
        return cls([target / f"{client}.json" for client in range(len(list(target.iterdir())))])

    def _content(self, client: int) -> bytes:
        document = self._documents[client]
        return document if isinstance(document, bytes) else document.read_bytes()

    def _samples(self, client: int, part: Part | None) -> list[Any]:
        try:
            document = json.loads(self._content(client))
        except ValueError as error:
            raise InvalidError(f"data: the document of client-{client + 1} is not JSON: {error}") from None
        samples = document.get("data") if isinstance(document, dict) else document
        if not isinstance(samples, list) or not samples or not all(isinstance(one, dict) for one in samples):
            raise InvalidError(
                f'data: the document of client-{client + 1} is not a data set: {{"data": [{{"x": [0.1, 0.2], "y": 1}}, …]}}'
            )
        return samples if part is None else [samples[at] for at in part.of(len(samples))]


def open_client_data(folder: Path) -> ClientData:
    """What ``ClientData.write`` wrote."""
    return DocumentData.open(folder) if (folder / _DOCUMENTS).is_dir() else ArrayData.open(folder)


def _column(name: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(value)
    wanted = _DTYPES.get(array.dtype.kind)
    if wanted is None or array.ndim == 0:
        raise InvalidError(
            f"data: the column {name!r} is {array.dtype}; a column is numbers, with a row a sample"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidError(
            f"data: the column {name!r} has numbers that are not finite: a device's data set has none"
        )
    return array.astype(wanted, copy=False)


def _mapped(file: Path) -> npt.NDArray[Any]:
    """The array of a file, of which only what is used is read; as a plain one, whose rows are sooner taken than a ``memmap``'s."""
    array: npt.NDArray[Any] = np.load(file, mmap_mode="r")
    return array.view(np.ndarray)


def _taken(column: npt.NDArray[Any], rows: Rows) -> npt.NDArray[Any]:
    return np.ascontiguousarray(column[rows])


def _given(column: Any) -> Any:
    return column
