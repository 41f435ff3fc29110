"""Runs tasks in processes of their own: each in a folder that is made before and removed after."""

import asyncio
import contextlib
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from propeller.process.logs import get_logger
from propeller.wasm import folder_contents
from propeller.wasm.compiler import write_task
from propeller.wasm.last_words import LastWords
from propeller.wasm.messages import ExecTask, RunTask
from propeller.wasm.outcome import bounded_folders, exit_report, judge_outcome, name_memory, run_metrics
from propeller.wasm.output import LineSplitter, OutputSink
from propeller.wasm.program_run import ProgramRun, RunOutcome
from propeller.wasm.task_folders import TaskFolders, memory_folder
from propeller.wasm.template_client import SandboxError, TaskProcess, TemplateClient

log = get_logger("sandbox")

TEMPORARY = ".tmp"
"""In ``/out`` of a native program's task: its temporary folder, which counts with it and is removed before it is looked at."""

_INLINE_BYTES = 256 * 1024
"""Files of a task, together, that are written without a thread, and to memory where there is a file system in it."""

_QUICK_ENTRIES, _QUICK_BYTES = 64, 16 * 1024 * 1024
"""What a task has left, at most, that is removed without a thread: a few milliseconds' work."""

_TASK_FILE = "task.json"
_MAX_LAST_WORDS = 1000
"""Characters of a line of a program that are looked at for why it failed."""

OnStderr = Callable[[str], None]

T = TypeVar("T")


class ActiveRun:
    """A run under way: whether it was stopped, or went over what this side counts.

    Attributes:
        on_stderr: is called with each line of the program's standard error as it comes.
        asked_at: when it was asked for (``time.monotonic``).
        process: its task's, while that runs.
        stopped: done once it was stopped.
        done: done once it has ended.
        exceeded: the output limit that it went over.
    """

    def __init__(self, on_stderr: OnStderr | None) -> None:
        """It was asked for now."""
        self.on_stderr, self.asked_at = on_stderr, time.monotonic()
        loop = asyncio.get_running_loop()
        self.process: TaskProcess | None = None
        self.stopped: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        self.exceeded: str | None = None

    def stop(self) -> None:
        """End it at once."""
        if not self.stopped.done():
            self.stopped.set_result(None)
        self._kill()

    def note_excess(self, limit: str) -> None:
        """End it, as it went over an output limit."""
        self.exceeded = self.exceeded or limit
        self._kill()

    def _kill(self) -> None:
        if self.process:
            self.process.kill()


