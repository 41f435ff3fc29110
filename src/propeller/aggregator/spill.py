"""What an aggregation keeps until it has everything: in memory while it is little, else in files that no crash leaves behind."""

import contextlib
import errno
import mmap
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from propeller.errors import TooLargeError, UnavailableError
from propeller.process.files import Buffer

MEMORY_BYTES = 32 * 1024 * 1024
"""Up to this much a store keeps in memory."""

_PIECE_BYTES = 1024 * 1024


class SpillSpace:
    """Room on disk for the aggregations that run at a time.

    Files have no names: the system frees them when the process that has them open ends, however it ends.
    """

    def __init__(self, folder: Path | None, max_bytes: int) -> None:
        """Have ``max_bytes`` in ``folder``, made when it is needed; ``None``: the system's temporary folder."""
        self._folder, self._max_bytes, self._used = folder, max_bytes, 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """What is taken now."""
        return self._used

    def open_file(self) -> IO[bytes]:
        """A new file.

        Raises:
            UnavailableError: the folder cannot be used.
        """
        with self.errors():
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryFile(dir=self._folder)

    def take(self, size: int, already: int) -> None:
        """Take room for ``size`` bytes more; the one who asks has ``already`` taken so many.

        Raises:
            TooLargeError: one aggregation would need more than there is.
            UnavailableError: others have it now.
        """
        if already + size > self._max_bytes:
            raise TooLargeError(
                f"the aggregation needs more than {self._max_bytes} bytes on disk, the limit of AGGREGATOR_SPILL_BYTES; "
                "raise it, or choose a strategy that streams, such as fedavg"
            )
        with self._lock:  # each aggregation works in a thread
            if self._used + size > self._max_bytes:
                raise UnavailableError(
                    f"other aggregations have taken {self._used} of the {self._max_bytes} bytes of AGGREGATOR_SPILL_BYTES"
                )
            self._used += size

    def give_back(self, size: int) -> None:
        """Room that is free again."""
        with self._lock:
            self._used -= size

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raises the system's errors with the setting that a person would change."""
        try:
            yield
        except OSError as error:
            where = self._folder or tempfile.gettempdir()
            remedy = (
                "free some of it" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "set AGGREGATOR_SPILL"
            )
            raise UnavailableError(
                f"the folder {where} for updates cannot be used: {error.strerror}; {remedy}"
            ) from error


class SpillStore:
    """Documents one after another, to be read again by their numbers. Its methods block on the disk.

    What ``view`` gave stays readable after ``clear`` and ``close``.
    """

    def __init__(self, space: SpillSpace, *, memory_bytes: int = MEMORY_BYTES) -> None:
        """Start empty; ``memory_bytes`` is the most that is kept in memory."""
        self._space, self._memory_bytes = space, memory_bytes
        self._held: list[Buffer] | None = []
        self._file: IO[bytes] | None = None
        self._ends: list[int] = []
        self._taken = 0

    @property
    def size(self) -> int:
        """Bytes of all documents."""
        return self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, document: Buffer) -> None:
        """Keep a document, which must not change any more.

        Raises:
            TooLargeError, UnavailableError: there is no room on disk.
        """
        size = len(document)
        if self._held is not None:
            if self.size + size <= self._memory_bytes:
                self._held.append(document)
                self._ends.append(self.size + size)
                return
            held, self._held = self._held, None
            self._file = self._space.open_file()
            for each in held:
                self._write(each)
        self._write(document)
        self._ends.append(self.size + size)

    def view(self, number: int) -> memoryview:
        """A document; of a file it is a mapping, read as it is used."""
        start, end = self._ends[number - 1] if number else 0, self._ends[number]
        if self._held is not None:
            return memoryview(self._held[number])
        if self._file is None:
            raise ValueError("this store is closed")
        # A mapping for each: it leaves memory with the last array on it.
        aligned = start - start % mmap.ALLOCATIONGRANULARITY
        with self._space.errors():
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), end - aligned, access=mmap.ACCESS_READ, offset=aligned)
        return memoryview(mapped)[start - aligned :]

    def pieces(self) -> Iterator[bytes]:
        """All documents, in pieces."""
        for document in self._held or ():
            yield bytes(document)
        if self._file is not None:  # read, not mapped: nobody looks at it twice
            self._file.seek(0)
            while piece := self._file.read(_PIECE_BYTES):
                yield piece

    def clear(self) -> None:
        """Start again, empty."""
        self.close()
        self._held = []

    def close(self) -> None:
        """Let go of everything; the disk is free once nothing that ``view`` gave is used any more."""
        if self._file is not None:
            self._file.close()
        # Also without a file: a thread that was writing when it was closed may have taken room since.
        self._space.give_back(self._taken)
        self._taken = 0
        self._file = self._held = None
        self._ends = []

    def __del__(self) -> None:
        # An answer whose reader went away before it was begun is closed by nobody.
        self.close()

    def _write(self, document: Buffer) -> None:
        if self._file is None:
            raise ValueError("this store is closed")
        self._space.take(len(document), self._taken)
        self._taken += len(document)
        with self._space.errors():
            self._file.write(document)
