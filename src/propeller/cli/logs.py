"""``propeller logs``: the lines of every service, merged by time."""

import heapq
import json
import logging
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.text import Text

from propeller.cli.connection import Target
from propeller.cli.log_tail import FileTail, LogTail, ServiceTail
from propeller.cli.terminal import Terminal
from propeller.errors import PropellerError, StartError
from propeller.process.control_characters import escape_line
from propeller.process.log_memory import level_of
from propeller.process.readable_lines import ReadableLine
from propeller.sdk import Propeller
from propeller.sdk.addresses import OPERATED, PORTS, REGISTRY
from propeller.stack.services import SERVICES
from propeller.stack.state_folder import StateFolder

_POLL_S, _POLL_ELSEWHERE_S = 0.2, 1.0

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

    @property
    def level(self) -> int:
        """As ``logging`` numbers them; what is no log line, as a traceback, is above all."""
        return level_of(self.text)


@dataclass(frozen=True)
class Wanted:
    """Which lines are wanted: of a round if one is named, from a level up, the newest of them."""

    round_id: str | None = None
    level: str = "debug"
    last: int | None = None

    def takes(self, line: LogLine) -> bool:
        """Whether a line is one of these, but for how many there are."""
        if not line.mentions(self.round_id):
            return False
        return self.level == "debug" or line.level >= logging.getLevelNamesMapping()[self.level.upper()]


def show_logs(target: Target, services: list[str], wanted: Wanted, *, follow: bool, as_json: bool) -> None:
    """Print what is in the logs and, with ``follow``, what comes after.

    Raises:
        StartError: there are no logs, or none of a service that is asked for, or no line names the round.
        PropellerError: of a stack elsewhere: a service that is asked for does not answer, or not this caller.
    """
    console = Terminal(soft_wrap=True)
    with ExitStack() as stack:
        if target.is_remote:
            tails = _elsewhere(stack.enter_context(target.connect()), services)
        else:
            tails = {name: FileTail(file) for name, file in _files(target.state, services).items()}
        for tail in tails.values():
            stack.callback(tail.close)
        try:
            found = _show_all(console, tails, wanted, as_json=as_json)
            if wanted.round_id is not None and not found and not follow:
                raise StartError(
                    f"--round {wanted.round_id}: no line of {', '.join(tails)} names such a round; 'propeller status' has the newest"
                )
            while follow:
                time.sleep(_POLL_ELSEWHERE_S if target.is_remote else _POLL_S)
                fresh = chain.from_iterable(_read(name, tail) for name, tail in tails.items())
                for line in sorted(filter(wanted.takes, fresh)):
                    _show(console, line, as_json=as_json)
        except BrokenPipeError:
            pass  # the reader (head, grep -q) has seen enough


def _show_all(console: Console, tails: Mapping[str, LogTail], wanted: Wanted, *, as_json: bool) -> bool:
    """Print what is in the logs now; returns whether that is anything."""
    lines = filter(wanted.takes, heapq.merge(*(_read(name, tail) for name, tail in tails.items())))
    found = False
    for line in lines if wanted.last is None else deque(lines, wanted.last):
        found = True
        _show(console, line, as_json=as_json)
    return found


def _elsewhere(fl: Propeller, services: list[str]) -> dict[str, LogTail]:
    """The logs of the services that answer; what others say is printed, unless they were asked for."""
    tails: dict[str, LogTail] = {}
    names = [_service_name(name) for name in services]
    every = (*PORTS, *OPERATED, REGISTRY)
    unknown = [name for name in names if name.replace("-", "_") not in every]
    if unknown:
        raise StartError(
            f"--service {', '.join(unknown)}: of a stack elsewhere only {', '.join(_names_of(every))} can be asked for their logs; "
            "those of the broker, and of devices, are on their machines"
        )
    for name in names:
        if name.replace("-", "_") not in fl.services:
            service = name.replace("-", "_")
            raise StartError(f"--service {name}: its address is not known: give it as --url {service}=URL")
    for name in names or _names_of(fl.services):
        try:
            tails[name] = ServiceTail(fl, name.replace("-", "_"))
        except PropellerError as error:
            if names:
                raise
            print(f"{name}: {error}", file=sys.stderr)
    if not tails:
        raise StartError("no service gives its log")
    return tails


def _names_of(services: Iterable[str]) -> list[str]:
    return [name.replace("_", "-") for name in services]


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


def _show(console: Console, line: LogLine, *, as_json: bool) -> None:
    """Print a line."""
    if as_json:
        print(escape_line(line.text), flush=True)
        return
    found = ReadableLine.of(line.text)
    if found is None:
        console.print(Text(f"{line.service:<15} {escape_line(line.text)}"))
        return
    # A proplet's lines say proplet, and its file which one.
    named = replace(found, service=line.service, time=escape_line(line.time[11:23]))
    console.print(Text.assemble(*named.parts))
