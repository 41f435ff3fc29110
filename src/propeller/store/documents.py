"""Safetensors documents in files, read by blocks: a model need not fit into memory."""

import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from propeller.fl.tensors import DTYPES, Array, Specs, TensorError, TensorSpec
from propeller.fl.tensors.base import check_array
from propeller.fl.tensors.safetensors import PREFIX, header_length, read_header, view_tensor
from propeller.tensors.safetensors import Entry, write_header

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

    def map(self) -> memoryview:
        """The whole document, read from the file as it is looked at; the file must stay as it is meanwhile."""
        return memoryview(mmap.mmap(self._stream.fileno(), 0, access=mmap.ACCESS_READ))

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
