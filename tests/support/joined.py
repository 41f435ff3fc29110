"""A device that has joined a stack, as a person makes one: ``propeller join`` in a process of its own."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from support.command_server import Command
from support.net import wait_until
from support.python_programs import COMPILED
from support.stack import Up, propeller


class Joined:
    """A running ``propeller join``."""

    def __init__(self, process: Command, output: Path) -> None:
        self.process, self._output = process, output

    @property
    def output(self) -> str:
        """What it has printed and logged."""
        return self._output.read_text(errors="replace")


@contextlib.contextmanager
def joined(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Joined]:
    """Run ``propeller join`` in a folder for the length of the block."""
    output = folder / f"join-{len(list(folder.glob('join-*.out')))}.out"
    with output.open("wb") as stream:
        process = Command(
            ["join", *arguments],
            {**os.environ, "PROPLET_CACHE": str(COMPILED), **(env or {})},
            stdout=stream,
            stderr=stream,
            folder=folder,
        )
    try:
        yield Joined(process, output)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def states(up: Up) -> dict[str, tuple[str, bool]]:
    """Device name → its state, and whether it is alive."""
    done = propeller("device", "list", "--json", "--state", str(up.folder))
    assert done.returncode == 0, done.stderr
    return {one["name"]: (one["state"], one["alive"]) for one in json.loads(done.stdout)}


def wait_alive(up: Up, name: str, device: Joined) -> None:
    """Wait until the manager hears a device."""

    def is_alive() -> bool:
        assert device.process.poll() is None, device.output
        return states(up).get(name) == ("joined", True)

    wait_until(is_alive, timeout=30, what=f"{name} is alive")
