"""A stack whose proplets reach the broker and the services through links, and whose processes can be found by their names."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

from faults.disks import CannotMountError, own_disks
from faults.links import Exchange, HttpLink, Link
from propeller.coordinator.updates import read_update
from propeller.stack.ports import free_ports
from propeller.stack.state_folder import StateFolder
from support.net import eventually
from support.python_programs import COMPILED
from support.stack import Up, end, start_up

PROPLETS = ("proplet-1", "proplet-2", "proplet-3")
_LISTENING = {
    "broker": "broker",
    "identity": "identity-users",
    "manager": "manager",
    "coordinator": "coordinator",
    "aggregator": "aggregator",
    "model-registry": "model-registry",
    "data-store": "data-store",
    "oci-registry": "oci-registry",
    "proxy": "proxy",
}
"""Each service, and the name of a port by which its process is known."""

FORK_SERVER = "fork server"
"""The process that the services are forked from."""

PROCESSES = (*_LISTENING, *PROPLETS, FORK_SERVER)
_FORKS = "from multiprocessing.forkserver import main"
STACK = [sys.executable, "-m", "faults.up"]
HEALTHY_S = 60.0


class FaultyStack:
    """A stack that runs in processes of its own, and may be started again on the same folder.

    Attributes:
        folder: its state.
        programs: where its compiled programs are.
        links: by what the proplets reach over them: ``broker``, ``coordinator``, ``model-registry``, ``data-store``.
        acknowledged: how often each update was accepted by the coordinator over HTTP, by round and client id.
        starts: how often it was started.
        databases: URLs of those that are not SQLite's, by the names of services.
        disks: its folders that are file systems of their own, by their names.
        no_disks: why it has none.
    """

    def __init__(
        self, folder: Path, *, is_own: bool = False, databases: Mapping[str, str] | None = None
    ) -> None:
        """Nothing runs yet.

        Args:
            folder: its state.
            is_own: whether its compiled programs may be damaged, and its disks fill up; else it has those of all tests.
            databases: URLs, by the names of services, each of which then has a standby.
        """
        self.folder = folder
        self.programs = folder.with_name(f"{folder.name}-programs") if is_own else COMPILED
        self.links: dict[str, Link] = {}
        self.acknowledged: Counter[tuple[str, str]] = Counter()
        self.starts = 0
        self.databases = databases or {}
        self.disks: Mapping[str, Path] = {}
        self.no_disks = ""
        self._is_own = is_own
        self._ports: dict[str, int] = {}
        self._up: Up | None = None

    @property
    def up(self) -> Up:
        """The command that runs it."""
        if self._up is None:
            raise AssertionError("the stack was not started")
        return self._up

    def url(self, service: str) -> str:
        """The address of a service, past the links."""
        return f"http://127.0.0.1:{self._ports[_LISTENING[service]]}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["FaultyStack"]:
        """Run it for the length of the block; no process of it is left."""
        if self.programs != COMPILED and COMPILED.exists():
            shutil.copytree(COMPILED, self.programs)
        self._choose_ports()
        async with contextlib.AsyncExitStack() as opened:
            if self._is_own:
                try:
                    self.disks = opened.enter_context(own_disks(self.folder))
                except CannotMountError as error:
                    self.no_disks = str(error)
            for name in ("coordinator", "model-registry", "data-store"):
                self.links[name] = HttpLink(self._ports[name], self._note)
            self.links["broker"] = Link(self._ports["broker"])
            for link in self.links.values():
                await opened.enter_async_context(link.running())
            opened.push_async_callback(self._end)
            await self.start()
            yield self

    async def start(self) -> None:
        """Start it, and wait until it is ready.

        Raises:
            AssertionError: it refuses, or is not ready in time.
        """
        refusal = await self.start_or_refuse()
        assert refusal is None, f"the stack does not start:\n{refusal}"

    async def start_or_refuse(self) -> str | None:
        """Start it, and wait until it is ready, or says why it will not be; what it says.

        Raises:
            AssertionError: it does neither in time.
        """
        self.starts += 1
        (self.folder / "stack.json").unlink(missing_ok=True)  # of one that was killed
        via = {name: f"127.0.0.1:{link.port}" for name, link in self.links.items()}
        proplet = {
            "PROPLET_MQTT_ADDRESS": f"tcp://{via['broker']}",
            "COORDINATOR_URL": f"http://{via['coordinator']}",
            "MODEL_REGISTRY_URL": f"http://{via['model-registry']}",
            "DATA_STORE_URL": f"http://{via['data-store']}",
        }
        extra = {name: {f"{name.upper()}_DATABASE": url} for name, url in self.databases.items()}
        asked = json.dumps(
            {
                "folder": str(self.folder),
                "extra": {"proplet": proplet, **extra},
                "standbys": sorted(self.databases),
            }
        )
        env = {
            "PROPLET_CACHE": str(self.programs),
            "PROPLET_TASK_COMPILE_TIME": "600",  # others may use the machine too
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        self._up = start_up(self.folder, asked, env={**os.environ, **env}, command=STACK)
        try:
            await asyncio.to_thread(self._up.wait_ready)
        except AssertionError as error:
            if self._up.process.poll() is not None:
                return self._up.output
            raise AssertionError(f"{error}\n{self._describe_processes()}") from None
        return None

    async def stop(self, how: signal.Signals) -> None:
        """End it, by SIGTERM or by SIGKILL of what watches over the others.

        Raises:
            AssertionError: a process is left.
        """
        below = self._processes()
        self.up.process.send_signal(how)
        _gone, left = await asyncio.to_thread(psutil.wait_procs, below, 20)
        await asyncio.to_thread(self.up.process.wait, 5)
        assert not left, f"left by {how.name}: {left}"

    def process(self, name: str) -> psutil.Process | None:
        """The process of a service or a proplet as it runs now; ``None`` while there is none."""
        log = str(self.folder / "logs" / f"{name}.log")
        port = self._ports.get(_LISTENING.get(name, ""))
        for process in self._processes()[1:]:
            with contextlib.suppress(psutil.Error):
                if name == FORK_SERVER:
                    if process.ppid() == self.up.process.pid and _FORKS in process.cmdline()[-1]:
                        return process
                elif name in PROPLETS:
                    if "propeller.stack.serve" in (line := process.cmdline()) and line[-1] == log:
                        return process
                elif any(
                    one.status == "LISTEN" and one.laddr.port == port
                    for one in process.net_connections("tcp")
                ):
                    return process
        return None

    def _processes(self) -> list[psutil.Process]:
        """``up``, and what it has started: services whose fork server was killed are below it no more."""
        found = {process.pid: process for process in self.up.processes()}
        for one in psutil.net_connections("tcp"):
            if one.laddr and one.laddr.port in self._ports.values() and one.status == "LISTEN" and one.pid:
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(one.pid)
                    family = [process, *process.children(recursive=True)]
                    if (parent := process.parent()) is not None and parent.pid != 1:
                        family.append(parent)  # the server of the broker is below it
                    for each in family:
                        found.setdefault(each.pid, each)
        return list(found.values())

    async def wait_healthy(self) -> None:
        """Wait until every service answers and every proplet is alive."""
        async with httpx.AsyncClient(timeout=5, trust_env=False) as http:

            async def all_answer() -> bool:
                try:
                    for name in _LISTENING.keys() - {"broker"}:
                        if not (await http.get(f"{self.url(name)}/health")).is_success:
                            return False
                    alive = await http.get(f"{self.url('manager')}/proplets", params={"status": "active"})
                    return alive.is_success and alive.json()["total"] >= len(PROPLETS)
                except httpx.TransportError:
                    return False

            await eventually(all_answer, HEALTHY_S, "every service answers and every proplet is alive")

    async def get(self, service: str, path: str) -> Any:
        """What a service answers, which may be about to start again: it is asked until it does."""
        end_at = time.monotonic() + HEALTHY_S
        async with httpx.AsyncClient(base_url=self.url(service), timeout=10, trust_env=False) as http:
            while True:
                try:
                    answer = await http.get(path)
                except httpx.TransportError:
                    answer = None
                if answer is not None and answer.status_code < 500:
                    assert answer.status_code == 200, f"{service} {path}: {answer.text}"
                    return answer.json()
                assert time.monotonic() < end_at, f"{service} does not answer {path}"
                await asyncio.sleep(0.05)

    async def ask(self, service: str, path: str) -> httpx.Response | None:
        """What a service answers now; ``None`` if it does not."""
        try:
            async with httpx.AsyncClient(base_url=self.url(service), timeout=10, trust_env=False) as http:
                return await http.get(path)
        except httpx.TransportError:
            return None

    def logs(self) -> dict[str, str]:
        """What each process has logged, by its name."""
        return {file.stem: file.read_text(errors="replace") for file in (self.folder / "logs").glob("*.log")}

    def _describe_processes(self) -> str:
        """What runs, and what each of it waits for in the kernel; where it is in Python, it says in its log or output."""
        lines = []
        with contextlib.suppress(psutil.Error, OSError):
            for process in self._processes():
                threads = Path(f"/proc/{process.pid}/task").iterdir()
                waits = ", ".join((thread / "wchan").read_text() for thread in threads)
                lines.append(
                    f"{process.pid} {process.status()} [{waits}] {' '.join(process.cmdline())[:200]}"
                )
                if _catches(process, signal.SIGUSR1):
                    process.send_signal(signal.SIGUSR1)
        return "\n".join(lines)

    def _choose_ports(self) -> None:
        """Before it starts, as the links must know them."""
        self.folder.mkdir(mode=0o700, parents=True)
        state = StateFolder(self.folder)
        kept = state.load_secrets()
        with contextlib.ExitStack() as reserved:
            kept.ports = self._ports = free_ports(reserved)
        state.save_secrets(kept)

    async def _end(self) -> None:
        for link in self.links.values():
            link.heal()
        if self._up is not None and self._up.process.poll() is None:
            await asyncio.to_thread(end, self._up)

    def _note(self, exchange: Exchange) -> None:
        if (exchange.method, exchange.path, exchange.status) == ("POST", "/update", 200):
            headers = exchange.headers
            coding = headers.get("content-encoding")
            header = read_update(headers.get("content-type"), exchange.body, coding=coding).header
            self.acknowledged[header.round_id, header.proplet_id] += 1


def _catches(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether a signal does not end it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)
