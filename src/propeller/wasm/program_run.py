"""What a sandbox is asked to run, within which limits, and what comes back."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from propeller.errors import InvalidError

MIB = 1024 * 1024

RUNTIME_BYTES = 192 * MIB
"""Writable memory of a task's process beside the linear memories: interpreter, runtime, thread stacks, the module's own."""

_UNITS = {
    "fuel": "instructions",
    "table_elements": "elements",
    "out_files": "files",
    "state_files": "files",
    "threads": "threads",
    "descriptors": "descriptors",
}


class ProgramError(InvalidError):
    """A program cannot be taken: its bytes, its digest, its compilation or its size; the text says which.

    ``limit`` names the limit that was hit, if it was one.
    """

    def __init__(self, text: str, limit: str | None = None) -> None:
        super().__init__(text)
        self.limit = limit

    @classmethod
    def over_limit(cls, limit: str, value: float) -> Self:
        """The error of a program that is over a limit."""
        return cls(limit_error(limit, value), limit)


@dataclass(frozen=True)
class Limits:
    """What one task may use. Over a limit the task fails with an error that starts with the limit's name.

    ``wall_time_s`` counts from the start of the task's process, whatever it does (a program that sits in a
    host call is ended too). ``memory_bytes`` bounds each linear memory and, with a margin for the runtime, the
    whole process. ``fuel`` counts Wasm instructions (about one each), the same on every machine; None: not
    counted. ``table_elements`` bounds each table. ``tensor_bytes`` and ``tensor_handles`` bound what a program holds on
    the host at one time. ``out_files`` and ``state_files`` count folders too. ``compile_s``, of processor time, and ``compile_memory_bytes`` bound the
    compilation of a program.
    """

    wall_time_s: float = 300.0
    memory_bytes: int = 512 * MIB
    fuel: int | None = None
    stdout_bytes: int = 8 * MIB
    stderr_bytes: int = MIB
    out_bytes: int = 256 * MIB
    out_files: int = 64
    state_bytes: int = 64 * MIB
    state_files: int = 64
    module_bytes: int = 64 * MIB
    table_elements: int = 1_000_000
    tensor_bytes: int = 512 * MIB
    tensor_handles: int = 100_000
    threads: int = 64
    descriptors: int = 256
    compile_s: float = 60.0
    compile_memory_bytes: int = 2048 * MIB

    def lowered(self, asked: Mapping[str, float] | None) -> "Limits":
        """These limits, each replaced by what is asked for where that is less."""
        mine = vars(self)
        lower: dict[str, Any] = {
            name: value for name, value in (asked or {}).items() if mine[name] is None or value < mine[name]
        }
        return replace(self, **lower) if lower else self

    def process_bytes(self, *, host_tensors: bool) -> int:
        """How much writable memory the process of a task may have, whose program uses the host's tensors or not."""
        return self.memory_bytes + RUNTIME_BYTES + (2 * self.tensor_bytes if host_tensors else 0)

    def error(self, limit: str) -> str:
        """The error of a task that went over one of them."""
        return limit_error(limit, vars(self)[limit])


@dataclass(frozen=True)
class StateFolder:
    """What a run sees as ``/state``: its own copy of a folder, which is kept elsewhere if the run succeeds.

    Attributes:
        source: what is copied; None: it begins empty.
        target: where the copy is moved when the run has succeeded and left or was given something: a path on the file system
            of the sandbox's folder, at which there is nothing yet. None: nothing is kept, and the program cannot change it.
    """

    source: Path | None
    target: Path | None


@dataclass(frozen=True)
class ProgramRun:
    """One run of a program that the sandbox holds.

    ``files`` are placed read-only in ``/in`` (names without folders): contents, or paths of files that are linked there and
    must not change meanwhile. ``export`` names a function to call with
    ``inputs``, texts, one a parameter; without it the program is a command. ``state`` is what it sees as ``/state``; None:
    there is none. ``large_files`` is a folder, made if need be, on the file system of the sandbox's folder, into which files of
    ``/out`` are moved that are longer than ``large_bytes``; None: all are read.
    """

    id: str
    digest: str
    env: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    export: str | None = None
    inputs: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    state: StateFolder | None = None
    large_files: Path | None = None
    large_bytes: int = 0


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended: ``error`` is None on success.

    ``limit`` names the limit that ended it. ``exit_code`` is the program's own, when it ended by itself. ``value`` is
    the result of a called function, as text. ``out_files`` maps paths below ``/out`` to contents (only on success), ``large_files`` those that were moved to where they are.
    ``metrics``: ``start_ms`` (asked → program entered), ``run_ms``, ``total_ms``, ``cpu_ms``, ``memory_peak_bytes`` (of
    the whole process), ``fuel`` (used, when limited), ``tensor_steps`` (done on the host); ``compile_ms`` when this run had to
    compile first.
    """

    error: str | None
    limit: str | None = None
    exit_code: int | None = None
    stdout: bytes = b""
    value: str | None = None
    out_files: Mapping[str, bytes] = field(default_factory=dict)
    large_files: Mapping[str, Path] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


def limit_error(limit: str, value: float) -> str:
    """The error of what went over a limit: the limit's name, its value and what it counts."""
    unit = "s" if limit.endswith("_s") else "bytes" if limit.endswith("_bytes") else _UNITS.get(limit, "")
    shown = f"{value:g}" if value % 1 else str(int(value))
    return f"{limit}: over the limit of {shown} {unit}".rstrip()
