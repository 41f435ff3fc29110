"""Runs programs, each in its own confined process, within limits: those in Wasm, and native ones where the device's owner lets them run.

The process that uses this never loads the runtime: see ``template.py`` for who does, and why that is quick.
"""

import asyncio
import contextlib
import importlib.metadata
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from propeller.digests import digest_of
from propeller.native_program import is_native
from propeller.process.logs import get_logger
from propeller.wasm import folder_contents
from propeller.wasm.compiler import Compiler, OnCompiled, write_task
from propeller.wasm.host_calls import HostAnswer, HostCall, HostCalls
from propeller.wasm.last_words import LastWords
from propeller.wasm.layers import inputs_of
from propeller.wasm.messages import (
    STATE_READABLE,
    STATE_WRITABLE,
    TENSOR_MODULE,
    CompiledProgram,
    ExecTask,
    RunTask,
)
from propeller.wasm.native_templates import Command, NativeTemplates
from propeller.wasm.outcome import (
    STOPPED_ERROR,
    bounded_folders,
    exit_report,
    judge_outcome,
    name_memory,
    run_metrics,
)
from propeller.wasm.output import LineSplitter, OutputSink
from propeller.wasm.program_cache import CachedProgram, ProgramCache
from propeller.wasm.program_run import MIB, Limits, ProgramError, ProgramRun, RunOutcome, StateFolder
from propeller.wasm.task_folders import TaskFolders, memory_folder
from propeller.wasm.template_client import SandboxError, TaskProcess, TemplateClient

log = get_logger("sandbox")

__all__ = ["Limits", "ProgramError", "ProgramRun", "RunOutcome", "Sandbox"]

_INLINE_BYTES = 256 * 1024
"""Files of a task, together, that are written without a thread, and to memory where there is a file system in it."""

_START = "_start"
"""The name of a task that runs a program as a command."""

NATIVE_FILE = ".program"
"""In ``/in`` of a native program's task: the program."""

TEMPORARY = ".tmp"
"""In ``/out`` of a native program's task: its temporary folder, which counts with it and is removed before it is looked at."""

NOT_SWITCHED_ON = (
    "native programs are not switched on on this device: its owner sets PROPLET_NATIVE_PYTHON to an interpreter, and names in "
    "[native] of PROPLET_POLICY whose programs it runs"
)

ON_DEVICES_ALONE = "a native program runs on devices alone, with their Python: on a stack (propeller up --native-python PYTHON), or here with propeller try and simulate"

_PROGRAMS = "programs"
_CACHE_BYTES = 1024 * MIB
_TASK_FILE = "task.json"
_MAX_LAST_WORDS = 1000
"""Characters of a line of a program that are looked at for why it failed."""

_NICE = 5
"""Added to the tasks' niceness, so that the device's other work goes first."""

OnStderr = Callable[[str], None]


class NativeInterpreter(Protocol):
    """What runs native programs (``native.interpreter.Interpreter``)."""

    def check(self, content: bytes) -> None:
        """See that it has what a program requires; raises ``ProgramError`` if not."""

    def task(self, run: ProgramRun, folder: Path) -> ExecTask:
        """What the process of a run is to do in its folder."""

    def template(self, content: bytes, limits: Limits) -> Command:
        """The command of a process that forks the tasks of a program, and its environment."""

    @property
    def own_user(self) -> bool:
        """Whether its tasks can be users of their own."""


T = TypeVar("T")


def find_compiled(folder: Path, digest: str, limits: Limits) -> CachedProgram | None:
    """A program that a sandbox with this folder has compiled with the runtime that is installed, if it has.

    Raises:
        ProgramError: the folder belongs to someone else.
    """
    cache = ProgramCache(folder.absolute() / _PROGRAMS, _CACHE_BYTES)
    if not cache.has(digest) or cache.missing_runtime(digest):
        return None
    version = importlib.metadata.version("wasmtime")
    program = cache.find(digest, version, fuel=limits.fuel is not None)
    return program if cache.verify_artifact(program) else None


