"""Lines of a log as a person reads them: the time of day (UTC), the service, the level, the message, and the event's own keys."""

import io
import json
from dataclasses import dataclass
from typing import Final, Self, TextIO

from propeller.process.control_characters import escape_line

COLOURS: Final = {"ERROR": "red", "CRITICAL": "red", "WARNING": "yellow", "DEBUG": "dim"}
"""By level; of others none."""

_CODES: Final = {"red": "\x1b[31m", "yellow": "\x1b[33m", "dim": "\x1b[2m"}
_PLAIN: Final = "\x1b[0m"


@dataclass(frozen=True)
class ReadableLine:
    """The parts of a line; nothing in them acts on a terminal.

    Attributes:
        time: of the day, to the millisecond.
        service: who wrote it; empty if the line does not say.
        level: in capitals.
        message: what happened.
        rest: the event's own keys, as ``key=value``.
    """

    time: str
    service: str
    level: str
    message: str
    rest: str

    @classmethod
    def of(cls, text: str) -> Self | None:
        """Of a line as it is written; ``None``: it is no log line, as a traceback."""
        try:
            fields = json.loads(text)
            time, level, message = str(fields.pop("time", "")), fields.pop("level"), fields.pop("msg")
            service = fields.pop("service", "")
            fields.pop("component", None)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        rest = " ".join(f"{key}={value}" for key, value in fields.items())
        return cls(*(escape_line(str(part)) for part in (time[11:23], service, level, message, rest)))

    @property
    def parts(self) -> list[tuple[str, str]]:
        """What is shown one after the other, and the colour of each."""
        return [
            (self.time, "dim"),
            (f" {self.service:<15} ", ""),
            (f"{self.level:<7} {self.message}", COLOURS.get(self.level, "")),
            (f"  {self.rest}" if self.rest else "", "dim"),
        ]


class ReadableStream(io.TextIOBase):
    """Takes lines of a log and writes them as a person reads them."""

    def __init__(self, stream: TextIO, *, colours: bool) -> None:
        """``colours``: with the control sequences that give the parts of a line theirs."""
        self._stream, self._colours = stream, colours

    def write(self, text: str) -> int:
        """Write whole lines."""
        for line in text.splitlines():
            self._stream.write(f"{self._shown(line)}\n")
        return len(text)

    def flush(self) -> None:
        """As of the stream."""
        self._stream.flush()

    def _shown(self, line: str) -> str:
        found = ReadableLine.of(line)
        if found is None:
            return escape_line(line)
        return "".join(
            f"{_CODES[colour]}{part}{_PLAIN}" if part and colour and self._colours else part
            for part, colour in found.parts
        )