class TaskRuns:
    """Runs tasks. Open it before, and close it once none runs."""

    def __init__(self) -> None:
        """Small inputs are in memory where there is a file system in it."""
        memory = memory_folder()
        self._memory = None if memory is None else TaskFolders(memory)
        self._removals: set[asyncio.Handle] = set()
        self._threads: set[asyncio.Future[None]] = set()

    async def open(self) -> None:
        """Make the folder in memory."""
        if self._memory is not None:
            await asyncio.to_thread(self._memory.open)

    async def close(self) -> None:
        """Remove the folder in memory; who has the folders of the tasks removes those that are left."""
        for removal in self._removals:
            removal.cancel()
        if self._threads:  # of runs that did not wait for them
            await asyncio.wait(self._threads)
        if self._memory is not None:
            await asyncio.to_thread(self._memory.close)

    async def run(
        self,
        run: ProgramRun,
        task: RunTask | ExecTask,
        folder: Path,
        active: ActiveRun,
        template: TemplateClient,
        module: str | None = None,
    ) -> RunOutcome | None:
        """Run a task; None if a compiled program cannot be loaded.

        Args:
            run: What it is a task for.
            task: What its process is to do.
            folder: Its folder, which is not there yet.
            active: The run.
            template: What forks its process.
            module: What the template is to have imported before.

        Raises:
            SandboxError: there is no template.
            OSError: the disk is full, or there are no more descriptors.
        """
        limits = run.limits
        native = isinstance(task, ExecTask)
        copies = run.state is not None and run.state.source is not None
        small = _is_small(run.files)
        # A native program's process finds its folder by its name.
        memory = self._memory.new() if self._memory is not None and small and not native else None
        in_thread = copies or not small
        stdout, said = bytearray(), LastWords(_MAX_LAST_WORDS)

        def take(line: str) -> None:
            said.add(line)
            if active.on_stderr is not None:
                active.on_stderr(line)

        lines = LineSplitter(take)
        try:
            task_file = await _call(_create_folder, folder, memory, run, task, in_thread=in_thread)
            active.process = process = template.start(
                task_file,
                limits.wall_time_s,
                limits,
                stdout=OutputSink(
                    limits.stdout_bytes, stdout.extend, partial(active.note_excess, "stdout_bytes")
                ),
                stderr=OutputSink(
                    limits.stderr_bytes, lines.feed, partial(active.note_excess, "stderr_bytes")
                ),
                module=module,
                outputs=bounded_folders(run, folder),
                program=None if isinstance(task, ExecTask) else task.program,
                own_user=not isinstance(task, ExecTask) or task.own_user,
            )
            if active.stopped.done():
                process.kill()
            try:
                end = await process.ended()
            except asyncio.CancelledError:
                active.stop()
                with contextlib.suppress(SandboxError):
                    await process.ended()
                raise
            lines.end()
            if native:
                report = end.report or exit_report(end.status)
                if report is not None:
                    report = replace(
                        report, entered_s=active.asked_at, run_s=time.monotonic() - active.asked_at
                    )
                end = replace(end, report=report)
                await asyncio.to_thread(_remove_temporary, folder)
            if end.report is not None and end.report.stale:
                return None
            judge = partial(
                judge_outcome,
                run,
                end,
                task_folder=folder,
                stdout=bytes(stdout),
                stopped=active.stopped.done(),
                exceeded=active.exceeded,
            )
            written = any(
                folder_contents.has_entries(folder / name)
                for name in ("out", "state")
                if run.state or name == "out"
            )
            outcome = await asyncio.to_thread(judge) if written else judge()
            if not active.stopped.done():
                outcome = name_memory(outcome, limits, said.reason)
            return replace(outcome, metrics=run_metrics(end, active.asked_at))
        finally:
            active.process = None
            if in_thread or not _is_quickly_removed(folder):
                await self._remove_in_thread(folder, memory)
            else:
                self._remove_later(folder, memory)

    async def _remove_in_thread(self, *folders: Path | None) -> None:
        """Remove a task's folders while the loop goes on: a task may have left a hundred thousand entries, which take seconds."""
        removal = asyncio.ensure_future(asyncio.to_thread(_remove_folders, *folders))
        self._threads.add(removal)
        removal.add_done_callback(self._threads.discard)
        await asyncio.shield(removal)

    def _remove_later(self, *folders: Path | None) -> None:
        """Remove a task's small folders in the event loop's next turn: what can follow its end at once is sent before."""

        def remove() -> None:
            self._removals.discard(removal)
            _remove_folders(*folders)

        removal = asyncio.get_running_loop().call_soon(remove)
        self._removals.add(removal)


def _remove_temporary(folder: Path) -> None:
    """Remove what a native program left in its temporary folder, unless it put something else there: that is found with ``/out``."""
    temporary = folder / "out" / TEMPORARY
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(temporary.lstat().st_mode):
            folder_contents.remove(temporary)


def _create_folder(folder: Path, memory: Path | None, run: ProgramRun, task: RunTask | ExecTask) -> Path:
    """Make what a task needs, small inputs in memory if there is room; gives the file that says what it is to do."""
    if memory is not None:
        try:
            memory.mkdir(mode=0o700)
            folder_contents.create(folder, run.files, run.state, inputs=memory / "in")
            write_task(memory / _TASK_FILE, task)
        except OSError:
            _remove_folders(folder, memory)
        else:
            return memory / _TASK_FILE
    folder_contents.create(folder, run.files, run.state)
    if isinstance(task, ExecTask):
        (folder / "out" / TEMPORARY).mkdir(mode=0o700)
    write_task(folder / _TASK_FILE, task)
    return folder / _TASK_FILE


def _remove_folders(*folders: Path | None) -> None:
    for folder in folders:
        if folder is not None:
            try:
                folder_contents.remove(folder)
            except OSError as error:  # the next sandbox removes it
                log.warning("a task's folder is not removed", folder=str(folder), reason=error.strerror)


def _is_quickly_removed(folder: Path) -> bool:
    """Whether what a task left is little enough to be removed in the event loop; looks no further than that."""
    return folder_contents.exceeded_limit("task", str(folder), _QUICK_BYTES, _QUICK_ENTRIES) is None


def _is_small(files: Mapping[str, bytes | Path]) -> bool:
    sizes = [len(content) if isinstance(content, bytes) else _INLINE_BYTES + 1 for content in files.values()]
    return sum(sizes) <= _INLINE_BYTES


async def _call(do: Callable[..., T], *arguments: Any, in_thread: bool) -> T:
    """Small things are quicker done here than handed to a thread; large ones must not hold up the loop."""
    return await asyncio.to_thread(do, *arguments) if in_thread else do(*arguments)
