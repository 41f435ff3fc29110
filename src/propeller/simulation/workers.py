"""The workers of a simulation on this machine: as many processes as there are cores, each of which runs one client at a time.

A client whose program makes its process end, or runs longer than its limit, has failed; the process is replaced, and the others' tasks are
not touched by it.
"""

import base64
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Protocol, Self

from propeller.errors import StartError
from propeller.simulation.client_data import ClientData
from propeller.simulation.messages import (
    ClientReport,
    ClientTask,
    RoundTask,
    WorkerError,
    WorkerReady,
    WorkerSetup,
    read_message,
    write_message,
)
from propeller.wasm.program_cache import CachedProgram
from propeller.wasm.program_run import Limits, limit_error
from propeller.wasm.task_folders import TaskFolders, memory_folder

_WATCH_S = 0.1
_CLOSE_S = 5.0
_MAX_TOGETHER = 16
"""Tasks that a worker is given at once."""
_GRACE_S = 1.0
"""Beyond a task's wall time, for what is not the program."""
_NATIVE_GRACE_S = 60.0
"""Likewise of a native program, whose time the worker's own sandbox looks after."""


class ClientRunner(Protocol):
    """Runs clients' tasks somewhere."""

    def run(self, round_task: RoundTask, tasks: Sequence[ClientTask]) -> Iterator[tuple[ClientReport, bytes]]:
        """Run tasks of a round; each one's report with its update, in the order in which they end."""
        ...


@dataclass(frozen=True)
class SharedFolders:
    """Where workers find what is the same for all of them: data, models, and what programs keep between rounds."""

    data: Path
    central: Path | None
    models: Path
    states: Path

    @classmethod
    def fill(cls, folder: Path, models: Path, data: ClientData, central: ClientData | None) -> Self:
        """Make those that there are not in a folder, with the data of the clients and of a central evaluation."""
        made = cls(
            folder / "data", None if central is None else folder / "central", models, folder / "states"
        )
        for each in filter(None, (made.data, made.central, made.states)):
            each.mkdir()
        data.write(made.data)
        if central is not None and made.central is not None:
            central.write(made.central)
        return made


@dataclass(frozen=True)
class WorkerProgram:
    """A program as workers load it: compiled, or a native one with the interpreter that runs it."""

    artifact: Path
    component: bool
    host_tensors: bool
    layer: bytes | None = None
    native_python: Path | None = None

    @classmethod
    def of(cls, program: CachedProgram) -> Self:
        """A program of a cache."""
        return cls(program.artifact, program.component, program.host_tensors, program.layer)


@contextlib.contextmanager
def workers_folder(beside: Path, limits: Limits, count: int | None = None) -> Iterator[Path]:
    """A folder for ``WorkerPool``: in memory if there is room for all that programs may write there, else ``beside``."""
    memory = memory_folder()
    most = (limits.out_bytes + limits.state_bytes) * (count or os.cpu_count() or 1)
    if memory is None or shutil.disk_usage(memory).free < 2 * most:
        yield beside
        return
    folders = TaskFolders(memory)
    folders.open()
    try:
        yield folders.own
    finally:
        folders.close()


class WorkerPool:
    """Worker processes. Use with ``with``."""

    def __init__(
        self,
        program: WorkerProgram,
        shared: SharedFolders,
        folder: Path,
        limits: Limits,
        count: int | None = None,
    ) -> None:
        """``folder`` takes a folder a worker; ``count`` is how many there are (default: one a core)."""
        setup = WorkerSetup(
            parent=os.getpid(),
            artifact=str(program.artifact),
            component=program.component,
            host_tensors=program.host_tensors,
            layer=None if program.layer is None else base64.b64encode(program.layer).decode(),
            folder="",
            data=str(shared.data),
            central=None if shared.central is None else str(shared.central),
            models=str(shared.models),
            states=str(shared.states),
            limits=vars(limits),
            native_python=None if program.native_python is None else str(program.native_python),
        )
        self._workers = [
            _Worker(replace(setup, folder=str(folder / f"worker-{number}")), limits.wall_time_s)
            for number in range(count or os.cpu_count() or 1)
        ]
        self._todo: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # A thread each for as long as the pool lives: a process ends with the thread that started it.
        self._threads = [
            threading.Thread(target=_work, args=(worker, self._todo), daemon=True) for worker in self._workers
        ]
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._end_late_ones, daemon=True)

    def __enter__(self) -> Self:
        for thread in (*self._threads, self._watch):
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        self._closing.set()
        if kind is not None:  # nobody waits for what runs
            self.abort()
        self._drop_jobs()
        for _ in self._threads:
            self._todo.put(None)
        for thread in (*self._threads, self._watch):
            thread.join()

    def run(self, round_task: RoundTask, tasks: Sequence[ClientTask]) -> Iterator[tuple[ClientReport, bytes]]:
        """As ``ClientRunner.run``; what a program does never raises.

        Raises:
            WorkerError: a worker cannot be started, or says what no worker would.
        """
        # Several at once, as it takes longer to wake a thread than to run a small program; few enough that all workers end together.
        size = together(len(tasks), len(self._workers))
        running = [self.submit(round_task, tasks[at : at + size]) for at in range(0, len(tasks), size)]
        try:
            for job in as_completed(running):
                yield from job.result()
        finally:  # also if whoever asked wants no more
            for job in running:
                job.cancel()

    def submit(self, round_task: RoundTask, tasks: Sequence[ClientTask]) -> "Future[Reports]":
        """Have one worker run tasks of a round, one after the other; threads may call this beside each other.

        The result raises as ``run``.
        """
        job = _Job(round_task, tasks)
        self._todo.put(job)
        return job.done

    def abort(self) -> None:
        """Have what runs ended; nothing more is run."""
        self._drop_jobs()
        for worker in self._workers:
            worker.abort()

    def _drop_jobs(self) -> None:
        with contextlib.suppress(queue.Empty):
            while (job := self._todo.get_nowait()) is not None:
                job.done.cancel()

    def _end_late_ones(self) -> None:
        while not self._closing.wait(_WATCH_S):
            for worker in self._workers:
                worker.end_if_late()


