"""A stack run as a person runs it: the ``propeller up`` command in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from support import command_server
from support.command_server import Command
from support.python_programs import COMPILED

PROPELLER = [sys.executable, "-m", "propeller"]

OWN_PROGRAMS = {"PROPLET_CACHE": ""}
"""The environment of a stack that has no program yet, as that of a new machine: its proplets fetch each one."""


class Up:
    """A running ``propeller up``."""

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes] | Command", output: Path) -> None:
        self.folder, self.process, self._output = folder, process, output

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._output.read_text(errors="replace")

    @property
    def stack(self) -> dict[str, Any]:
        """``stack.json``."""
        found: dict[str, Any] = json.loads((self.folder / "stack.json").read_text())
        return found

    def url(self, service: str) -> str:
        """The address of a service."""
        return str(self.stack["services"][service]["url"])

    def ids(self) -> list[str]:
        """The client ids of the proplets, in order."""
        clients = self.stack["clients"]
        return [clients[name]["id"] for name in sorted(clients) if name.startswith("proplet-")]

    def processes(self) -> list[psutil.Process]:
        """It and every process below it."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Block until ``stack.json`` is there."""
        end = time.monotonic() + timeout
        while not (self.folder / "stack.json").exists():
            if self.process.poll() is not None:
                raise AssertionError(f"propeller up ended with {self.process.returncode}:\n{self.output}")
            if time.monotonic() > end:
                raise AssertionError(f"not ready after {timeout} s:\n{self.output}")
            time.sleep(0.02)


def start_up(
    folder: Path, *options: str, env: dict[str, str] | None = None, command: Sequence[str] = ()
) -> Up:
    """Start ``propeller up``, or another command that runs a stack, on a folder; the caller ends it.

    What one has compiled, the next one has too; what ``propeller up`` and its services import has been imported before. To see
    them start in interpreters of their own, give the command (``up_at``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    output = folder.with_name(f"{folder.name}-{time.monotonic_ns()}.out")
    variables = {**os.environ, "PROPLET_CACHE": str(COMPILED), **(env or {})}
    process: subprocess.Popen[bytes] | Command
    with output.open("wb") as stream:
        if command:
            process = subprocess.Popen(
                [*command, *options],
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=variables,
            )
        else:
            process = Command(
                ["up", "--state", str(folder), *options],
                variables,
                stdout=stream,
                stderr=stream,
                session=True,
            )
    return Up(folder, process, output)


def up_at(folder: Path) -> list[str]:
    """The command of a stack as a shell runs it."""
    return [*PROPELLER, "up", "--state", str(folder)]


@contextmanager
def running_stack(
    folder: Path, *options: str, env: dict[str, str] | None = None, command: Sequence[str] = ()
) -> Iterator[Up]:
    """A stack on free ports for the length of the block."""
    up = start_up(folder, "--ports", "auto", *options, env=env, command=command)
    try:
        up.wait_ready()
        yield up
    finally:
        end(up)


def end(up: Up) -> None:
    """Ask it to end; after 15 s kill it and what it left."""
    try:
        below = up.processes()
    except psutil.NoSuchProcess:
        below = []
    if up.process.poll() is None:
        up.process.send_signal(signal.SIGTERM)
    try:
        up.process.wait(15)
    except subprocess.TimeoutExpired:
        up.process.kill()
        up.process.wait()
    for process in below:
        if process.is_running() and process.pid != up.process.pid:
            process.kill()


def propeller(
    *arguments: str, timeout: float = 90.0, stdin: str = "", env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the command to its end."""
    return command_server.run(list(arguments), {**os.environ, **(env or {})}, timeout, stdin)
