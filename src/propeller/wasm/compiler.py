"""Programs made ready to run: verified, compiled in a process of their own, kept in the cache."""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cachetools import TTLCache

from propeller.process.single_flight import SingleFlight
from propeller.wasm.messages import CompileTask, Task, compiler_seconds, compiler_threads, encode
from propeller.wasm.output import DISCARD
from propeller.wasm.program_cache import CachedProgram, ProgramCache
from propeller.wasm.program_run import Limits, ProgramError
from propeller.wasm.template_client import ProcessEnd, TemplateClient

_WALL_S = 20.0
"""How many times its processor time a compilation may take by the clock: what it waits for on a busy device does not count."""

_REMEMBERED_S = 600.0
"""For how long a program that cannot be compiled is not tried again."""

_MAX_REMEMBERED = 256
_LOCK_MARGIN_S = 5.0
_CPU_SLACK = 0.3
"""The part of the limit by which the kernel may say less in the end than what it ended the process for, which it counts in ticks."""

_CRASHES = {-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGKILL, -signal.SIGBUS}


OnCompiled = Callable[[str, float], None]
"""Is told the digest of a program, without its algorithm, and the milliseconds that compiling it took."""

_Build = tuple[Path, float, int, int]
"""An artifact, and the limits that its compilation is held to."""


class Compiler:
    """Compiles what the cache has, once for all who ask for it at the same time."""

    def __init__(
        self,
        cache: ProgramCache,
        template: TemplateClient,
        folder: Path,
        on_compiled: OnCompiled | None = None,
    ) -> None:
        """``folder`` is for task files; ``on_compiled`` is told of each program that was compiled here."""
        self._cache, self._template, self._folder = cache, template, folder
        self._on_compiled = on_compiled
        self._compiling = SingleFlight[_Build, float]()
        self._one = asyncio.Lock()
        """One at a time: each may use all processors, and as much memory as several tasks."""
        self._failures: TTLCache[_Build, ProgramError] = TTLCache(_MAX_REMEMBERED, _REMEMBERED_S)

    async def keep(self, digest: str, wasm: bytes, limits: Limits) -> None:
        """Verify a program and keep it, with the shared runtime that it needs, if that was made on this machine.

        Raises:
            ProgramError: it is not what its digest says, not valid Wasm, or over a limit.
        """
        await asyncio.to_thread(self._cache.add, digest, wasm, limits.module_bytes)
        if self._cache.missing_runtime(digest):
            await asyncio.to_thread(self._cache.take_runtime, digest)

    async def add(self, digest: str, wasm: bytes, limits: Limits) -> None:
        """Verify a program, compile it and keep it; one over a runtime that is not there is only kept.

        Raises:
            ProgramError: it is not what its digest says, not valid Wasm, or over a limit.
            SandboxError: the template is gone.
        """
        await self.keep(digest, wasm, limits)
        if not self._cache.missing_runtime(digest):
            await self.prepare(digest, limits)

    async def prepare(self, digest: str, limits: Limits) -> tuple[CachedProgram, float]:
        """A program with its artifact, and the milliseconds that compiling it took now (0: it was there).

        Raises:
            ProgramError: the program is not in the cache, or cannot be compiled within the limits.
            SandboxError: the template is gone.
        """
        await self._template.ready()
        if self._cache.missing_runtime(digest):
            await asyncio.to_thread(self._cache.take_runtime, digest)
        program = self._cache.find(digest, self._template.runtime_version, fuel=limits.fuel is not None)
        size = max(program.source.stat().st_size, len(program.layer or b""))
        if size > limits.module_bytes:
            raise ProgramError.over_limit("module_bytes", limits.module_bytes)
        if self._cache.is_verified(program):
            return program, 0.0
        key = _build(program, limits)
        if (failure := self._failures.get(key)) is not None:
            raise ProgramError(str(failure), failure.limit)
        return program, await self._compiling.run(key, partial(self._compile_once, program, limits))

    async def close(self) -> None:
        """Cancel the compilations that still run."""
        await self._compiling.close()

    async def _compile_once(self, program: CachedProgram, limits: Limits) -> float:
        """Compile a program, unless another process that shares the cache does; milliseconds it took here.

        Longer than a compilation may take nobody waits for another process: it may be stopped. It goes on when those who wait
        for it have given up, as a task whose round is over.
        """
        wait_s = _WALL_S * limits.compile_s + _LOCK_MARGIN_S
        async with self._cache.lock("compile", program.source.stem, wait_s):
            if await asyncio.to_thread(self._cache.verify_artifact, program):
                return 0.0
            started_at = time.monotonic()
            await asyncio.to_thread(self._cache.verify, program)
            async with self._one:
                await self._compile(program, limits)
            if not await asyncio.to_thread(self._cache.verify_artifact, program):
                raise ProgramError("sandbox: the compiled program was damaged on its way to the disk")
            took_ms = (time.monotonic() - started_at) * 1000
            if self._on_compiled is not None:
                self._on_compiled(program.source.stem, took_ms)
            return took_ms

    async def _compile(self, program: CachedProgram, limits: Limits) -> None:
        written = self._cache.temporary_artifact(program)
        task = CompileTask(
            source=str(program.source),
            target=str(written),
            component=program.component,
            fuel=limits.fuel is not None,
            max_bytes=self._cache.max_bytes,
            limits=limits,
        )
        task_file = self._folder / f"{secrets.token_hex(8)}.json"
        try:
            write_task(task_file, task)
            process = self._template.start(
                task_file,
                _WALL_S * limits.compile_s,
                limits,
                threads=compiler_threads(limits),
                stdout=DISCARD,
                stderr=DISCARD,
            )
            try:
                end = await process.ended()
            except asyncio.CancelledError:
                process.kill()
                raise
            try:
                _check(end, limits)
            except ProgramError as error:
                if end.report is not None or _ran_out(
                    end, limits
                ):  # else it may have been the device's fault
                    self._failures[_build(program, limits)] = error
                raise
            await asyncio.to_thread(self._cache.keep_artifact, written, program)
        finally:
            task_file.unlink(missing_ok=True)
            written.unlink(missing_ok=True)


def write_task(path: Path, task: Task) -> None:
    """Write what a task's process reads first; it may hold secrets, and only this user can read it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "wb") as file:  # noqa: PTH123 - of a descriptor
        file.write(encode(task))


def _build(program: CachedProgram, limits: Limits) -> _Build:
    return program.artifact, limits.compile_s, limits.compile_memory_bytes, compiler_threads(limits)


def _ran_out(end: ProcessEnd, limits: Limits) -> bool:
    """Whether a compilation took all the processor time that it may."""
    was_ended = end.report is None and end.status in {-signal.SIGKILL, -signal.SIGXCPU}
    return was_ended and end.cpu_s >= compiler_seconds(limits) * (1 - _CPU_SLACK)


def _check(end: ProcessEnd, limits: Limits) -> None:
    """See how a compilation ended.

    Raises:
        ProgramError: there is no artifact.
    """
    report = end.report
    if end.reason == "wall_time_s" or _ran_out(end, limits):
        raise ProgramError.over_limit("compile_s", limits.compile_s)
    if end.reason == "threads":
        raise ProgramError.over_limit("threads", compiler_threads(limits))
    if report is None and end.status in _CRASHES:
        limit = "compile_memory_bytes"
        raise ProgramError(f"{limits.error(limit)}: the compiler was ended", limit)
    if end.status != 0 or report is None or report.error is not None:
        error = report.error if report else None
        raise ProgramError(error or f"the compiler ended with status {end.status}")
