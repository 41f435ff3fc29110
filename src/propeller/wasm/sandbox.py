"""Runs programs, each in its own confined process, within limits: those in Wasm, and native ones where the machine's owner lets them run.

The process that uses this never loads the runtime: see ``template.py`` for who does, and why that is quick.
"""

import asyncio
import contextlib
import importlib.metadata
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

from propeller.digests import digest_of
from propeller.native_program import is_native
from propeller.wasm.compiler import Compiler, OnCompiled
from propeller.wasm.host_calls import HostAnswer, HostCall, HostCalls
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
from propeller.wasm.outcome import STOPPED_ERROR
from propeller.wasm.program_cache import CachedProgram, ProgramCache
from propeller.wasm.program_run import MIB, Limits, ProgramError, ProgramRun, RunOutcome, StateFolder
from propeller.wasm.task_folders import TaskFolders
from propeller.wasm.task_runs import ActiveRun, OnStderr, TaskRuns
from propeller.wasm.template_client import SandboxError, TemplateClient

__all__ = ["Limits", "ProgramError", "ProgramRun", "RunOutcome", "Sandbox"]

_START = "_start"
"""The name of a task that runs a program as a command."""

NATIVE_FILE = ".program"
"""In ``/in`` of a native program's task: the program."""

NOT_SWITCHED_ON = (
    "native programs are not switched on on this device: its owner sets PROPLET_NATIVE_PYTHON to an interpreter, and names in "
    "[native] of PROPLET_POLICY whose programs it runs"
)

NOT_HERE = "a native program runs with a device's Python: on a stack (propeller up --native-python PYTHON), or with propeller try and simulate; it cannot be a strategy"
"""What is said where native programs are not run, nor can be allowed."""

_PROGRAMS = "programs"
_CACHE_BYTES = 1024 * MIB
_NICE = 5
"""Added to the tasks' niceness, so that the device's other work goes first."""


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
        self._template = TemplateClient(_NICE, self._folders.own, processors)
        self._native_templates = NativeTemplates(_NICE, self._folders.own, processors)
        self._compiler = Compiler(self._cache, self._template, self._folders.own, on_compiled)
        self._calls = HostCalls(self._template, self._folders)
        self._task_runs = TaskRuns()
        self._running: dict[str, ActiveRun] = {}

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._folders.open)
        await self._task_runs.open()
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
        await self._task_runs.close()
        await asyncio.to_thread(self._folders.close)

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
            raise ProgramError(NOT_HERE)
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
            raise ProgramError(NOT_HERE)
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
        active = self._running[run.id] = ActiveRun(on_stderr)
        try:
            return await self._compile_and_run(run, active)
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
        """End a run at once; its outcome's error is ``stopped before completion``, unless it ended before and only its folders are removed yet.

        False: there is no such run.
        """
        active = self._running.get(run_id)
        if active is None:
            return False
        active.stop()
        return True

    async def _compile_and_run(self, run: ProgramRun, active: ActiveRun) -> RunOutcome:
        if self._cache.is_native(run.digest):
            return await self._run_native(run, active)
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
            outcome = await self._run_compiled(run, program, active)
            if outcome is not None:
                extra = {"compile_ms": compile_ms} if compile_ms else {}
                return replace(outcome, metrics={**outcome.metrics, **extra})
            self._cache.remove_artifact(program)  # another build's: made again, once
        return RunOutcome(error="sandbox: the compiled program cannot be loaded")

    async def _run_compiled(
        self,
        run: ProgramRun,
        program: CachedProgram,
        active: ActiveRun,
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
        module = TENSOR_MODULE if program.host_tensors else None
        return await self._task_runs.run(run, task, folder, active, self._template, module)

    async def _run_native(self, run: ProgramRun, active: ActiveRun) -> RunOutcome:
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
            outcome = await self._task_runs.run(run, task, folder, active, template or self._template)
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


def _state_access(state: StateFolder | None) -> str | None:
    if state is None:
        return None
    return STATE_READABLE if state.target is None else STATE_WRITABLE
