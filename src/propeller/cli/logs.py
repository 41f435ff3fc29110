"""``propeller logs``: the lines of every service, merged by time."""

import heapq
import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from propeller.cli.log_tail import LogTail
from propeller.process.run import StartError
from propeller.stack.services import SERVICES
from propeller.stack.state_folder import StateFolder

_COLOURS = {"ERROR": "red", "CRITICAL": "red", "WARNING": "yellow", "DEBUG": "dim"}
_POLL_S = 0.2

_CONTAINERS = {spec.container_name: spec.name for spec in SERVICES}
"""Services by their names in deploy/compose.yaml, which are taken as well."""


@dataclass(order=True)
class Line:
    """A line of a log: when, which service, what."""

    time: str
    service: str = field(compare=False)
    text: str = field(compare=False)

    def about(self, round_id: str | None) -> bool:
        """Whether the line names a round (or none is asked for); ``r-1`` is not ``r-10``."""
        if round_id is None:
            return True
        return re.search(rf"(?<![A-Za-z0-9_.-]){re.escape(round_id)}(?![A-Za-z0-9_-])", self.text) is not None


def show_logs(
    folder: Path, *, round_id: str | None, services: list[str], follow: bool, as_json: bool
) -> None:
    """Print what is in the logs and, with ``follow``, what comes after.

    Raises:
        StartError: there are no logs, or none of a service that is asked for.
    """
    files = _files(folder, services)
    console = Console(highlight=False, soft_wrap=True)
    tails = {name: LogTail(file) for name, file in files.items()}
    try:
        for line in heapq.merge(*(_read(name, tail) for name, tail in tails.items())):
            _show(console, line, round_id, as_json=as_json)
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
    names = [_own_name(name) for name in services]
    unknown = [name for name in names if name not in found and name != "proplet"]
    if unknown:
        raise StartError(f"no log of {', '.join(unknown)}; there are {', '.join(found)}")
    return {name: file for name, file in found.items() if not names or _is_asked_for(name, names)}


def _own_name(name: str) -> str:
    name = name.replace("_", "-")
    return _CONTAINERS.get(name, name)


def _is_asked_for(service: str, names: list[str]) -> bool:
    return service in names or ("proplet" in names and service.startswith("proplet-"))


def _read(name: str, tail: LogTail) -> Iterator[Line]:
    last = ""
    for text in tail.lines():
        last = _time_of(text) or last
        yield Line(last, name, text)


def _time_of(text: str) -> str | None:
    try:
        return str(json.loads(text)["time"])
    except (ValueError, KeyError, TypeError):
        return None


def _show(console: Console, line: Line, round_id: str | None, *, as_json: bool) -> None:
    if not line.about(round_id):
        return
    if as_json:
        print(line.text, flush=True)
        return
    try:
        fields = json.loads(line.text)
        level, message = fields.pop("level"), fields.pop("msg")
    except (ValueError, KeyError, TypeError, AttributeError):
        console.print(Text(f"{line.service:<15} {line.text}"))
        return
    for known in ("time", "service", "component"):
        fields.pop(known, None)
    style = _COLOURS.get(level, "")
    rest = " ".join(f"{key}={value}" for key, value in fields.items())
    console.print(
        Text.assemble(
            (line.time[11:23], "dim"),
            f" {line.service:<15} ",
            (f"{level:<7} {message}", style),
            (f"  {rest}", "dim"),
        )
    )
