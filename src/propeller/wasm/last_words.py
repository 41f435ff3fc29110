"""Why a program failed, in its own words: of what it wrote to standard error, the message and not the frames and notes behind it."""

import re
from collections import deque

_MAX_LINES = 200
"""That are looked at: a stack has some tens."""

_RUST = re.compile(r"^thread '.*?'(?: \(\d+\))? panicked at (.+)$")
_RUST_ENDS = ("note: ", "stack backtrace:")
_GO = ("panic: ", "fatal error: ")
_GO_STACK = ("goroutine ", "[signal ")
_PYTHON = "Traceback (most recent call last):"
_PYTHON_BETWEEN = ("During handling of the above exception", "The above exception was the direct cause")


_MEMORY = re.compile(
    r"(?i:out of memory|cannot allocate memory)|(?:^|: )MemoryError(?:$|:)|\bmemory allocation of \d+ bytes failed"
    r"|\bbad_alloc\b|\bOutOfMemory(?:Error|Exception)?\b"
)
"""What programs say whose memory does not grow: in C and Go, Python, Rust, C++, Zig and languages that are like Java."""


def tells_of_memory(reason: str) -> bool:
    """Whether a program's message says that it was refused memory."""
    return _MEMORY.search(reason) is not None


class LastWords:
    """The last lines of a program's standard error."""

    def __init__(self, max_characters: int) -> None:
        """``max_characters`` bounds each line, and the reason."""
        self._max = max_characters
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)

    def add(self, line: str) -> str:
        """Take a line; it is given back no longer than a line may be."""
        line = line[: self._max]
        self._lines.append(line)
        return line

    @property
    def reason(self) -> str:
        """The message of a panic or an exception, else the last line that is not empty; empty if it said nothing."""
        lines = [line.rstrip() for line in self._lines]
        found = _panic_of_go(lines) or _panic_of_rust(lines) or _exception(lines)
        return (found or next((line for line in reversed(lines) if line), "")).strip()[: self._max]


def _panic_of_go(lines: list[str]) -> str | None:
    for at in range(len(lines) - 1, -1, -1):
        if lines[at].startswith(_GO) and any(line.startswith(_GO_STACK) for line in lines[at + 1 :]):
            return lines[at]
    return None


def _panic_of_rust(lines: list[str]) -> str | None:
    for at in range(len(lines) - 1, -1, -1):
        if found := _RUST.match(lines[at]):
            place = found[1]
            if not place.endswith(":"):  # before Rust 1.73 the message is on this line
                return f"panicked at {place}"
            message = []
            for line in lines[at + 1 :]:
                if line.startswith(_RUST_ENDS):
                    break
                message.append(line)
            return f"panicked at {place} {' '.join(message)}".strip()
    return None


def _exception(lines: list[str]) -> str | None:
    """The line that ends the last traceback; what comes behind it are warnings."""
    begins = [at for at, line in enumerate(lines) if line == _PYTHON]
    for line in lines[begins[-1] + 1 :] if begins else ():
        if line and not line.startswith((" ", "\t", *_PYTHON_BETWEEN)):
            return line
    return None