def together(tasks: int, workers: int) -> int:
    """How many of so many tasks a worker is given at once."""
    return min(max(tasks // (4 * workers), 1), _MAX_TOGETHER)


Reports = list[tuple[ClientReport, bytes]]


@dataclass(frozen=True)
class _Job:
    """Tasks of a round, and what becomes of them."""

    round_task: RoundTask
    tasks: Sequence[ClientTask]
    done: "Future[Reports]" = field(default_factory=Future)


def _work(worker: "_Worker", todo: "queue.SimpleQueue[_Job | None]") -> None:
    # For the process that this thread starts, which inherits it: Ctrl-C in a terminal is for us, who end it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        while (job := todo.get()) is not None:
            if not job.done.set_running_or_notify_cancel():
                continue
            try:
                job.done.set_result(worker.run(job.round_task, job.tasks))
            except BaseException as error:  # noqa: BLE001 - raised where the reports are waited for
                job.done.set_exception(error)
    finally:
        worker.close()


class _EndedError(Exception):
    """A worker's process has ended."""


class _Worker:
    """One worker process, started when there is something to do, and again when it has ended."""

    def __init__(self, setup: WorkerSetup, wall_time_s: float) -> None:
        self._setup, self._wall_time_s = setup, wall_time_s
        is_native = setup.native_python is not None
        self._module = f"propeller.simulation.{'native_worker' if is_native else 'worker'}"
        self._late_s = wall_time_s + (_NATIVE_GRACE_S if is_native else _GRACE_S)
        self._process: subprocess.Popen[bytes] | None = None
        self._round = -1
        self._busy_since: float | None = None
        self._was_late = self._aborted = False

    def run(self, round_task: RoundTask, tasks: Sequence[ClientTask]) -> Reports:
        """Run tasks one after the other; one that ends the process has failed, and the others are run by another process."""
        found: Reports = []
        while len(found) < len(tasks) and not self._aborted:
            process = self._started()
            requests, replies = _pipes(process)
            try:
                if self._round != round_task.number:
                    write_message(requests, round_task)
                    self._round = round_task.number
                for task in tasks[len(found) :]:
                    write_message(requests, task)
                requests.flush()
                while len(found) < len(tasks):
                    found.append(self._answer(replies, tasks[len(found)]))
            except WorkerError:
                self.close()
                raise
            except (BrokenPipeError, _EndedError):
                found.append((ClientReport(tasks[len(found)].id, error=self._reap(process)), b""))
        return found

    def _answer(self, replies: IO[bytes], task: ClientTask) -> tuple[ClientReport, bytes]:
        """What the process says of a task.

        Raises:
            WorkerError: it says something else.
            _EndedError: it has ended.
        """
        self._was_late, self._busy_since = False, time.monotonic()
        try:
            report = read_message(replies)
        finally:
            self._busy_since = None
        if report is None:
            raise _EndedError
        if not isinstance(report, ClientReport) or report.id != task.id or report.bytes < 0:
            raise WorkerError("simulation: a worker answered what it was not asked")
        content = replies.read(report.bytes) if report.bytes else b""
        if len(content) != report.bytes:
            raise _EndedError
        return report, content

    def end_if_late(self) -> None:
        """End a task that runs longer than it may."""
        since, process = self._busy_since, self._process
        if since is None or process is None or time.monotonic() - since <= self._late_s:
            return
        self._was_late = True
        process.kill()

    def abort(self) -> None:
        """Have what runs ended, for another thread; nothing more is run."""
        self._aborted = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        requests, replies = _pipes(process)
        with contextlib.suppress(BrokenPipeError):
            requests.close()
        try:
            process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        replies.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        folder = Path(self._setup.folder)
        remove_folder(folder)
        folder.mkdir(mode=0o700)
        # One thread each: they run beside each other.
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-P", "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
        except OSError as error:
            raise StartError(f"simulation: a worker cannot be started: {error.strerror}") from None
        if self._aborted:  # meanwhile, when there was nothing to kill yet
            self._process.kill()
        self._round = -1
        requests, replies = _pipes(self._process)
        with contextlib.suppress(BrokenPipeError):  # its end is noticed next
            write_message(requests, self._setup)
            requests.flush()
        if not isinstance(read_message(replies), WorkerReady):
            reason = self._reap(self._process)
            raise WorkerError(f"simulation: a worker did not start ({reason}): its standard error says why")
        return self._process

    def _reap(self, process: subprocess.Popen[bytes]) -> str:
        """Why a task failed whose process is gone."""
        self._process = None
        for stream in _pipes(process):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        status = process.wait()
        if self._was_late:
            return limit_error("wall_time_s", self._wall_time_s)
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"the program made its process end ({how})"


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there."""
    from propeller.wasm import folder_contents

    if folder.exists():
        folder_contents.remove(folder)


def _pipes(process: "subprocess.Popen[Any]") -> tuple[IO[bytes], IO[bytes]]:
    if process.stdin is None or process.stdout is None:
        raise AssertionError("a worker has pipes")
    return process.stdin, process.stdout
