"""A Ray cluster of processes of this machine, which end with it."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from support.net import free_port, wait_until
from support.python_programs import CACHE_HOME

_START_S, _END_S = 60, 20


class RayProcesses:
    """A head with two processors, and more nodes that are started and killed."""

    def __init__(self, folder: Path) -> None:
        # Ray's sockets are in it, whose paths must be short.
        self._folder = folder
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.address = f"127.0.0.1:{free_port()}"

    def start_head(self) -> None:
        host, port = self.address.split(":")
        self._start("--head", "--node-ip-address", host, "--port", port, "--include-dashboard=false")

    def start_node(self) -> subprocess.Popen[bytes]:
        return self._start("--address", self.address)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        said = self._folder / f"{len(self._nodes)}.log"
        common = [
            "--num-cpus=2",
            "--object-store-memory=80000000",
            "--min-worker-port=0",
            "--max-worker-port=0",
        ]
        if "--head" in arguments:
            common.append(f"--temp-dir={self._folder / 'ray'}")
        with said.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments, *common],
                env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "XDG_CACHE_HOME": str(CACHE_HOME)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._nodes.append(process)

        def started() -> bool:
            assert process.poll() is None, said.read_text()
            return "runtime started" in said.read_text()

        wait_until(started, what="a node of Ray", timeout=_START_S)
        return process

    @staticmethod
    def kill_node(process: subprocess.Popen[bytes]) -> None:
        """Kill it and all of its processes at once, as when the power fails."""
        for each in _family(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(_END_S)

    def actors(self, name: str) -> list[psutil.Process]:
        """The processes of this cluster that are actors of a class."""
        found = []
        for process in (each for node in self._nodes for each in _family(node)):
            with contextlib.suppress(psutil.NoSuchProcess):
                if f"ray::{name}" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def close(self) -> None:
        families = [_family(process) for process in self._nodes]
        for process in reversed(self._nodes):
            process.send_signal(signal.SIGTERM)
        for process in self._nodes:
            process.wait(_END_S)
        left = [each for family in families for each in family if each.is_running()]
        psutil.wait_procs(left, 5)
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        parent = psutil.Process(process.pid)
    except psutil.NoSuchProcess:
        return []
    return [parent, *parent.children(recursive=True)]


@contextlib.contextmanager
def ray_cluster() -> Iterator[RayProcesses]:
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        made = RayProcesses(Path(folder))
        try:
            made.start_head()
            yield made
        finally:
            made.close()
