"""Safetensors documents that need not be in memory: cut into the parts of an aggregation, and put together from its answer."""

import asyncio
import hashlib
import math
import tempfile
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from propeller.fl.strategies import PART_BYTES, parts_of
from propeller.fl.tensors import DTYPES, Specs, TensorSpec
from propeller.fl.tensors.safetensors import PREFIX, Header, header_length, read_header
from propeller.tensors.safetensors import Entry, write_header

T = TypeVar("T")

Piece = range | None
"""What a part has of a tensor: the numbers at these positions, or all of it."""

PIECE_NUMBERS = 16 * 1024
"""The numbers of a piece are a multiple of this, so that sums are computed in the same blocks as of the whole tensor."""

_READ_BYTES, _SENT_BYTES = 4 * 1024 * 1024, 256 * 1024


class StoredDocument(Protocol):
    """A document somewhere that is read as it is needed: a blob, a model version."""

    async def read(self, start: int, end: int) -> bytes:
        """Its bytes from ``start`` to below ``end``."""


class ModelCut:
    """How a model is cut into parts: in the order in which documents have their numbers.

    Then a part is one stretch of each document, or a few.

    Attributes:
        parts: how many there are.
        tensors: the names and shapes of those of which parts have pieces.
    """

    def __init__(self, specs: Specs, part_bytes: int = PART_BYTES, *, whole: Container[str] = ()) -> None:
        """Cut into parts of at most ``part_bytes``; a larger tensor that is among ``whole`` is a part by itself."""
        sizes: dict[tuple[str, Piece], int] = {}
        for name in write_header(specs)[1]:
            count, size = math.prod(specs[name].shape), DTYPES[specs[name].dtype].itemsize
            step = max(PIECE_NUMBERS, part_bytes // size // PIECE_NUMBERS * PIECE_NUMBERS)
            if name in whole or count * size <= part_bytes or count <= step:
                sizes[name, None] = count * size
                continue
            for start in range(0, count, step):
                numbers = range(start, min(count, start + step))
                sizes[name, numbers] = len(numbers) * size
        self._places: dict[str, list[tuple[int, Piece]]] = {}
        self.parts = 0
        for number, pieces in enumerate(parts_of(sizes, part_bytes)):
            self.parts = number + 1
            for name, piece in pieces:
                self._places.setdefault(name, []).append((number, piece))
        self.tensors = {
            name: specs[name].shape for name, places in self._places.items() if places[0][1] is not None
        }

    def pieces(self, header: Header, *, of_state: bool = False) -> list[dict[str, Piece]]:
        """What each part has of a document's tensors: of those named ``KIND/TENSOR`` as of the model's tensor.

        Args:
            header: the document's.
            of_state: whether all of its tensors are named so.
        """
        found: list[dict[str, Piece]] = [{} for _ in range(self.parts)]
        for name, entry in header.entries.items():
            tensor = name.partition("/")[2] if of_state or name not in self._places else name
            places = self._places.get(tensor, [(0, None)])
            if self.tensors.get(tensor, entry.shape) != entry.shape:  # in a shape of its own
                places = [(places[0][0], None)]
            for number, piece in places:
                found[number][name] = piece
        return found


async def read_document_header(document: StoredDocument) -> Header:
    """The header of a stored document.

    Raises:
        TensorError: it has none that can be read.
    """
    prefix = await document.read(0, PREFIX)
    return read_header(prefix + await document.read(PREFIX, PREFIX + header_length(prefix)))


async def stream_part(
    document: StoredDocument, header: Header, pieces: Mapping[str, Piece]
) -> AsyncIterator[bytes]:
    """A document of these pieces of another one's tensors, as vectors, or of tensors that are all there."""
    entries = {
        name: _entry_of_piece(entry, pieces[name]) for name, entry in header.entries.items() if name in pieces
    }
    head, order = write_header({name: (entry.dtype, entry.shape) for name, entry in entries.items()})
    yield head
    for start, end in _stretches((entries[name].begin, entries[name].end) for name in order):
        for at in range(start, end, _READ_BYTES):
            content = await document.read(header.start + at, header.start + min(end, at + _READ_BYTES))
            # Each layer that sends has a copy of what it is given at a time.
            for sent in range(0, len(content), _SENT_BYTES):
                yield content[sent : sent + _SENT_BYTES]


def _entry_of_piece(entry: Entry, piece: Piece) -> Entry:
    if piece is None:
        return entry
    size = DTYPES[entry.dtype].itemsize
    begin = entry.begin + size * piece.start
    return Entry(entry.dtype, (len(piece),), begin, begin + size * len(piece))


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

    def __init__(
        self,
        folder: Path | None = None,
        *,
        memory_bytes: int = PART_BYTES,
        cut: Callable[[str], tuple[int, ...] | None] = lambda _name: None,
    ) -> None:
        """Begin one.

        Args:
            folder: where the file is; ``None``: the system's temporary folder.
            memory_bytes: the longest that is in memory.
            cut: gives the shape of a tensor that comes in pieces, by its name.
        """
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - close does
            memory_bytes, dir=None if folder is None else str(folder)
        )
        self._in_memory_below = memory_bytes
        self._cut = cut
        self._places: dict[str, list[tuple[int, int]]] = {}
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
            shape = self._cut(name)
            spec = TensorSpec(entry.dtype, entry.shape if shape is None else shape)
            if name in self._places and (shape is None or self.specs[name] != spec):
                raise ValueError(f"{name!r} comes twice")
            self._places.setdefault(name, []).append((self.size + entry.begin, self.size + entry.end))
            self.specs[name] = spec
        numbers = memoryview(document)[header.start :]
        self.size += len(numbers)
        await self._run(self._file.write, numbers)

    def check_whole(self) -> None:
        """See that all pieces of tensors have come.

        Raises:
            ValueError: some have not.
        """
        for name, places in self._places.items():
            dtype, shape = self.specs[name]
            came = sum(end - start for start, end in places)
            if came != math.prod(shape) * DTYPES[dtype].itemsize:
                raise ValueError(f"{name!r} has {came} bytes, not those of {dtype}{list(shape)}")

    async def stream(
        self, metadata: Mapping[str, str] | None = None, names: Iterable[str] | None = None
    ) -> AsyncIterator[bytes]:
        """The document, with these metadata, and its header in the order of ``names``."""
        specs = {name: self.specs[name] for name in (self.specs if names is None else names)}
        head, order = write_header(specs, metadata)
        yield head
        for start, end in _stretches(place for name in order for place in self._places[name]):
            for at in range(start, end, _READ_BYTES):
                yield await self._run(self._read, at, min(end, at + _READ_BYTES))

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
