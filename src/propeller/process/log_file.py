"""A log file that is set aside when it is full: ``NAME.log`` is the newest, ``NAME.log.1`` the one before, and so on."""

import contextlib
import fcntl
import io
import itertools
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 16 * 2**20
KEPT = 4
"""Files kept beside the newest."""

_OUTPUTS = (1, 2)
"""Standard output and error: where a process writes what is no log line, as the reason why it cannot start."""


def newest_first(file: Path) -> Iterator[Path]:
    """Where a log's files are, if they are there.

    A file only ever moves on in this order, so that whoever looks at one after the other misses none that stays.
    """
    yield file
    for number in range(1, KEPT + 1):
        yield file.with_name(f"{file.name}.{number}")


class LogFile(io.TextIOBase):
    """Appends lines to a file, each at once and whole: what the disk does not take is gone, and fails no one who writes next.

    The file stays open for as long as the process lives.
    """

    def __init__(self, file: Path, max_bytes: int = MAX_BYTES) -> None:
        """Make the file and its folder where they are missing.

        Raises:
            OSError: it cannot be written to.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._max_bytes = file, max_bytes
        self._turn = threading.Lock()
        self._descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, text: str) -> int:
        """Append a text.

        Raises:
            OSError: the disk does not take it.
        """
        line = text.encode("utf-8", "backslashreplace")
        now = os.fstat(self._descriptor)
        if stat.S_ISREG(now.st_mode) and 0 < now.st_size > self._max_bytes - len(line):
            # A file that is too long is better than a line that is lost. The file's lock is for other processes only.
            with self._turn, contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                try:
                    self._begin_anew(now)
                finally:
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.write(self._descriptor, line)
        return len(text)

    def _begin_anew(self, full: os.stat_result) -> None:
        # Another process with the same log may have done it already.
        if _is_at(self._file, full):
            places = list(newest_first(self._file))
            for place, older in reversed(list(itertools.pairwise(places))):
                with contextlib.suppress(FileNotFoundError):
                    place.replace(older)
        fresh = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, stat.S_IMODE(full.st_mode))
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
