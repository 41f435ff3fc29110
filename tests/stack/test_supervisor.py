"""The supervisor over a real service: started again when it dies, ended when told, and its last words told."""

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest

from propeller.process.retry import Backoff
from propeller.stack.supervisor import ProcessSpec, ProcessStarter, StartedProcess, Supervisor, last_error
from support.net import eventually, free_port, has_ended


def spec_of(folder: Path, port: int, *, forked: bool = True) -> ProcessSpec:
    env = {"PATH": os.environ["PATH"], "AGGREGATOR_PORT": str(port)}
    return ProcessSpec("aggregator", "aggregator", env, folder / "aggregator.log", forked=forked)


async def answers(port: int) -> bool:
    async with httpx.AsyncClient() as http:
        try:
            return (await http.get(f"http://127.0.0.1:{port}/health")).is_success
        except httpx.TransportError:
            return False


@pytest.mark.parametrize("forked", [True, False])
async def test_a_killed_process_is_started_again_and_ended_when_told(tmp_path: Path, forked: bool) -> None:
    port, supervisor = free_port(), Supervisor()
    try:
        await supervisor.start(spec_of(tmp_path, port, forked=forked))
        await eventually(lambda: answers(port), 20)
        first = supervisor.pids["aggregator"]
        assert os.getsid(first) == first
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: supervisor.pids["aggregator"] != first, 10)
        await eventually(lambda: answers(port), 20)
    finally:
        await supervisor.close(["aggregator"])
    assert not await answers(port)
    assert supervisor.pids == {}


@pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="the end of a process is told by the fork server alone here"
)
async def test_processes_outlast_the_fork_server_and_are_watched_on(tmp_path: Path) -> None:
    port, supervisor = free_port(), Supervisor()
    try:
        await supervisor.start(spec_of(tmp_path, port))
        await eventually(lambda: answers(port), 20)
        first = supervisor.pids["aggregator"]
        [server] = [
            one for one in psutil.Process().children() if "multiprocessing.forkserver" in str(one.cmdline())
        ]
        server.kill()
        await eventually(lambda: has_ended(server.pid))
        await asyncio.sleep(0.2)  # whoever takes that for the end of its processes starts others
        assert supervisor.pids["aggregator"] == first
        assert await answers(port)
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: supervisor.pids["aggregator"] != first, 10)
        await eventually(lambda: answers(port), 20)
    finally:
        await supervisor.close(["aggregator"])
    assert not await answers(port)


async def test_a_healthy_process_is_started_again_at_once_and_one_that_fails_again_later_and_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []

    async def wait(self: Backoff) -> None:
        delays.append(self.delay_s)
        self._failures += 1

    monkeypatch.setattr(Backoff, "wait", wait)
    clock = [0.0]
    monkeypatch.setattr("propeller.stack.supervisor.time", SimpleNamespace(monotonic=lambda: clock[0]))
    supervisor = Supervisor(SleepingStarter(lambda: clock[0]))

    async def kill_after(lived_s: float) -> None:
        clock[0] += lived_s
        first = supervisor.pids["aggregator"]
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: supervisor.pids["aggregator"] != first)

    try:
        await supervisor.start(spec_of(tmp_path, free_port()))
        await kill_after(60)
        assert delays == []
        for _ in range(3):
            await kill_after(1)
        assert delays == [0.2, 0.4, 0.8]
        await kill_after(60)
        await kill_after(1)
        assert delays == [0.2, 0.4, 0.8, 0.2]
    finally:
        await supervisor.close()


class SleepingStarter(ProcessStarter):
    """A starter of processes that do nothing."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock

    def start(self, spec: ProcessSpec) -> StartedProcess:
        process = subprocess.Popen(["sleep", "60"])
        return StartedProcess(spec, process, process.pid, self._clock())


class FailingStarter(ProcessStarter):
    """A starter that fails as often as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.errors = list[Exception]()

    def start(self, spec: ProcessSpec) -> StartedProcess:
        if self.errors:
            raise self.errors.pop()
        return super().start(spec)


async def test_a_process_that_cannot_be_started_again_is_tried_until_it_can(tmp_path: Path) -> None:
    port, starter = free_port(), FailingStarter()
    supervisor = Supervisor(starter)
    try:
        await supervisor.start(spec_of(tmp_path, port))
        await eventually(lambda: answers(port), 20)
        starter.errors = [EOFError(), BrokenPipeError()]  # of a fork server that dies while it forks
        first = supervisor.pids["aggregator"]
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: supervisor.pids["aggregator"] != first, 20)
        await eventually(lambda: answers(port), 20)
        assert starter.errors == []
    finally:
        await supervisor.close(["aggregator"])


async def test_why_it_cannot_start_is_told(tmp_path: Path) -> None:
    port, supervisor = free_port(), Supervisor()
    taken = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", port)
    try:
        assert supervisor.failed_to_start("aggregator") is None
        await supervisor.start(spec_of(tmp_path, port))
        reason = await eventually(lambda: supervisor.failed_to_start("aggregator"), 20)
        assert reason is not None
        assert f"port {port} is already in use" in reason
    finally:
        await supervisor.close()
        taken.close()


def test_the_last_error_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_error(log) is None
    log.write_text(
        '{"msg":"a"}\nerror: first\n{"msg":"b"}\nerror: settings to correct:\n  A: not set\n  B: not set\n'
    )
    assert last_error(log) == "settings to correct:\n  A: not set\n  B: not set"


@pytest.mark.parametrize("forked", [True, False])
async def test_a_process_that_is_being_started_when_all_are_to_end_is_ended_too(
    tmp_path: Path, forked: bool
) -> None:
    started: list[StartedProcess] = []

    class SlowStarter(ProcessStarter):
        def start(self, spec: ProcessSpec) -> StartedProcess:
            started.append(super().start(spec))
            is_started.set()
            time.sleep(0.3)
            return started[-1]

    is_started = threading.Event()
    supervisor = Supervisor(SlowStarter())
    starting = asyncio.create_task(supervisor.start(spec_of(tmp_path, free_port(), forked=forked)))
    await asyncio.to_thread(is_started.wait, 20)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert list(supervisor.pids.values()) == [started[0].pid]
    await supervisor.close()
    assert has_ended(started[0].pid)
