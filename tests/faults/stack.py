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
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil

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

PROCESSES = (*_LISTENING, *PROPLETS)
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
    """

    def __init__(self, folder: Path, *, own_programs: bool = False) -> None:
        """Compiled programs are those of all tests, or its own, which may be damaged."""
        self.folder = folder
        self.programs = folder.with_name(f"{folder.name}-programs") if own_programs else COMPILED
        self.links: dict[str, Link] = {}
        self.acknowledged: Counter[tuple[str, str]] = Counter()
        self.starts = 0
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
            for name in ("coordinator", "model-registry", "data-store"):
                self.links[name] = HttpLink(self._ports[name], self._note)
            self.links["broker"] = Link(self._ports["broker"])
            for link in self.links.values():
                await opened.enter_async_context(link.running())
            opened.push_async_callback(self._end)
            await self.start()
            yield self

    async def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.starts += 1
        (self.folder / "stack.json").unlink(missing_ok=True)  # of one that was killed
        via = {name: f"127.0.0.1:{link.port}" for name, link in self.links.items()}
        proplet = {
            "PROPLET_MQTT_ADDRESS": f"tcp://{via['broker']}",
            "COORDINATOR_URL": f"http://{via['coordinator']}",
            "MODEL_REGISTRY_URL": f"http://{via['model-registry']}",
            "DATA_STORE_URL": f"http://{via['data-store']}",
        }
        asked = json.dumps({"folder": str(self.folder), "extra": {"proplet": proplet}})
        env = {"PROPLET_CACHE": str(self.programs), "PYTHONPATH": str(Path(__file__).parents[1])}
        self._up = start_up(self.folder, asked, env={**os.environ, **env}, command=STACK)
        try:
            await asyncio.to_thread(self._up.wait_ready)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._describe_processes()}") from None

    async def stop(self, how: signal.Signals) -> None:
        """End it, by SIGTERM or by SIGKILL of what watches over the others.

        Raises:
            AssertionError: a process is left.
        """
        below = self.up.processes()
        self.up.process.send_signal(how)
        _gone, left = await asyncio.to_thread(psutil.wait_procs, below, 20)
        await asyncio.to_thread(self.up.process.wait, 5)
        assert not left, f"left by {how.name}: {left}"

    def process(self, name: str) -> psutil.Process | None:
        """The process of a service or a proplet as it runs now; ``None`` while there is none."""
        log = str(self.folder / "logs" / f"{name}.log")
        port = self._ports.get(_LISTENING.get(name, ""))
        for process in self.up.processes()[1:]:
            with contextlib.suppress(psutil.Error):
                if name in PROPLETS:
                    if "propeller.stack.serve" in (line := process.cmdline()) and line[-1] == log:
                        return process
                elif any(
                    one.status == "LISTEN" and one.laddr.port == port
                    for one in process.net_connections("tcp")
                ):
                    return process
        return None

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

    def logs(self) -> dict[str, str]:
        """What each process has logged, by its name."""
        return {file.stem: file.read_text(errors="replace") for file in (self.folder / "logs").glob("*.log")}

    def _describe_processes(self) -> str:
        """What runs, and what each of it waits for in the kernel."""
        lines = []
        with contextlib.suppress(psutil.Error, OSError):
            for process in self.up.processes():
                threads = Path(f"/proc/{process.pid}/task").iterdir()
                waits = ", ".join((thread / "wchan").read_text() for thread in threads)
                lines.append(
                    f"{process.pid} {process.status()} [{waits}] {' '.join(process.cmdline())[:200]}"
                )
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
