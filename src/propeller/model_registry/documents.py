"""Safetensors documents on the disk, read and written by blocks: a model need not fit into memory."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from propeller.fl.tensors import DTYPES, Array, Specs, TensorError, TensorSpec
from propeller.fl.tensors.base import check_array
from propeller.fl.tensors.safetensors import PREFIX, header_length, read_header, view_tensor
from propeller.process.files import Buffer, DurableFile
from propeller.tensors.limits import check_count
from propeller.tensors.safetensors import Entry, Header, encode_header, write_header

BLOCK_BYTES = 1024 * 1024
"""How much of a document is in memory at a time, in bytes."""


class Document:
    """A safetensors document in an open file. One thread at a time may use it; closed as a context manager or by ``close``.

    Attributes:
        header: its header.
        metadata: of the header.
    """

    def __init__(self, stream: BinaryIO) -> None:
        """Read the header from the start of ``stream``.

        Raises:
            TensorError: it is malformed, or the file has another length than it says.
        """
        self._stream = stream
        stream.seek(0)
        prefix = stream.read(PREFIX)
        self.header = read_header(prefix + stream.read(header_length(prefix)))
        self.header.check_length(stream.seek(0, os.SEEK_END))
        self.metadata = self.header.metadata

    @classmethod
    def open(cls, file: Path) -> Self:
        """Open a file.

        Raises:
            TensorError: it is no safetensors document.
            OSError: it cannot be read.
        """
        stream = file.open("rb")
        try:
            return cls(stream)
        except BaseException:
            stream.close()
            raise

    @property
    def specs(self) -> Specs:
        """Names to dtypes and shapes, in the header's order."""
        return {name: TensorSpec(entry.dtype, entry.shape) for name, entry in self.header.entries.items()}

    def read(self) -> bytes:
        """The whole document."""
        self._stream.seek(0)
        return self._stream.read()

    def blocks(self, name: str, numbers: int | None = None) -> Iterator[Array]:
        """A tensor's elements in order: flat arrays of ``numbers`` elements each (default: ``BLOCK_BYTES``), the last one shorter.

        An array is good until the next one is asked for.

        Raises:
            TensorError: a BOOL holds other bytes than 0 and 1, or the file has become shorter.
        """
        entry = self.header.entries[name]
        size = DTYPES[entry.dtype].itemsize
        step = size * (numbers or max(1, BLOCK_BYTES // size))
        buffer = bytearray(min(step, entry.end - entry.begin))
        for begin in range(entry.begin, entry.end, step):
            count = min(step, entry.end - begin)
            self._stream.seek(self.header.start + begin)
            part = memoryview(buffer)[:count]
            if self._stream.readinto(part) != count:  # type: ignore[attr-defined]
                raise TensorError("the file ends before it does", name)
            yield view_tensor(name, part, 0, Entry(entry.dtype, (count // size,), 0, count))

    def check(self) -> str:
        """Check every number; gives the digest of the content.

        It is the SHA-256 of the tensors' names, dtypes, shapes and numbers, whatever order they are in: that of the
        document without metadata that has them sorted by name.

        Raises:
            TensorError: a number is NaN or infinite, or as ``blocks``.
        """
        head, order = write_header(dict(sorted(self.specs.items())))
        digest = hashlib.sha256(head)
        for name in order:
            for block in self.blocks(name):
                check_array(name, block)
                digest.update(block.view("u1").data)
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


class Upload(DurableFile):
    """A safetensors document on its way to the disk: its pieces are written as they come, with metadata of ours.

    Attributes:
        digest: of its content, once it is complete.
        metadata: what is written with it, once the header came.
    """

    def __init__(
        self,
        folder: Path,
        metadata: Callable[[dict[str, str]], dict[str, str]],
        digest_field: str,
        *,
        least_tensors: int = 1,
    ) -> None:
        """Begin one.

        Args:
            folder: where it will be.
            metadata: gives what is written instead of the metadata that came; it may refuse that.
            digest_field: the field of the metadata that has the digest.
            least_tensors: how many it must have.
        """
        super().__init__(folder, "upload")
        self.digest = ""
        self.metadata: dict[str, str] = {}
        self._metadata_of, self._digest_field, self._least = metadata, digest_field, least_tensors
        self._start = bytearray()
        self._header: Header | None = None
        self._left = 0

    def write(self, piece: Buffer) -> None:
        """Take the next piece, of any size.

        Raises:
            TensorError: the header is malformed, or more comes than it says.
            InvalidError: the metadata cannot be taken.
        """
        if self._header is None:
            self._start += piece
            if len(self._start) < PREFIX or len(self._start) < PREFIX + header_length(self._start):
                return
            piece = self._read_start()
        if len(piece) > self._left:
            raise TensorError("the safetensors document is followed by other bytes")
        self._left -= len(piece)
        self.stream.write(piece)

    def finish(self) -> None:
        """Check what came.

        Raises:
            TensorError: it is cut off, or a number is NaN or infinite.
        """
        if self._header is None or self._left:
            raise TensorError("the safetensors document is cut off")
        self.stream.flush()
        self.digest = Document(self.stream).check()
        self.metadata[self._digest_field] = self.digest
        self.stream.seek(0)
        self.stream.write(encode_header(self._header, self.metadata))
        if self._header.length > BLOCK_BYTES:
            self.sync()  # what takes long, before the folder is locked

    def _read_start(self) -> Buffer:
        """Write our header; gives the numbers that came with theirs."""
        header = read_header(self._start)
        check_count(len(header.entries), self._least)
        # The digest is known at the end: until then its place is kept.
        self.metadata = {**self._metadata_of(header.metadata), self._digest_field: "0" * 64}
        self.stream.write(encode_header(header, self.metadata))
        self._header, self._left = header, header.length - header.start
        rest = memoryview(self._start)[header.start :]
        self._start = bytearray()
        return rest
