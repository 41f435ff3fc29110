"""A log file that is set aside when it is full: ``NAME.log`` is the newest, ``NAME.log.1`` the one before, and so on.

One process writes a log and sets it aside (docs/decisions/0082-one-process-writes-a-log.md). Its standard output and error, and those of
its children, may append to the same file: they go on with the file that they opened.
"""

import contextlib
import io
import itertools
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 16 * 2**20
MAX_OLD_FILES = 4
"""How many files are kept beside the newest."""

_OUTPUTS = (1, 2)
"""Standard output and error: where a process writes what is no log line, as the reason why it cannot start."""


def newest_first(file: Path) -> Iterator[Path]:
    """The paths of a log's files, whether they exist or not.

    A file only ever moves on in this order, so that a reader who follows it misses none that stays.
    """
    yield file
    for number in range(1, MAX_OLD_FILES + 1):
        yield file.with_name(f"{file.name}.{number}")


class LogFile(io.TextIOBase):
    """Appends lines to a file, each at once: a line that the disk does not take, or takes in part, is lost, and no other one with it.

    Threads may share it. The file stays open for as long as the process lives.
    """

    def __init__(self, file: Path, max_bytes: int = MAX_BYTES) -> None:
        """Make the file and its folder where they are missing.

        Raises:
            OSError: it cannot be written to.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._max_bytes = file, max_bytes
        self._rotation = threading.Lock()
        self._is_torn = False
        self._descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, text: str) -> int:
        """Append a text.

        Raises:
            OSError: the disk does not take it.
        """
        line = text.encode("utf-8", "backslashreplace")
        if self._is_full(len(line)):
            # A file that is too long is better than a line that is lost.
            with self._rotation, contextlib.suppress(OSError):
                if self._is_full(len(line)):  # or another thread was first
                    self._rotate()
        if self._is_torn:
            line = b"\n" + line
        self._is_torn = os.write(self._descriptor, line) < len(line)
        return len(text)

    def _is_full(self, more: int) -> bool:
        status = os.fstat(self._descriptor)
        return stat.S_ISREG(status.st_mode) and 0 < status.st_size > self._max_bytes - more

    def _rotate(self) -> None:
        full = os.fstat(self._descriptor)
        if _is_at(self._file, full):  # not if someone moved or removed it
            files = list(newest_first(self._file))
            for newer, older in reversed(list(itertools.pairwise(files))):
                with contextlib.suppress(FileNotFoundError):
                    newer.replace(older)
        fresh = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, stat.S_IMODE(full.st_mode))
        os.fchmod(
            fresh, stat.S_IMODE(full.st_mode)
        )  # a service's umask would take from it what its owner gave to others
        try:
            for output in _OUTPUTS:
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.fstat(output), full):
                        os.dup2(fresh, output)
            # The number stays the same: a thread that writes just now writes into one of the two.
            os.dup2(fresh, self._descriptor, inheritable=False)
        finally:
            os.close(fresh)


def _is_at(file: Path, known: os.stat_result) -> bool:
    try:
        return os.path.samestat(file.stat(), known)
    except FileNotFoundError:
        return False
