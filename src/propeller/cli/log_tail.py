"""Reading a log while it is written and set aside: from its oldest file to its newest, each line once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from propeller.process.log_file import newest_first


class LogTail:
    """The whole lines of a log; those that come later with the next call."""

    def __init__(self, file: Path) -> None:
        """Begin with the oldest file.

        Raises:
            FileNotFoundError: there is none.
        """
        self._file = file
        oldest = next((place for place in reversed(list(newest_first(file))) if place.exists()), file)
        self._stream: TextIO = oldest.open(encoding="utf-8", errors="replace")

    def lines(self) -> Iterator[str]:
        """What is new, without line ends."""
        while True:
            # Looked for first: what is written into a file after that was written before the next one began.
            following = self._following()
            yield from self._read()
            if following is None:
                return
            self._stream.close()
            self._stream = following

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

    def _following(self) -> TextIO | None:
        """The file after the one that is read; ``None`` if that is the newest."""
        known = os.fstat(self._stream.fileno())
        newer = None
        for stream in _opened(self._file):
            if os.path.samestat(os.fstat(stream.fileno()), known):
                stream.close()
                return newer
            if newer is not None:
                newer.close()
            newer = stream
        return newer  # ours was removed meanwhile: the oldest that is left


def _opened(file: Path) -> Iterator[TextIO]:
    for place in newest_first(file):
        try:
            stream = place.open(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue
        yield stream
