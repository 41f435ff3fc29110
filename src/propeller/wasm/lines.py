"""Standard error, cut into lines as it comes."""

import codecs
from collections.abc import Callable

_LONGEST = 16 * 1024
"""A longer line is handed on in parts of this many characters."""


class Lines:
    """Feeds bytes in, calls back with each whole line, without its end."""

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self._on_line = on_line
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._on_line is None:
            return
        *lines, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
        for line in lines:
            self._on_line(line.removesuffix("\r"))
        while len(self._rest) > _LONGEST:
            self._on_line(self._rest[:_LONGEST])
            self._rest = self._rest[_LONGEST:]

    def end(self) -> None:
        """Hand on what is left without a line end."""
        if self._on_line is not None and self._rest:
            self._on_line(self._rest)
            self._rest = ""
