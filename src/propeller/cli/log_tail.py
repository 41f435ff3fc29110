"""The logs of a stack as they are read and followed: files of a state folder, or services elsewhere that are asked."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TextIO

from propeller.errors import UnavailableError
from propeller.process.log_file import newest_first
from propeller.process.log_memory import MAX_LINES
from propeller.sdk import Propeller


class LogTail(Protocol):
    """The whole lines of a log; those that come later with the next call."""

    def lines(self) -> Iterator[str]:
        """What is new, without line ends."""

    def close(self) -> None:
        """Read no more."""


class ServiceTail:
    """The log of a service that is asked for it: the newest lines that it remembers, and what follows."""

    def __init__(self, fl: Propeller, service: str) -> None:
        """Ask for what there is.

        Raises:
            PropellerError: the service does not answer, or not this caller.
        """
        self._fl, self._service = fl, service
        self._is_away = False
        self._seen = ""
        self._first, self._next = fl.log_lines(service, lines=MAX_LINES)

    def lines(self) -> Iterator[str]:
        """What is new; of a service that does not answer nothing, which is said once."""
        found, self._first = self._first, []
        while True:
            for line in found:
                self._seen = line
                yield line
            if found and len(found) < MAX_LINES:
                return
            try:
                found, then = self._fl.log_lines(self._service, lines=MAX_LINES, after=self._next)
            except UnavailableError as error:
                if not self._is_away:
                    print(f"{self._service}: {error}", file=sys.stderr)
                self._is_away = True
                return
            self._is_away = False
            if then.partition("-")[0] != self._next.partition("-")[0]:
                found = _behind(found, self._seen)  # another process, which begins with what is in its file
            self._next = then
            if not found:
                return

    def close(self) -> None:
        """Nothing is held open."""


def _behind(lines: list[str], seen: str) -> list[str]:
    """The lines behind the last one that was seen; all, if that is not among them."""
    for number in range(len(lines) - 1, -1, -1):
        if lines[number] == seen:
            return lines[number + 1 :]
    return lines


class FileTail:
    """The log of a service on this machine, in files of which the newest is ``file``."""

    def __init__(self, file: Path) -> None:
        """Begin with the oldest file.

        Raises:
            FileNotFoundError: there is none.
        """
        self._file = file
        oldest = next((path for path in reversed(list(newest_first(file))) if path.exists()), file)
        self._stream: TextIO = oldest.open(encoding="utf-8", errors="replace")

    def lines(self) -> Iterator[str]:
        """What is new, without line ends."""
        while True:
            # Looked for first: what is written into a file after that was written before the next one began.
            next_file = self._next_file()
            yield from self._read()
            if next_file is None:
                return
            self._stream.close()
            self._stream = next_file

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _read(self) -> Iterator[str]:
        while True:
            position = self._stream.tell()
            text = self._stream.readline()
            if not text.endswith("\n"):
                self._stream.seek(position)  # half a line: its rest is still being written
                return
            yield text.rstrip("\n")

    def _next_file(self) -> TextIO | None:
        """The file after the one that is read; ``None`` if that is the newest."""
        known = os.fstat(self._stream.fileno())
        newer = None
        for stream in _open_files(self._file):
            if os.path.samestat(os.fstat(stream.fileno()), known):
                stream.close()
                return newer
            if newer is not None:
                newer.close()
            newer = stream
        return newer  # ours was removed meanwhile: the oldest that is left


def _open_files(file: Path) -> Iterator[TextIO]:
    for path in newest_first(file):
        try:
            stream = path.open(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue
        yield stream