class Sandbox:
    """Holds programs and runs them; ``folder`` is its own (task folders, and the cache unless that is elsewhere).

    Args:
        folder: Made if missing, mode 0700.
        cache: The folder of programs; sandboxes of one user may share it.
        cache_bytes: The bound of the cache's size.
        runtimes: A folder of shared runtimes that were made on this machine.
        processors: How many of them all processes of this sandbox may use together; None: all.
        native: What runs native programs; None: nothing does.
        native_memory: How many bytes of memory all tasks may take together, if that is bounded: where a native program's task and its template do not both fit,
            there is no template.
        on_compiled: Called with the digest of each program that was compiled, and how long that took (ms).

    Raises:
        ProgramError: a folder belongs to someone else. Entering raises SandboxError if the template does not start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cache: Path | None = None,
        cache_bytes: int = _CACHE_BYTES,
        runtimes: Path | None = None,
        processors: int | None = None,
        native: NativeInterpreter | None = None,
        native_memory: int | None = None,
        on_compiled: OnCompiled | None = None,
    ) -> None:
        self._native, self._native_memory = native, native_memory
        folder = folder.absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cache = ProgramCache((cache or folder / _PROGRAMS).absolute(), cache_bytes, runtimes)
        self._folders = TaskFolders(folder / "tasks")
        memory = memory_folder()
        self._memory = None if memory is None else TaskFolders(memory)
        self._template = TemplateClient(_NICE, self._folders.own, processors)
        self._native_templates = NativeTemplates(_NICE, self._folders.own, processors)
        self._compiler = Compiler(self._cache, self._template, self._folders.own, on_compiled)
        self._calls = HostCalls(self._template, self._folders)
        self._removals: set[asyncio.Handle] = set()
        self._running: dict[str, _ActiveRun] = {}

    async def __aenter__(self) -> Self:
        for folders in filter(None, (self._folders, self._memory)):
            await asyncio.to_thread(folders.open)
        try:
            self._template.open()
            await self._template.ready()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._template.close()
        await self._native_templates.close()
        await self._compiler.close()
        if self._running:  # their ends are on the way
            await asyncio.wait([running.done for running in self._running.values()])
        for removal in self._removals:  # all of them are removed now
            removal.cancel()
        for folders in filter(None, (self._folders, self._memory)):
            await asyncio.to_thread(folders.close)

    @property
    def template_pid(self) -> int:
        """The process id of the template, for measuring it."""
        return self._template.pid

    @property
    def native_template_pid(self) -> int | None:
        """Likewise of the native program whose tasks came last, while there is one."""
        return self._native_templates.template_pid

    async def protections(self) -> list[str]:
        """What the kernel offers to confine tasks.

        Of ``rlimits``, ``no_new_privs``, ``landlock``, ``seccomp``, ``own_user`` (each task is a user of its own) and ``threads`` (bounded by the kernel).
        """
        return list((await self._template.ready()).protections)

    async def shared_user(self) -> str:
        """Why tasks run as this process's user; nothing if each is a user of its own."""
        return (await self._template.ready()).why

    def has(self, digest: str) -> bool:
        """Whether the program is in the cache."""
        return self._cache.has(digest)

    def read(self, digest: str) -> bytes:
        """A program's bytes; raises ``ProgramError`` if it is not in the cache."""
        return self._cache.read(digest)

    def is_native(self, digest: str) -> bool:
        """Whether a program is a native one; raises ``ProgramError`` if it is not in the cache."""
        return self._cache.is_native(digest)

    def missing_runtime(self, digest: str) -> str | None:
        """The digest of the shared runtime that a program needs and that must be fetched; raises ``ProgramError`` if the program is not here."""
        return self._cache.missing_runtime(digest)

    def fetch_lock(self, digest: str, wait_s: float) -> AbstractAsyncContextManager[bool]:
        """Be the only one, of the sandboxes that share the cache, who fetches a program.

        After ``wait_s`` seconds the block is entered all the same.
        """
        return self._cache.lock("fetch", digest, wait_s)

    async def keep(self, digest: str, wasm: bytes, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        """Verify a program and keep it; it is compiled when that is asked for, or when it is run.

        Raises:
            ProgramError: it is not what its digest says, no Wasm, or over a limit.
        """
        await self._compiler.keep(digest, wasm, limits)

    async def add(self, digest: str, wasm: bytes, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        """Verify a program, compile it in a process of its own, and keep it; one over a shared runtime is compiled once that is here too.

        Raises:
            ProgramError: it is not what its digest says, not valid Wasm, or over a limit; or the sandbox failed.
        """
        if is_native(wasm):
            raise ProgramError(ON_DEVICES_ALONE)
        try:
            await self._compiler.add(digest, wasm, limits)
        except SandboxError as error:
            raise ProgramError(str(error)) from None

    async def compiled(self, digest: str, limits: Limits = Limits()) -> CachedProgram:  # noqa: B008 - frozen
        """A program's artifact, for one who runs it in a process of their own; it stays where it is until others need its room.

        Raises:
            ProgramError: it is not there, or cannot be compiled within the limits.
        """
        program, _took_ms = await self._prepare(digest, limits)
        return program

    async def prepare(self, digest: str, limits: Limits = Limits()) -> float:  # noqa: B008 - frozen
        """Have a program compiled that is here; the milliseconds that this took now (0: it was). It goes on if this is cancelled.

        Raises:
            ProgramError: it is not there, or cannot be compiled within the limits.
        """
        if self._cache.is_native(digest):
            await self._read_native(digest, limits)
            return 0.0
        _program, took_ms = await self._prepare(digest, limits)
        return took_ms

    async def _prepare(self, digest: str, limits: Limits) -> tuple[CachedProgram, float]:
        if self._cache.is_native(digest):
            raise ProgramError(ON_DEVICES_ALONE)
        try:
            return await self._compiler.prepare(digest, limits)
        except SandboxError as error:
            raise ProgramError(str(error)) from None

    def memory_bound(self, digest: str, limits: Limits) -> int:
        """The bytes of memory that a run of a program may take at most, of a native one with the template that it is forked of."""
        one = limits.process_bytes(host_tensors=self._cache.uses_host_tensors(digest))
        with contextlib.suppress(ProgramError):  # it is not here
            if self._cache.is_native(digest) and self._has_template(limits):
                return 2 * one
        return one

    def _has_template(self, limits: Limits) -> bool:
        """Whether there is room for a native program's task and its template."""
        bound = self._native_memory
        return bound is None or 2 * limits.process_bytes(host_tensors=False) <= bound

    async def run(self, run: ProgramRun, on_stderr: OnStderr | None = None) -> RunOutcome:
        """Run a program once; never raises for what the program does.

        Args:
            run: What to run; its id must not be that of a run that has not ended.
            on_stderr: Called with each line of the program's standard error as it comes.
        """
        if run.id in self._running:
            return RunOutcome(error=f"a task with the id {run.id} is still running")
        active = self._running[run.id] = _ActiveRun()
        try:
            return await self._compile_and_run(run, active, on_stderr)
        except ProgramError as error:
            return RunOutcome(error=str(error), limit=error.limit)
        except (SandboxError, ValueError) as error:
            return RunOutcome(error=str(error))
        except OSError as error:  # the disk is full, or there are no more descriptors
            return RunOutcome(error=f"sandbox: {error.strerror}: {error.filename or 'a pipe'}")
        finally:
            del self._running[run.id]
            active.done.set_result(None)

    def call(self, call: HostCall) -> AbstractAsyncContextManager[HostAnswer]:
        """As ``HostCalls.call``."""
        return self._calls.call(call)

    async def kill(self, run_id: str) -> bool:
        """End a run at once; its outcome's error is ``stopped before completion``. False: there is no such run."""
        active = self._running.get(run_id)
        if active is None:
            return False
        active.stop()
        return True

    async def _compile_and_run(
        self, run: ProgramRun, active: "_ActiveRun", on_stderr: OnStderr | None
    ) -> RunOutcome:
        asked_at = time.monotonic()
        if self._cache.is_native(run.digest):
            return await self._run_native(run, active, asked_at, on_stderr)
        compile_ms = 0.0
        for _ in range(2):
            prepared = asyncio.ensure_future(self._compiler.prepare(run.digest, run.limits))
            try:
                first: list[asyncio.Future[Any]] = [prepared, active.stopped]
                await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not prepared.done():
                    prepared.cancel()
            if active.stopped.done():
                return RunOutcome(error=STOPPED_ERROR)
            program, took_ms = await prepared
            compile_ms += took_ms
            outcome = await self._run_compiled(run, program, active, asked_at, on_stderr)
            if outcome is not None:
                extra = {"compile_ms": compile_ms} if compile_ms else {}
                return replace(outcome, metrics={**outcome.metrics, **extra})
            self._cache.remove_artifact(program)  # another build's: made again, once
        return RunOutcome(error="sandbox: the compiled program cannot be loaded")

    async def _run_compiled(
        self,
        run: ProgramRun,
        program: CachedProgram,
        active: "_ActiveRun",
        asked_at: float,
        on_stderr: OnStderr | None,
    ) -> RunOutcome | None:
        """Run it; None if the artifact cannot be loaded."""
        self._native_templates.end_idle()
        folder, limits = self._folders.new(), run.limits
        if program.layer is not None:
            env, files = inputs_of(program.layer)
            run = replace(run, env={**run.env, **env}, files={**run.files, **files})
        compiled = CompiledProgram(str(program.artifact), program.component, limits.fuel is not None)
        task = RunTask(
            folder=str(folder),
            program=compiled,
            host_tensors=program.host_tensors,
            env=dict(run.env),
            args=run.args,
            export=run.export,
            inputs=run.inputs,
            limits=limits,
            state=_state_access(run.state),
        )
        return await self._run_task(
            run, folder, task, active, asked_at, on_stderr, TENSOR_MODULE if program.host_tensors else None
        )

    async def _run_native(
        self, run: ProgramRun, active: "_ActiveRun", asked_at: float, on_stderr: OnStderr | None
    ) -> RunOutcome:
        """Run a native program; raises ``ProgramError`` if it does not run here."""
        if run.export not in {None, _START}:
            raise ProgramError(
                f"name: a native program has no function that is called by its name: leave it out, or give {_START}"
            )
        native, content = await self._read_native(run.digest, run.limits)
        run = replace(run, files={**run.files, NATIVE_FILE: content})
        folder = self._folders.new()
        task = native.task(run, folder)
        async with contextlib.AsyncExitStack() as stack:
            template: TemplateClient | None = None
            if self._has_template(run.limits):
                key = (run.digest, run.limits.process_bytes(host_tensors=False))
                command = partial(native.template, content, run.limits)
                template = await stack.enter_async_context(
                    self._native_templates.taken(key, command, active.stopped)
                )
            else:  # one that waits for tasks has room that is this task's now
                self._native_templates.end_idle()
            if active.stopped.done():
                return RunOutcome(error=STOPPED_ERROR)
            outcome = await self._run_task(
                run, folder, task, active, asked_at, on_stderr, template=template or self._template
            )
        return outcome or RunOutcome(error="sandbox: the interpreter's process says what none does")

    async def _read_native(self, digest: str, limits: Limits) -> tuple[NativeInterpreter, bytes]:
        """What runs a native program, and the program, which may have been damaged since it was kept.

        Raises:
            ProgramError: it does not run here.
        """
        if self._native is None:
            raise ProgramError(NOT_SWITCHED_ON)
        content = await asyncio.to_thread(self._cache.read, digest)
        if digest_of(content) != digest:
            raise ProgramError(f"program {digest[:71]}: damaged on disk; fetch it again")
        if len(content) > limits.module_bytes:
            raise ProgramError.over_limit("module_bytes", limits.module_bytes)
        self._native.check(content)
        return self._native, content

    async def _run_task(
        self,
        run: ProgramRun,
        folder: Path,
        task: RunTask | ExecTask,
        active: "_ActiveRun",
        asked_at: float,
        on_stderr: OnStderr | None,
        module: str | None = None,
        *,
        template: TemplateClient | None = None,
    ) -> RunOutcome | None:
        """Run a task whose folder is not made yet; None if a compiled program cannot be loaded."""
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
            if on_stderr is not None:
                on_stderr(line)

        lines = LineSplitter(take)
        try:
            task_file = await _call(_create_folder, folder, memory, run, task, in_thread=in_thread)
            active.process = process = (template or self._template).start(
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
                    report = replace(report, entered_s=asked_at, run_s=time.monotonic() - asked_at)
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
            return replace(outcome, metrics=run_metrics(end, asked_at))
        finally:
            active.process = None
            if in_thread:
                await asyncio.to_thread(_remove_folders, folder, memory)
            else:
                self._remove_later(folder, memory)

    def _remove_later(self, *folders: Path | None) -> None:
        """Remove a task's small folders in the event loop's next turn: what can follow its end at once is sent before."""

        def remove() -> None:
            self._removals.discard(removal)
            _remove_folders(*folders)

        removal = asyncio.get_running_loop().call_soon(remove)
        self._removals.add(removal)


class _ActiveRun:
    """A run under way: whether it was stopped, or went over what this side counts."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.process: TaskProcess | None = None
        self.stopped: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        self.exceeded: str | None = None

    def stop(self) -> None:
        if not self.stopped.done():
            self.stopped.set_result(None)
        self._kill()

    def note_excess(self, limit: str) -> None:
        self.exceeded = self.exceeded or limit
        self._kill()

    def _kill(self) -> None:
        if self.process:
            self.process.kill()


def _state_access(state: StateFolder | None) -> str | None:
    if state is None:
        return None
    return STATE_READABLE if state.target is None else STATE_WRITABLE


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


def _is_small(files: Mapping[str, bytes | Path]) -> bool:
    sizes = [len(content) if isinstance(content, bytes) else _INLINE_BYTES + 1 for content in files.values()]
    return sum(sizes) <= _INLINE_BYTES


async def _call(do: Callable[..., T], *arguments: Any, in_thread: bool) -> T:
    """Small things are quicker done here than handed to a thread; large ones must not hold up the loop."""
    return await asyncio.to_thread(do, *arguments) if in_thread else do(*arguments)
