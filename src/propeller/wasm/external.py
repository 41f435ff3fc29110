"""Runs Wasm programs with a runtime of the operator's, such as ``wasmtime``, instead of the built-in one.

The command is that of absmach/propeller: ``RUNTIME run [--invoke NAME] CLI_ARGS… --env NAME… --dir FOLDER::/in --dir
FOLDER::/out proplet_ID.wasm INPUTS…``. Of the environment only names stand in it; the values are in the runtime's own
environment, and what is long is in the files of ``/in``.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from propeller.wasm import folder_contents
from propeller.wasm.host_calls import HostAnswer, HostCall, HostCalls
from propeller.wasm.messages import BoundedFolder, TaskReport
from propeller.wasm.outcome import bounded_folders, exit_report, judge_outcome, run_metrics, signal_name
from propeller.wasm.output import LineSplitter, OutputPipe, OutputSink
from propeller.wasm.program_cache import CachedProgram, ProgramCache
from propeller.wasm.program_run import MIB, Limits, ProgramError, ProgramRun, RunOutcome
from propeller.wasm.task_folders import TaskFolders
from propeller.wasm.template_client import ProcessEnd, TemplateClient

VARIABLE_BYTES = 128 * 1024
"""A longer environment variable cannot be given to a process (Linux: ``MAX_ARG_STRLEN``)."""

_IN_FILES = frozenset({"MODEL_DATA", "DATASET_DATA", "HYPERPARAMS"})
"""Variables that are left out when they are too long: files hold the same."""

_PASSED_ON = ("PATH", "HOME", "LANG")
_LIBRARIES = ("LD_", "DYLD_", "GLIBC_", "GCONV_", "MALLOC_", "XDG_")
_READ_BY_RUNTIMES = (*_LIBRARIES, "RUST_", "WASM", "PYTHON", "BASH_", "NODE_")
_READ_BY_SHELLS = frozenset({*_PASSED_ON, "TMPDIR", "IFS", "ENV"})

_SEARCH_EVERY_S = 0.05
_NICE = 5
_RUNTIME_THREADS = 2 * (os.cpu_count() or 1)
_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from propeller.wasm.confinement import launch_runtime; launch_runtime()"


class ExternalRuntime:
    """Holds programs and runs each with the runtime, in a process of its own; stands in for ``Sandbox``.

    Args:
        runtime: A path, or the name of a command.
        folder: Its own, for task folders and programs; made if missing.
        cache: The folder of programs, if it is elsewhere.
        cache_bytes: The bound of its size.
        processors: How many of them all runs may use together; None: all.

    Raises:
        ProgramError: there is no such runtime, or a folder belongs to someone else.
    """

    def __init__(
        self,
        runtime: str,
        folder: Path,
        *,
        cache: Path | None = None,
        cache_bytes: int = 1024 * MIB,
        processors: int | None = None,
    ) -> None:
        self._processors = processors
        found = shutil.which(runtime)
        if found is None:
            raise ProgramError(
                f"PROPLET_EXTERNAL_WASM_RUNTIME: {runtime} is not a program that can be run; give the path of one, "
                "or leave it empty for the built-in sandbox"
            )
        self._runtime = str(Path(found).absolute())
        folder = folder.absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cache = ProgramCache((cache or folder / "programs").absolute(), cache_bytes)
        self._folders = TaskFolders(folder / "tasks")
        self._template = TemplateClient(_NICE, self._folders.own, processors)  # started by the first call
        self._calls = HostCalls(self._template, self._folders)

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._folders.open)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._template.close()
        await asyncio.to_thread(self._folders.close)

    def has(self, digest: str) -> bool:
        """Whether the program is in the cache."""
        return self._cache.has(digest)

    def read(self, digest: str) -> bytes:
        """A program's bytes; raises ``ProgramError`` if it is not in the cache."""
        return self._cache.read(digest)

    def is_native(self, digest: str) -> bool:
        """As ``Sandbox.is_native``."""
        return self._cache.is_native(digest)

    def missing_runtime(self, digest: str) -> str | None:
        """As ``Sandbox.missing_runtime``; raises ``ProgramError`` also if it needs one, which an external runtime cannot give it, or is native."""
        if self._cache.is_native(digest):
            raise ProgramError("this proplet runs programs with an external runtime, and no native ones")
        if self._cache.is_layer(digest):
            raise ProgramError(
                "the program is a layer over a shared runtime, which an external runtime cannot run: build it with --plain"
            )
        return None

    def fetch_lock(self, digest: str, wait_s: float) -> AbstractAsyncContextManager[bool]:
        """As ``Sandbox.fetch_lock``."""
        return self._cache.lock("fetch", digest, wait_s)

    async def prepare(self, digest: str, limits: Limits = Limits()) -> float:  # noqa: ARG002, B008 - as Sandbox
        """0: the runtime compiles a program each time that it runs it."""
        return 0.0

    async def keep(self, digest: str, wasm: bytes, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        """Verify a program and keep it.

        Raises:
            ProgramError: it is not what its digest says, no Wasm, or over a limit.
        """
        await asyncio.to_thread(self._cache.add, digest, wasm, limits.module_bytes)

    def memory_bound(self, digest: str, limits: Limits) -> int:  # noqa: ARG002 - as Sandbox
        """The bytes of memory that a run may take at most, with compiling its program."""
        return limits.memory_bytes + limits.compile_memory_bytes

    async def run(self, run: ProgramRun, on_stderr: Callable[[str], None] | None = None) -> RunOutcome:
        """Run a program once; as ``Sandbox.run``, without fuel, tables and host tensors, which only the runtime sees."""
        folder = self._folders.new()
        try:
            self.missing_runtime(run.digest)
            program = self._cache.find(run.digest, "", fuel=False)
            _check(run, program)
            env = _environment(run.env)
            await asyncio.to_thread(_create_folder, folder, run, program.source)
            return await self._run(run, self._command(run, program, folder, env), env, folder, on_stderr)
        except ProgramError as error:
            return RunOutcome(error=str(error), limit=error.limit)
        except ValueError as error:
            return RunOutcome(error=str(error))
        except OSError as error:  # the disk is full, or there are no more descriptors
            return RunOutcome(error=f"sandbox: {error.strerror}: {error.filename or 'a pipe'}")
        finally:
            await asyncio.shield(asyncio.to_thread(_remove_folder, folder))

    def call(self, call: HostCall) -> AbstractAsyncContextManager[HostAnswer]:
        """As ``HostCalls.call``."""
        return self._calls.call(call)

    def _command(
        self, run: ProgramRun, program: CachedProgram, folder: Path, env: Mapping[str, str]
    ) -> list[str]:
        command = [self._runtime, "run"]
        name, inputs = run.export, list(run.inputs)
        if name and name != "_start" and "--invoke" not in run.args:
            if program.component:
                name, inputs = f"{name}({', '.join(inputs)})", []
            command += ["--invoke", name]
        command += run.args
        for variable in run.env:
            command += ["--env", variable] if variable in env else []
        for mounted in ("in", "out", "state") if run.state else ("in", "out"):
            command += ["--dir", f"{folder / mounted}::/{mounted}"]
        return [*command, str(_program_file(folder, run)), *inputs]

    async def _run(
        self,
        run: ProgramRun,
        command: list[str],
        env: dict[str, str],
        folder: Path,
        on_stderr: Callable[[str], None] | None,
    ) -> RunOutcome:
        asked_at, limits, searched = time.monotonic(), run.limits, bounded_folders(run, folder)
        stdout, lines, exceeded = bytearray(), LineSplitter(on_stderr), list[str]()
        pipes = [
            OutputPipe(
                OutputSink(limits.stdout_bytes, stdout.extend, partial(exceeded.append, "stdout_bytes"))
            ),
            OutputPipe(OutputSink(limits.stderr_bytes, lines.feed, partial(exceeded.append, "stderr_bytes"))),
        ]
        try:
            process = _RuntimeProcess(
                command, env, folder, limits, [pipe.write_end for pipe in pipes], self._processors
            )
        except BaseException:
            for pipe in pipes:
                pipe.close()
            raise
        finally:
            for pipe in pipes:
                os.close(pipe.write_end)
        reason = None
        try:
            while not await process.ends_within(_SEARCH_EVERY_S):
                if time.monotonic() - asked_at >= limits.wall_time_s:
                    reason = "wall_time_s"
                elif reason is None and not exceeded:
                    reason = _exceeded_limit(process.pid, limits, searched)
                if reason or exceeded:
                    process.kill()
        finally:
            process.kill()  # when this is cancelled; and what the runtime may have left in its group
            await asyncio.shield(process.exited.wait())
            status, usage = process.reap()
            await asyncio.shield(asyncio.wait([pipe.closed for pipe in pipes], timeout=1))
            for pipe in pipes:
                pipe.close()
        lines.end()
        report = replace(_report(status), entered_s=asked_at, run_s=time.monotonic() - asked_at)
        end = ProcessEnd(status, reason, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, report)
        outcome = await asyncio.to_thread(
            judge_outcome,
            run,
            end,
            task_folder=folder,
            stdout=bytes(stdout),
            exceeded=exceeded[0] if exceeded else None,
        )
        return replace(outcome, metrics=run_metrics(end, asked_at))


def _exceeded_limit(pid: int, limits: Limits, searched: Sequence[BoundedFolder]) -> str | None:
    """The limit that a runtime's process is over; its own threads, some for each processor, are not the program's."""
    if folder_contents.thread_count(pid) > limits.threads + _RUNTIME_THREADS:
        return "threads"
    count, unlinked = folder_contents.open_files(pid)
    if count > limits.descriptors:
        return "descriptors"
    over = (
        folder_contents.exceeded_limit(each.name, each.folder, each.max_bytes, each.max_files, unlinked)
        for each in searched
    )
    return next(filter(None, over), None)


class _RuntimeProcess:
    """A runtime's process, the leader of its group; its id is kept until ``reap``, so that no signal goes astray.

    Raises:
        ProgramError: it cannot be started.
    """

    def __init__(
        self,
        command: list[str],
        env: dict[str, str],
        folder: Path,
        limits: Limits,
        writers: list[int],
        processors: int | None,
    ) -> None:
        data_bytes = limits.memory_bytes + limits.compile_memory_bytes
        file_bytes = max(
            limits.out_bytes + 1, limits.state_bytes + 1, 256 * MIB
        )  # what a runtime caches is not the task's
        cpu_s = int(limits.wall_time_s) * (os.cpu_count() or 1) + 5
        package = str(Path(__file__).parents[2])
        launcher = [sys.executable, "-I", "-S", "-c", _CODE, package]
        launcher += map(str, [os.getpid(), _NICE, data_bytes, file_bytes, cpu_s])
        launcher += map(str, [limits.descriptors + 1, processors or 0])
        try:
            self._child = subprocess.Popen(  # noqa: S603 - the operator's runtime
                [*launcher, *command],
                env=env,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=writers[0],
                stderr=writers[1],
            )
        except OSError as error:
            raise ProgramError(f"{command[0]} cannot be started: {error.strerror}") from None
        self.exited = asyncio.Event()
        arguments = (self._child.pid, asyncio.get_running_loop(), self.exited)
        threading.Thread(target=_wait_for_exit, args=arguments, daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    async def ends_within(self, seconds: float) -> bool:
        """Wait for its end, for a while; whether it ended."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.exited.wait(), seconds)
        return self.exited.is_set()

    def kill(self) -> None:
        """End it and what it has started."""
        for send in (os.killpg, os.kill):  # it leads its group only once the launcher has made it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                send(self._child.pid, signal.SIGKILL)

    def reap(self) -> tuple[int, Any]:
        """Its exit status (negative: the signal) and what it used."""
        _, status, usage = os.wait4(self._child.pid, 0)
        self._child.returncode = os.waitstatus_to_exitcode(status)
        return self._child.returncode, usage


def _wait_for_exit(pid: int, loop: asyncio.AbstractEventLoop, exited: asyncio.Event) -> None:
    """Set the event when a process has ended; it is not reaped."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(exited.set)


def _check(run: ProgramRun, program: CachedProgram) -> None:
    """See that a run asks for nothing that only the built-in sandbox does.

    Raises:
        ProgramError: it does.
    """
    if program.source.stat().st_size > run.limits.module_bytes:
        raise ProgramError.over_limit("module_bytes", run.limits.module_bytes)
    if (run.export or "").startswith("-"):
        raise ProgramError(f"name: {run.export!r:.80} is no function's: it would be an option of the runtime")
    if run.limits.fuel is not None:
        raise ProgramError("fuel: this proplet runs programs with an external runtime, which counts none")
    if program.host_tensors:
        raise ProgramError(
            "the program imports the host's tensors, which this proplet's external runtime does not have: build it "
            "with propeller build --plain"
        )


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The runtime's environment: nothing of the proplet's but what finds programs, and the task's.

    Raises:
        ValueError: a variable would be the runtime's own, or is too long.
    """
    env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    for name, value in variables.items():
        if not name or name.startswith("-") or "=" in name:
            raise ValueError(f"env: {name[:80]!r} is not the name of a variable")
        if name in _READ_BY_SHELLS or name.startswith(_READ_BY_RUNTIMES):
            raise ValueError(f"env: {name} would change the external runtime itself: give it another name")
        if len(os.fsencode(f"{name}={value}")) < VARIABLE_BYTES:
            env[name] = value
        elif name not in _IN_FILES:
            raise ValueError(
                f"env: {name} is too long for an external runtime, {VARIABLE_BYTES} bytes are taken"
            )
    return env


def _program_file(folder: Path, run: ProgramRun) -> Path:
    return folder / f"proplet_{run.id}.wasm"


def _create_folder(folder: Path, run: ProgramRun, source: Path) -> None:
    folder_contents.create(folder, run.files, run.state)
    shutil.copyfile(source, _program_file(folder, run))
    (folder / "in").chmod(0o500)


def _remove_folder(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (folder / "in").chmod(0o700)
    folder_contents.remove(folder)


def _report(status: int) -> TaskReport:
    """What the built-in sandbox's process would have said."""
    return exit_report(status) or TaskReport(f"the runtime ended by {signal_name(-status)}")
