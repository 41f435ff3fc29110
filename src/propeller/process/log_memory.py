"""The newest lines of a process's log, in memory: what a service answers whoever asks for its log from elsewhere.

A process that is started again begins with what the one before it left in the log file, if there is one: the reason for its end is there.
"""

import io
import json
import logging
import secrets
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from propeller.process.log_file import newest_first

MAX_LINES, MAX_BYTES = 2000, 1024 * 1024
"""How many lines are kept, and how many characters of them all."""

MAX_LINE = 64 * 1024
"""Characters of a line; of a longer one the start is kept, so that one line does not push out all the others."""

_EARLIER_BYTES = 256 * 1024


class LogPart(NamedTuple):
    """Some lines of a log.

    Attributes:
        next: where the lines that follow begin.
        lines: as they were written, without line ends.
    """

    next: str
    lines: list[str]


class LogMemory:
    """Keeps the newest lines that are written to it. Threads may share it."""

    def __init__(self, earlier: Iterable[str] = ()) -> None:
        """Begin with lines of an earlier process."""
        self._process = secrets.token_hex(4)
        self._lines: deque[str] = deque()
        self._size, self._count = 0, 0
        self._lock = threading.Lock()
        for line in earlier:
            self._keep(line)

    def write(self, text: str) -> None:
        """Keep whole lines."""
        with self._lock:
            for line in text.splitlines():
                self._keep(line)

    def _keep(self, line: str) -> None:
        if len(line) > MAX_LINE:
            line = f"{line[:MAX_LINE]}… ({len(line)} characters)"
        self._lines.append(line)
        self._count += 1
        self._size += len(line)
        while len(self._lines) > MAX_LINES or self._size > MAX_BYTES:
            self._size -= len(self._lines.popleft())

    def read(self, limit: int, level: int = 0, after: str | None = None) -> LogPart:
        """Lines of a level of ``logging`` or above, oldest first; what is no log line, as a traceback, is of every level.

        Args:
            limit: how many at most: the newest, or the first that follow ``after``.
            level: as ``logging.WARNING``.
            after: ``next`` of an answer of before. That of another process counts for nothing.
        """
        with self._lock:
            lines, count = list(self._lines), self._count
        if after is None:
            newest = list(islice(_of_level(reversed(lines), level), limit))
            return LogPart(f"{self._process}-{count}", newest[::-1])
        first = count - len(lines)
        process, _, number = after.partition("-")
        begin = max(int(number) - first, 0) if process == self._process else 0
        numbered = enumerate(lines[begin:], first + begin)
        found = list(islice(((at, line) for at, line in numbered if level_of(line) >= level), limit + 1))
        if len(found) > limit:
            found = found[:limit]
            count = found[-1][0] + 1
        return LogPart(f"{self._process}-{count}", [line for _number, line in found])


def level_of(line: str) -> int:
    """The level of a line, as ``logging`` numbers them; what is no log line, as a traceback, is above all."""
    try:
        return logging.getLevelNamesMapping()[json.loads(line)["level"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return logging.CRITICAL


def _of_level(lines: Iterable[str], level: int) -> Iterator[str]:
    return (line for line in lines if level_of(line) >= level)


def read_end(file: Path) -> list[str]:
    """The newest lines of a log file and those that were set aside; none if there is none, or it cannot be read."""
    content = b""
    for path in newest_first(file):
        try:
            with path.open("rb") as stream:
                size = stream.seek(0, io.SEEK_END)
                stream.seek(max(size - (_EARLIER_BYTES - len(content)), 0))
                content = stream.read() + content
        except OSError:
            break
        if len(content) >= _EARLIER_BYTES:
            _torn, _, content = content.partition(b"\n")
            break
    return content.decode(errors="replace").splitlines()
