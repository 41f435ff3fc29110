"""Runs Wasm programs with a runtime of the operator's, such as ``wasmtime``, in the place of the built-in one.

The command is that of absmach/propeller: ``RUNTIME run [--invoke NAME] CLI_ARGS… --env NAME… --dir FOLDER::/in --dir
FOLDER::/out proplet_ID.wasm INPUTS…``. Of the environment only names stand in it; the values are in the runtime's own
environment, and what is long is in the files of ``/in``.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Self

from propeller.wasm import folder as folders
from propeller.wasm.cache import Cache, Program
from propeller.wasm.job import MIB, Job, Limits, Outcome, ProgramError
from propeller.wasm.lines import Lines
from propeller.wasm.link import Ended
from propeller.wasm.pipe import Pipe, Sink
from propeller.wasm.places import Places
from propeller.wasm.verdict import judge, measure

VARIABLE_BYTES = 128 * 1024
"""A longer environment variable cannot be given to a process (Linux: ``MAX_ARG_STRLEN``)."""

_IN_FILES = frozenset({"MODEL_DATA", "DATASET_DATA", "HYPERPARAMS"})
"""Variables that are left out when they are too long: files hold the same."""

_KEPT = ("PATH", "HOME", "LANG")
_LIBRARIES = ("LD_", "DYLD_", "GLIBC_", "GCONV_", "MALLOC_", "XDG_")
_READ_BY_RUNTIMES = (*_LIBRARIES, "RUST_", "WASM", "PYTHON", "BASH_", "NODE_")
_READ_BY_SHELLS = frozenset({*_KEPT, "TMPDIR", "IFS", "ENV"})

_LOOK_EVERY_S = 0.05
_NICE = 5
_CODE = "import sys; sys.path.insert(0, sys.argv[1]); from propeller.wasm.launch import main; main()"


class External:
    """Holds programs and runs each with the runtime, in a process of its own; stands in for ``Sandbox``.

    Args:
        runtime: A path, or the name of a command.
        folder: Its own, for task folders and programs; made if missing.
        cache: The folder of programs, if it is elsewhere.
        cache_bytes: The bound of its size.

    Raises:
        ProgramError: there is no such runtime, or a folder belongs to someone else.
    """

    def __init__(
        self, runtime: str, folder: Path, *, cache: Path | None = None, cache_bytes: int = 1024 * MIB
    ) -> None:
        found = shutil.which(runtime)
        if found is None:
            raise ProgramError(
                f"PROPLET_EXTERNAL_WASM_RUNTIME: {runtime} is not a program that can be run; give the path of one, "
                "or leave it empty for the built-in sandbox"
            )
        self._runtime = str(Path(found).absolute())
        place = folder.absolute()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cache = Cache((cache or place / "programs").absolute(), cache_bytes)
        self._places = Places(place / "tasks")

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._places.open)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._places.close)

    def has(self, digest: str) -> bool:
        """Whether the program is in the cache."""
        return self._cache.has(digest)

    def turn(self, digest: str, wait_s: float) -> AbstractAsyncContextManager[bool]:
        """As ``Sandbox.turn``."""
        return self._cache.turn("fetch", digest, wait_s)

    async def add(self, digest: str, wasm: bytes, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        """Verify a program and keep it.

        Raises:
            ProgramError: it is not what its digest says, no Wasm, or over a limit.
        """
        await asyncio.to_thread(self._cache.put, digest, wasm, limits.module_bytes)

    async def run(self, job: Job, on_stderr: Callable[[str], None] | None = None) -> Outcome:
        """Run a program once; as ``Sandbox.run``, without fuel, tables and host tensors, which only the runtime sees."""
        place = self._places.new()
        try:
            program = self._cache.find(job.digest, "", fuel=False)
            _check(job, program)
            env = _environment(job.env)
            await asyncio.to_thread(_prepare, place, job, program.source)
            return await self._run(job, self._command(job, program, place, env), env, place, on_stderr)
        except (ProgramError, ValueError) as error:
            return Outcome(error=str(error), limit=getattr(error, "limit", None))
        except OSError as error:  # the disk is full, or there are no more descriptors
            return Outcome(error=f"sandbox: {error.strerror}: {error.filename or 'a pipe'}")
        finally:
            await asyncio.shield(asyncio.to_thread(_remove, place))

    def _command(self, job: Job, program: Program, place: Path, env: Mapping[str, str]) -> list[str]:
        command = [self._runtime, "run"]
        name, inputs = job.export, list(job.inputs)
        if name and name != "_start" and "--invoke" not in job.args:
            if program.component:
                name, inputs = f"{name}({', '.join(inputs)})", []
            command += ["--invoke", name]
        command += job.args
        for variable in job.env:
            command += ["--env", variable] if variable in env else []
        for folder in ("in", "out"):
            command += ["--dir", f"{place / folder}::/{folder}"]
        return [*command, str(_program(place, job)), *inputs]

    async def _run(
        self,
        job: Job,
        command: list[str],
        env: dict[str, str],
        place: Path,
        on_stderr: Callable[[str], None] | None,
    ) -> Outcome:
        begin, out = time.monotonic(), place / "out"
        stdout, lines, exceeded = bytearray(), Lines(on_stderr), list[str]()
        pipes = [
            Pipe(Sink(job.limits.stdout_bytes, stdout.extend, lambda: exceeded.append("stdout_bytes"))),
            Pipe(Sink(job.limits.stderr_bytes, lines.feed, lambda: exceeded.append("stderr_bytes"))),
        ]
        try:
            process = _Process(command, env, place, job.limits, [pipe.writer for pipe in pipes])
        except BaseException:
            for pipe in pipes:
                pipe.close()
            raise
        finally:
            for pipe in pipes:
                os.close(pipe.writer)
        reason = None
        try:
            while not await process.ends_within(_LOOK_EVERY_S):
                if time.monotonic() - begin >= job.limits.wall_time_s:
                    reason = "wall_time_s"
                elif reason is None and not exceeded:
                    reason = folders.excess(str(out), job.limits.out_bytes, job.limits.out_files)
                if reason or exceeded:
                    process.kill()
        finally:
            process.kill()  # when this is cancelled; and what the runtime may have left in its group
            await asyncio.shield(process.exited.wait())
            status, usage = process.reap()
            await asyncio.shield(asyncio.wait([pipe.ended for pipe in pipes], timeout=1))
            for pipe in pipes:
                pipe.close()
        lines.end()
        ended = Ended(status, reason, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, b"")
        report = {**_report(status), "entered": begin, "run_s": time.monotonic() - begin}
        outcome = await asyncio.to_thread(
            judge,
            job,
            ended,
            report,
            out=out,
            stdout=bytes(stdout),
            stopped=False,
            exceeded=exceeded[0] if exceeded else None,
        )
        return Outcome(**{**vars(outcome), "metrics": measure(ended, report, begin)})


class _Process:
    """A runtime's process, the leader of its group; its id is kept until ``reap``, so that no signal goes astray.

    Raises:
        ProgramError: it cannot be started.
    """

    def __init__(
        self, command: list[str], env: dict[str, str], place: Path, limits: Limits, writers: list[int]
    ) -> None:
        cores = os.cpu_count() or 1
        bounds = {
            "data_bytes": limits.memory_bytes + limits.compile_memory_bytes,
            "file_bytes": max(limits.out_bytes + 1, 256 * MIB),  # what a runtime caches is not the task's
            "cpu_s": int(limits.wall_time_s) * cores + 5,
        }
        package = str(Path(__file__).parents[2])
        launcher = [sys.executable, "-I", "-S", "-c", _CODE, package, str(os.getpid()), str(_NICE)]
        try:
            self._child = subprocess.Popen(  # noqa: S603 - the operator's runtime
                [*launcher, json.dumps(bounds), *command],
                env=env,
                cwd=place,
                stdin=subprocess.DEVNULL,
                stdout=writers[0],
                stderr=writers[1],
            )
        except OSError as error:
            raise ProgramError(f"{command[0]} cannot be started: {error.strerror}") from None
        self.exited = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait() -> None:
            os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self.exited.set)

        threading.Thread(target=wait, daemon=True).start()

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


def _check(job: Job, program: Program) -> None:
    """See that the job asks for nothing that only the built-in sandbox does.

    Raises:
        ProgramError: it does.
    """
    if program.source.stat().st_size > job.limits.module_bytes:
        raise ProgramError(f"module_bytes: over the limit of {job.limits.module_bytes} bytes", "module_bytes")
    if (job.export or "").startswith("-"):
        raise ProgramError(f"name: {job.export!r:.80} is no function's: it would be an option of the runtime")
    if job.limits.fuel is not None:
        raise ProgramError("fuel: this proplet runs programs with an external runtime, which counts none")
    if program.tensors:
        raise ProgramError(
            "the program imports the host's tensors, which this proplet's external runtime does not have: build it "
            "with propeller build --plain"
        )


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """The runtime's environment: nothing of the proplet's but what finds programs, and the task's.

    Raises:
        ValueError: a variable would be the runtime's own, or is too long.
    """
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    for name, value in given.items():
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


def _program(place: Path, job: Job) -> Path:
    return place / f"proplet_{job.id}.wasm"


def _prepare(place: Path, job: Job, source: Path) -> None:
    folders.make(place, job.files)
    shutil.copyfile(source, _program(place, job))
    (place / "in").chmod(0o500)


def _remove(place: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        (place / "in").chmod(0o700)
    folders.remove(place)


def _report(status: int) -> dict[str, Any]:
    """What the built-in sandbox's process would have said."""
    if status >= 0:
        return {"error": f"the program exited with code {status}" if status else None, "exit_code": status}
    return {"error": f"the runtime ended by {signal.Signals(-status).name}"}
