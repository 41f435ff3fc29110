"""The processes of a stack: started, watched, started again when they die, and ended in order.

The services are forked from one process that has imported them all (``multiprocessing``'s fork server), which makes a
stack start in the time of one service. Proplets are small and import little: each is a new interpreter.
"""

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path

from propeller.process.logs import get_logger
from propeller.process.run import StartError
from propeller.stack.serve import PARENT_FD, serve

log = get_logger("supervisor")

STOP_S = 2.5
"""How long a process may take to end by itself, in seconds."""

RESTART_DELAYS = (0.2, 1.0, 2.0, 5.0, 10.0)
STEADY_S = 30.0
"""A process that lived this long starts over with the first delay."""


@dataclass
class ProcessSpec:
    """How to run a process.

    Attributes:
        name: of the process.
        service: what it serves.
        env: its environment.
        log_file: where it logs.
        forked: from the process that has imported the services; else it is an interpreter of its own.
    """

    name: str
    service: str
    env: Mapping[str, str]
    log_file: Path
    forked: bool = True


@dataclass
class _Running:
    spec: ProcessSpec
    process: "BaseProcess | subprocess.Popen[bytes]"
    pid: int
    started: float = field(default_factory=time.monotonic)
    failures: int = 0


class Supervisor:
    """Runs plans until told to stop them."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["propeller.stack.preload"])
        self._running: dict[str, _Running] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        # The write end lives as long as this process: children see the read end close when it dies.
        self._parent_read, self._parent_write = os.pipe()

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each name that runs now."""
        return {name: running.pid for name, running in self._running.items()}

    async def start(self, spec: ProcessSpec) -> None:
        """Start a process and keep it running."""
        self._running[spec.name] = await asyncio.to_thread(self._spawn, spec)
        self._watchers[spec.name] = asyncio.create_task(self._watch(spec.name))

    def failed_to_start(self, name: str) -> str | None:
        """The last error line of a process that ended right after its start, ``None`` while it runs."""
        running = self._running.get(name)
        if running is None or running.failures == 0:
            return None
        return last_error(running.spec.log_file) or "it ended without a word; see its log"

    async def close(self, *groups: list[str]) -> None:
        """End the processes of each group, one group after another, then all that still run.

        What does not end in time is killed.
        """
        try:
            for group in groups:
                await self._stop(group)
        finally:
            await self._stop(list(self._running))
            os.close(self._parent_write)
            os.close(self._parent_read)

    async def _stop(self, group: list[str]) -> None:
        for watcher in [self._watchers.pop(name) for name in group if name in self._watchers]:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
        ending = [self._running.pop(name) for name in group if name in self._running]
        for running in ending:
            _signal(running.pid, signal.SIGTERM)
        await asyncio.gather(*(self._join(running) for running in ending))

    def _spawn(self, spec: ProcessSpec) -> _Running:
        spec.log_file.parent.mkdir(parents=True, exist_ok=True)
        if not spec.forked:
            command = [sys.executable, "-m", "propeller.stack.serve", spec.service, str(spec.log_file)]
            with spec.log_file.open("ab") as output:
                child = subprocess.Popen(  # noqa: S603 - our own module, under our own interpreter
                    command,
                    env={**spec.env, PARENT_FD: str(self._parent_read)},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[self._parent_read],
                    start_new_session=True,
                )
            return _Running(spec, child, child.pid)
        process = self._context.Process(
            target=_child,
            args=(spec.service, dict(spec.env), str(spec.log_file)),
            name=spec.name,
            daemon=True,
        )
        _run_fork_server()
        process.start()
        if process.pid is None:
            raise StartError(f"{spec.name} could not be started")
        return _Running(spec, process, process.pid)

    async def _watch(self, name: str) -> None:
        while True:
            running = self._running[name]
            code = await _wait(running.process)
            lived = time.monotonic() - running.started
            failures = 1 if lived > STEADY_S else running.failures + 1
            running.failures = failures
            delay = RESTART_DELAYS[min(failures, len(RESTART_DELAYS)) - 1]
            log.error(
                "process ended, starting it again",
                name=name,
                code=code,
                lived_s=round(lived, 1),
                delay_s=delay,
            )
            again = await self._spawn_again(running.spec, delay)
            again.failures = failures
            self._running[name] = again

    async def _spawn_again(self, spec: ProcessSpec, delay: float) -> _Running:
        """Start a process after a delay, as often as it takes: the fork server may die while it forks."""
        while True:
            await asyncio.sleep(delay)
            try:
                return await asyncio.to_thread(self._spawn, spec)
            except (OSError, EOFError, StartError) as error:
                delay = RESTART_DELAYS[-1]
                log.warning(
                    "process cannot be started, trying again",
                    name=spec.name,
                    error=repr(error),
                    delay_s=delay,
                )

    async def _join(self, running: _Running) -> None:
        try:
            await asyncio.wait_for(_wait(running.process), STOP_S)
        except TimeoutError:
            log.warning("process did not end in time, killing it", name=running.spec.name)
            _signal(running.pid, signal.SIGKILL)
            await _wait(running.process)


def last_error(log_file: Path) -> str | None:
    """The newest line of a log that begins with ``error:``, without that word."""
    try:
        lines = log_file.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith("error: "):
            return "\n".join([lines[number].removeprefix("error: "), *lines[number + 1 :]]).strip()
    return None


def _run_fork_server() -> None:
    """Start the fork server with SIGINT blocked: Ctrl-C at a terminal is for this process alone, which ends the others in order."""
    resource_tracker.ensure_running()  # the fork server starts it too, and that unblocks SIGINT
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    except OSError as error:
        if "path too long" not in str(error):
            raise
        raise StartError(
            f"{tempfile.gettempdir()}: too long a path for a socket; name a shorter folder, as TMPDIR=/tmp"
        ) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _child(service: str, env: dict[str, str], log_file: str) -> None:
    """The first thing in a forked process: its own session, environment and output; then the service."""
    os.setsid()
    # A Ctrl-C that came while the process was still in the terminal's group is dropped: its parent ends it in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()
    os.environ.clear()
    os.environ.update(env)
    if parent is not None:
        os.environ[PARENT_FD] = str(parent.sentinel)
    output = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.exit(serve(service, log_file=Path(log_file)))


async def _wait(process: "BaseProcess | subprocess.Popen[bytes]") -> int | None:
    if isinstance(process, subprocess.Popen):
        while (code := process.poll()) is None:
            await _exited(process.pid)
        return code
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process.sentinel)
    process.join()
    return process.exitcode


async def _exited(pid: int) -> None:
    """Wait for a child of this process to end, by its pidfd where the system has them."""
    if not hasattr(os, "pidfd_open"):
        await asyncio.sleep(0.05)
        return
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
