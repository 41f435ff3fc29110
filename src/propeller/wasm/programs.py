"""Programs ready to run: verified, compiled in a process of their own, kept in the cache."""

import asyncio
import json
import os
import secrets
import signal
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from propeller.wasm.cache import Cache, Program
from propeller.wasm.job import Limits, ProgramError, over
from propeller.wasm.link import Ended, Link
from propeller.wasm.pipe import NOWHERE
from propeller.wasm.report import read_report

_MARGIN_S = 5.0
_CRASHES = {-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGKILL, -signal.SIGBUS}


class Programs:
    """The cache and the compiler; ``tasks`` is the folder for task files."""

    def __init__(self, cache: Cache, link: Link, tasks: Path) -> None:
        self._cache, self._link, self._tasks = cache, link, tasks
        self._compiling: dict[Path, asyncio.Lock] = {}

    async def add(self, digest: str, wasm: bytes, limits: Limits) -> None:
        """Verify a program, compile it and keep it.

        Raises:
            ProgramError: it is not what its digest says, not valid Wasm, or over a limit.
            LinkError: the sandbox's process is gone.
        """
        await asyncio.to_thread(self._cache.put, digest, wasm, limits.module_bytes)
        await self.ready(digest, limits)

    async def ready(self, digest: str, limits: Limits) -> tuple[Program, float]:
        """A program with its artifact made, and the milliseconds that took now (0: it was there).

        Raises:
            ProgramError: the program is not in the cache, or cannot be compiled within the limits.
            LinkError: the sandbox's process is gone.
        """
        await self._link.hello()
        program = self._cache.find(digest, self._link.runtime, fuel=limits.fuel is not None)
        if program.source.stat().st_size > limits.module_bytes:
            raise ProgramError(over("module_bytes", limits.module_bytes), "module_bytes")
        if self._cache.trusted(program):
            return program, 0.0
        async with self._compiling.setdefault(program.artifact, asyncio.Lock()), self._turn(digest, limits):
            if self._cache.trusted(program):
                return program, 0.0
            begin = time.monotonic()
            await asyncio.to_thread(self._cache.check, program)
            await self._compile(program, limits)
            return program, (time.monotonic() - begin) * 1000

    def _turn(self, digest: str, limits: Limits) -> AbstractAsyncContextManager[bool]:
        """Longer than a compilation may take nobody waits for another process: it may be stopped."""
        return self._cache.turn("compile", digest, limits.compile_s + _MARGIN_S)

    async def _compile(self, program: Program, limits: Limits) -> None:
        written = self._cache.temporary(program)
        task = {
            "kind": "compile",
            "source": str(program.source),
            "target": str(written),
            "component": program.component,
            "fuel": limits.fuel is not None,
            "artifact_bytes": self._cache.size,
            "limits": asdict(limits),
        }
        place = self._tasks / f"{secrets.token_hex(8)}.json"
        try:
            write_task(place, task)
            request = {"task": str(place), "wall_time_s": limits.compile_s}
            process = await self._link.start(request, NOWHERE, NOWHERE)
            try:
                ended = await process.ended()
            except asyncio.CancelledError:
                process.kill()
                raise
            _judge(ended, limits)
            await asyncio.to_thread(self._cache.keep, written, program)
        finally:
            place.unlink(missing_ok=True)
            written.unlink(missing_ok=True)


def _judge(ended: Ended, limits: Limits) -> None:
    report = read_report(ended.result)
    if ended.reason == "wall_time_s":
        raise ProgramError(over("compile_s", limits.compile_s), "compile_s")
    if not report and ended.status in _CRASHES:
        limit = "compile_memory_bytes"
        raise ProgramError(f"{over(limit, limits.compile_memory_bytes)}: the compiler was ended", limit)
    if ended.status != 0 or report.get("error", "") is not None:
        raise ProgramError(str(report.get("error") or f"the compiler ended with status {ended.status}"))


def write_task(path: Path, task: dict[str, Any]) -> None:
    """Write what a task's process reads first; it may hold secrets, and only this user can read it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w", encoding="utf-8") as file:  # noqa: PTH123 - of a descriptor
        json.dump(task, file)
