"""``propeller logs``: the lines of every service, merged by time."""

import heapq
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from propeller.cli.terminal import Terminal
from propeller.errors import StartError
from propeller.process.control_characters import escape_line
from propeller.process.log_file import newest_first
from propeller.stack.services import SERVICES
from propeller.stack.state_folder import StateFolder


class LogTail:
    """The whole lines of a log; those that come later with the next call."""

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


_COLOURS = {"ERROR": "red", "CRITICAL": "red", "WARNING": "yellow", "DEBUG": "dim"}
_POLL_S = 0.2

_CONTAINERS = {spec.container_name: spec.name for spec in SERVICES}
"""Services by their names in deploy/compose.yaml, which are taken as well."""


@dataclass(order=True)
class LogLine:
    """A line of a log: when, which service, what."""

    time: str
    service: str = field(compare=False)
    text: str = field(compare=False)

    def mentions(self, round_id: str | None) -> bool:
        """Whether the line names a round (or none is asked for); ``r-1`` is not ``r-10``."""
        if round_id is None:
            return True
        return re.search(rf"(?<![A-Za-z0-9_.-]){re.escape(round_id)}(?![A-Za-z0-9_-])", self.text) is not None


def show_logs(
    folder: Path, *, round_id: str | None, services: list[str], follow: bool, as_json: bool
) -> None:
    """Print what is in the logs and, with ``follow``, what comes after.

    Raises:
        StartError: there are no logs, or none of a service that is asked for, or no line names the round.
    """
    files = _files(folder, services)
    console = Terminal(soft_wrap=True)
    tails = {name: LogTail(file) for name, file in files.items()}
    try:
        found = False
        for line in heapq.merge(*(_read(name, tail) for name, tail in tails.items())):
            found = _show(console, line, round_id, as_json=as_json) or found
        if round_id is not None and not found and not follow:
            raise StartError(
                f"--round {round_id}: no line of {', '.join(files)} names such a round; 'propeller status' has the newest"
            )
        while follow:
            time.sleep(_POLL_S)
            fresh = [line for name, tail in tails.items() for line in _read(name, tail)]
            for line in sorted(fresh):
                _show(console, line, round_id, as_json=as_json)
    except BrokenPipeError:
        pass  # the reader (head, grep -q) has seen enough
    finally:
        for tail in tails.values():
            tail.close()


def _files(folder: Path, services: Iterable[str]) -> dict[str, Path]:
    found = {file.stem: file for file in sorted(StateFolder(folder).log_file("x").parent.glob("*.log"))}
    if not found:
        raise StartError(
            f"there are no logs under {folder.absolute()}; start a stack with 'propeller up --state {folder}'"
        )
    names = [_service_name(name) for name in services]
    unknown = [name for name in names if name not in found and name != "proplet"]
    if unknown:
        raise StartError(f"there is no log of {', '.join(unknown)}; choose from {', '.join(found)}")
    return {name: file for name, file in found.items() if not names or _is_wanted(name, names)}


def _service_name(name: str) -> str:
    name = name.replace("_", "-")
    return _CONTAINERS.get(name, name)


def _is_wanted(service: str, names: list[str]) -> bool:
    return service in names or ("proplet" in names and service.startswith("proplet-"))


def _read(name: str, tail: LogTail) -> Iterator[LogLine]:
    last = ""
    for text in tail.lines():
        last = _time_of(text) or last
        yield LogLine(last, name, text)


def _time_of(text: str) -> str | None:
    try:
        return str(json.loads(text)["time"])
    except (ValueError, KeyError, TypeError):
        return None


def _show(console: Console, line: LogLine, round_id: str | None, *, as_json: bool) -> bool:
    """Print a line if it is of the round; returns whether it is."""
    if not line.mentions(round_id):
        return False
    if as_json:
        print(escape_line(line.text), flush=True)
        return True
    try:
        fields = json.loads(line.text)
        level, message = fields.pop("level"), fields.pop("msg")
    except (ValueError, KeyError, TypeError, AttributeError):
        console.print(Text(f"{line.service:<15} {escape_line(line.text)}"))
        return True
    for known in ("time", "service", "component"):
        fields.pop(known, None)
    style = _COLOURS.get(level, "")
    rest = escape_line(" ".join(f"{key}={value}" for key, value in fields.items()))
    console.print(
        Text.assemble(
            (escape_line(line.time[11:23]), "dim"),
            f" {line.service:<15} ",
            (escape_line(f"{level:<7} {message}"), style),
            (f"  {rest}", "dim"),
        )
    )
    return True
