"""The processes of a stack: started, watched, started again when they die, and ended in order.

The services are forked from one process that has imported them all (``multiprocessing``'s fork server), which makes a
stack start in the time of one service. Proplets are small and import little: each is a new interpreter.
"""

import asyncio
import functools
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

from propeller.errors import StartError
from propeller.process.logs import get_logger
from propeller.process.retry import Backoff
from propeller.stack.serve import PARENT_FD, serve

log = get_logger("supervisor")

STOP_S = 2.5
"""How long a process may take to end by itself, in seconds."""

FIRST_DELAY_S, LONGEST_DELAY_S = 0.2, 10.0
"""Before a process is started again."""

LATE_S = 10.0
"""A process that takes longer to be there is told of: the first one waits until all services are imported."""

STEADY_S = 5.0
"""A process that lived this long was healthy: it is started again at once, and the next delay is the first again."""


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class StartedProcess:
    """A process that was started; it may have ended since."""

    spec: ProcessSpec
    process: "BaseProcess | subprocess.Popen[bytes]"
    pid: int
    started: float = field(default_factory=time.monotonic)


class ProcessStarter:
    """Starts the processes of services."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["propeller.stack.preload"])
        # The write end lives as long as this process: children see the read end close when it dies.
        self._parent_read, self._parent_write = os.pipe()

    def start(self, spec: ProcessSpec) -> StartedProcess:
        """Start a process; blocks until it is there.

        Raises:
            StartError: it cannot be started.
            OSError: likewise.
            EOFError: the fork server ended while it forked.
        """
        spec.log_file.parent.mkdir(parents=True, exist_ok=True)
        return self._fork(spec) if spec.forked else self._run_interpreter(spec)

    def close(self) -> None:
        """Free what starting needs; processes that still run end."""
        os.close(self._parent_write)
        os.close(self._parent_read)

    def _run_interpreter(self, spec: ProcessSpec) -> StartedProcess:
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
        return StartedProcess(spec, child, child.pid)

    def _fork(self, spec: ProcessSpec) -> StartedProcess:
        process = self._context.Process(
            target=_serve_forked,
            args=(spec.service, dict(spec.env), str(spec.log_file)),
            name=spec.name,
            daemon=True,
        )
        _ensure_fork_server()
        process.start()
        if process.pid is None:
            raise StartError(f"{spec.name} could not be started")
        return StartedProcess(spec, process, process.pid)


class Supervisor:
    """Keeps processes running until it is told to end them."""

    def __init__(self, starter: ProcessStarter | None = None) -> None:
        """``starter`` starts them; it is closed with the supervisor."""
        self._starter = starter or ProcessStarter()
        self._running: dict[str, StartedProcess] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._failed: set[str] = set()

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each name that runs now."""
        return {name: running.pid for name, running in self._running.items()}

    async def start(self, spec: ProcessSpec) -> None:
        """Start a process and keep it running."""
        waits = functools.partial(log.warning, "process is not there yet", name=spec.name)
        late = asyncio.get_running_loop().call_later(LATE_S, waits)
        try:
            await self._begin(spec)
        finally:
            late.cancel()
        self._watchers[spec.name] = asyncio.create_task(self._watch(spec.name))

    def failed_to_start(self, name: str) -> str | None:
        """The last error in the log of a process that has ended since it was started first, ``None`` if it has not."""
        if name not in self._running or name not in self._failed:
            return None
        return (
            last_error(self._running[name].spec.log_file) or "it ended without an error message; see its log"
        )

    async def close(self, *groups: list[str]) -> None:
        """End the processes of each group, one group after another, then all that still run.

        A process that does not end in time is killed.
        """
        try:
            for group in groups:
                await self._stop(group)
        finally:
            await self._stop(list(self._running))
            self._starter.close()

    async def _stop(self, group: list[str]) -> None:
        for watcher in [self._watchers.pop(name) for name in group if name in self._watchers]:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
        ending = [self._running.pop(name) for name in group if name in self._running]
        for running in ending:
            _signal(running.pid, signal.SIGTERM)
        await asyncio.gather(*(self._join(running) for running in ending))

    async def _watch(self, name: str) -> None:
        """Start a process again each time it ends."""
        backoff = Backoff(FIRST_DELAY_S, LONGEST_DELAY_S)
        while True:
            running = self._running[name]
            code = await _wait(running.process)
            lived = time.monotonic() - running.started
            was_healthy = lived > STEADY_S
            if was_healthy:
                backoff.reset()
            self._failed.add(name)
            log.error(
                "process ended, starting it again",
                name=name,
                code=code,
                lived_s=round(lived, 1),
                delay_s=0.0 if was_healthy else backoff.delay_s,
            )
            await self._restart(running.spec, backoff, at_once=was_healthy)

    async def _begin(self, spec: ProcessSpec) -> None:
        """Start a process; one that is there only after this was cancelled is known all the same, so that it is ended.

        Raises:
            StartError, OSError, EOFError: as ``ProcessStarter.start``.
        """
        starting = asyncio.ensure_future(asyncio.to_thread(self._starter.start, spec))
        try:
            self._running[spec.name] = await asyncio.shield(starting)
        except asyncio.CancelledError:
            with suppress(OSError, EOFError, StartError):
                self._running[spec.name] = await starting
            raise

    async def _restart(self, spec: ProcessSpec, backoff: Backoff, *, at_once: bool) -> None:
        """Start a process, unless ``at_once`` after a delay, as often as it takes: the fork server may die while it forks."""
        while True:
            if not at_once:
                await backoff.wait()
            at_once = False
            try:
                return await self._begin(spec)
            except (OSError, EOFError, StartError) as error:
                log.warning(
                    "process cannot be started, trying again",
                    name=spec.name,
                    error=repr(error),
                    delay_s=backoff.delay_s,
                )

    async def _join(self, running: StartedProcess) -> None:
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


def _ensure_fork_server() -> None:
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


def _serve_forked(service: str, env: dict[str, str], log_file: str) -> None:
    """What a forked process does: take its own session, environment and output, then serve."""
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
    """Wait for the end of a process; its exit code, 255 if the fork server that knew it is gone."""
    if isinstance(process, subprocess.Popen):
        while (code := process.poll()) is None:
            await _exited(process.pid)
        return code
    if process.pid is not None and hasattr(os, "pidfd_open"):
        # Not by what the fork server says: if that ends, or is ended, its processes go on.
        await _exited(process.pid)
    await _readable(process.sentinel)
    process.join()
    return process.exitcode


async def _exited(pid: int) -> None:
    """Wait for a process to end, by its pidfd where the system has them."""
    if not hasattr(os, "pidfd_open"):
        await asyncio.sleep(0.05)
        return
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        await _readable(descriptor)
    finally:
        os.close(descriptor)


async def _readable(descriptor: int) -> None:
    """Wait until there is something to read, or nothing will ever be."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
