"""Safetensors documents that need not be in memory: cut into the parts of an aggregation, and put together from its answer."""

import asyncio
import hashlib
import math
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from propeller.fl.strategies import PART_BYTES, parts_of
from propeller.fl.tensors import DTYPES, Specs, TensorSpec
from propeller.fl.tensors.safetensors import PREFIX, Header, header_length, read_header
from propeller.tensors.safetensors import write_header

T = TypeVar("T")

_PIECE_BYTES = 4 * 1024 * 1024


class StoredDocument(Protocol):
    """A document somewhere that is read as it is needed: a blob, a model version."""

    async def read(self, start: int, end: int) -> bytes:
        """Its bytes from ``start`` to below ``end``."""


def cut(specs: Specs, part_bytes: int = PART_BYTES) -> list[list[str]]:
    """The names of a model's tensors, part by part, in the order in which documents have their numbers.

    Then a part is one stretch of each document, or a few.
    """
    _head, order = write_header(specs)
    sizes = {name: math.prod(specs[name].shape) * DTYPES[specs[name].dtype].itemsize for name in order}
    return list(parts_of(sizes, part_bytes))


async def read_document_header(document: StoredDocument) -> Header:
    """The header of a stored document.

    Raises:
        TensorError: it has none that can be read.
    """
    prefix = await document.read(0, PREFIX)
    return read_header(prefix + await document.read(PREFIX, PREFIX + header_length(prefix)))


async def stream_part(
    document: StoredDocument, header: Header, names: Collection[str]
) -> AsyncIterator[bytes]:
    """A document of those tensors of another one that have these names."""
    entries = {name: entry for name, entry in header.entries.items() if name in names}
    head, order = write_header({name: (entry.dtype, entry.shape) for name, entry in entries.items()})
    yield head
    for start, end in _stretches((entries[name].begin, entries[name].end) for name in order):
        for at in range(start, end, _PIECE_BYTES):
            yield await document.read(header.start + at, header.start + min(end, at + _PIECE_BYTES))


def _stretches(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ranges with those that follow each other put together."""
    begin = end = 0
    for start, stop in ranges:
        if start != end:
            if end > begin:
                yield begin, end
            begin = start
        end = stop
    if end > begin:
        yield begin, end


class AssembledDocument:
    """A document put together from parts: in memory while it is small, else in a file that ends with the process. Close it."""

    def __init__(self, folder: Path | None = None, *, memory_bytes: int = PART_BYTES) -> None:
        """``folder`` is where the file is; ``None``: the system's temporary folder."""
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - close does
            memory_bytes, dir=None if folder is None else str(folder)
        )
        self._in_memory_below = memory_bytes
        self._places: dict[str, tuple[int, int]] = {}
        self.specs: Specs = {}
        self.size = 0
        """Of all numbers, in bytes."""

    @property
    def is_small(self) -> bool:
        """Whether it is in memory."""
        return self.size <= self._in_memory_below

    async def add(self, document: bytes | bytearray) -> None:
        """Add the tensors of a document.

        Raises:
            TensorError: it cannot be read.
            ValueError: a tensor is there already.
        """
        header = read_header(document)
        header.check_length(len(document))
        for name, entry in header.entries.items():
            if name in self._places:
                raise ValueError(f"{name!r} comes twice")
            self._places[name] = (self.size + entry.begin, self.size + entry.end)
            self.specs[name] = TensorSpec(entry.dtype, entry.shape)
        numbers = memoryview(document)[header.start :]
        self.size += len(numbers)
        await self._run(self._file.write, numbers)

    async def stream(
        self, metadata: Mapping[str, str] | None = None, names: Iterable[str] | None = None
    ) -> AsyncIterator[bytes]:
        """The document, with these metadata, and its header in the order of ``names``."""
        specs = {name: self.specs[name] for name in (self.specs if names is None else names)}
        head, order = write_header(specs, metadata)
        yield head
        for start, end in _stretches(self._places[name] for name in order):
            for at in range(start, end, _PIECE_BYTES):
                yield await self._run(self._read, at, min(end, at + _PIECE_BYTES))

    async def content(
        self, metadata: Mapping[str, str] | None = None, names: Iterable[str] | None = None
    ) -> bytes:
        """All of the document, in memory."""
        return b"".join([piece async for piece in self.stream(metadata, names)])

    async def digest(self) -> str:
        """The digest that the model registry has of a model: of the document without metadata, its tensors sorted by name."""
        found = hashlib.sha256()
        async for piece in self.stream(names=sorted(self.specs)):
            found.update(piece)
        return found.hexdigest()

    def close(self) -> None:
        """Let go of it."""
        self._file.close()

    def _read(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        return self._file.read(end - start)

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        return function(*arguments) if self.is_small else await asyncio.to_thread(function, *arguments)
