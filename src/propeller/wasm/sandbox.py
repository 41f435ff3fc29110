"""Runs Wasm programs, each in its own confined process, within limits.

The process that uses this never loads the runtime: see ``template.py`` for who does, and why that is quick.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from propeller.wasm import folder as folders
from propeller.wasm.cache import Cache, Program
from propeller.wasm.job import MIB, Job, Limits, Outcome, ProgramError, over
from propeller.wasm.lines import Lines
from propeller.wasm.link import Ended, Link, LinkError, Pipe, Process

__all__ = ["Job", "Limits", "Outcome", "ProgramError", "Sandbox"]

STOPPED = "stopped before completion"
_INLINE_BYTES = 256 * 1024


class Sandbox:
    """Holds programs and runs them; ``folder`` is its own (cache and task folders).

    Args:
        folder: Made if missing, mode 0700.
        cache_bytes: The bound of the cache's size.
        nice: Added to the tasks' niceness, so that the device's other work goes first.
    """

    def __init__(self, folder: Path, *, cache_bytes: int = 1024 * MIB, nice: int = 5) -> None:
        self._folder = folder.absolute()
        self._cache_bytes = cache_bytes
        self._cache = Cache(self._folder / "programs", cache_bytes)
        self._tasks = self._folder / "tasks" / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._lock = -1
        self._link = Link(nice)
        self._running: dict[str, _Running] = {}
        self._compiling: dict[Path, asyncio.Lock] = {}

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._sweep)
        self._link.open()
        try:
            await self._link.hello()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.close()
        while self._running:  # their ends are on the way
            await asyncio.sleep(0.005)
        if self._lock >= 0:
            await asyncio.to_thread(folders.remove, self._tasks)
            os.close(self._lock)
            self._lock = -1

    @property
    def template_pid(self) -> int:
        """The process id of the template, for measuring it."""
        return self._link.pid

    async def protections(self) -> list[str]:
        """What the kernel offers to confine tasks (``rlimits``, ``no_new_privs``, ``landlock``, ``seccomp``)."""
        return list((await self._link.hello())["protections"])

    def has(self, digest: str) -> bool:
        """Whether the program is in the cache."""
        return self._cache.has(digest)

    async def add(self, digest: str, wasm: bytes, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        """Verify a program, compile it in a process of its own, and keep it.

        Raises:
            ProgramError: it is not what its digest says, not valid Wasm, or over a limit.
        """
        await asyncio.to_thread(self._cache.put, digest, wasm, limits.module_bytes)
        await self._compiled(digest, limits)

    async def run(self, job: Job, on_stderr: Callable[[str], None] | None = None) -> Outcome:
        """Run a program once; never raises for what the program does.

        Args:
            job: What to run; its id must not be that of a job still running.
            on_stderr: Called with each line of the program's standard error as it comes.
        """
        if job.id in self._running:
            return Outcome(error=f"a job with the id {job.id} is still running")
        running = self._running[job.id] = _Running()
        begin = time.monotonic()
        try:
            metrics: dict[str, float] = {}
            compiled = asyncio.ensure_future(self._compiled(job.digest, job.limits))
            await asyncio.wait({compiled, running.stopped}, return_when=asyncio.FIRST_COMPLETED)
            if running.stopped.done():
                compiled.cancel()
                return Outcome(error=STOPPED)
            program, compile_ms = await compiled
            if compile_ms:
                metrics["compile_ms"] = compile_ms
            outcome = await self._run(job, program, running, begin, on_stderr)
            if outcome is None:  # its artifact does not load: make it again, once
                program.artifact.unlink(missing_ok=True)
                program, metrics["compile_ms"] = await self._compiled(job.digest, job.limits)
                outcome = await self._run(job, program, running, begin, on_stderr)
            if outcome is None:
                return Outcome(error="sandbox: the compiled program cannot be loaded")
            outcome.metrics.update(metrics)  # type: ignore[attr-defined]
            return outcome
        except (ProgramError, LinkError, ValueError) as error:
            return Outcome(error=str(error), limit=getattr(error, "limit", None))
        finally:
            del self._running[job.id]

    async def kill(self, job_id: str) -> bool:
        """End a job at once; its outcome's error is ``stopped before completion``. False: there is no such job."""
        running = self._running.get(job_id)
        if running is None:
            return False
        running.stop()
        return True

    async def _run(
        self,
        job: Job,
        program: Program,
        running: "_Running",
        begin: float,
        on_stderr: Callable[[str], None] | None,
    ) -> Outcome | None:
        place = self._tasks / secrets.token_hex(8)
        limits = job.limits
        task = {
            "kind": "run",
            "folder": str(place),
            "artifact": str(program.artifact),
            "component": program.component,
            "env": dict(job.env),
            "args": job.args,
            "export": job.export,
            "inputs": job.inputs,
            "limits": asdict(limits),
        }
        try:
            await _perhaps_in_thread(job.files, _prepare, place, job, task)
            stdout = bytearray()
            lines = Lines(on_stderr)
            request = {
                "task": str(place / "task.json"),
                "wall_time_s": limits.wall_time_s,
                "out": {"folder": str(place / "out"), "out_bytes": limits.out_bytes, "out_files": limits.out_files},
            }
            pipes = [
                Pipe(limits.stdout_bytes, stdout.extend, lambda: running.exceed("stdout_bytes")),
                Pipe(limits.stderr_bytes, lines.feed, lambda: running.exceed("stderr_bytes")),
            ]
            running.process = process = self._link.start(request, pipes)
            if running.stopped.done():
                process.kill()
            try:
                ended = await process.ended()
            except asyncio.CancelledError:
                process.kill()
                with contextlib.suppress(LinkError):
                    await process.ended()
                raise
            lines.end()
            return await self._outcome(job, running, ended, bytes(stdout), place, begin)
        finally:
            await _perhaps_in_thread(job.files, folders.remove, place)

    async def _outcome(
        self, job: Job, running: "_Running", ended: Ended, stdout: bytes, place: Path, begin: float
    ) -> Outcome | None:
        report = _read(ended.result)
        if report.get("stale"):
            return None
        entered = report.get("entered")
        metrics = {
            "total_ms": (time.monotonic() - begin) * 1000,
            "cpu_ms": ended.cpu_s * 1000,
            "memory_peak_bytes": float(ended.memory_peak_bytes),
        }
        if isinstance(entered, float):
            metrics["start_ms"] = (entered - begin) * 1000
            metrics["run_ms"] = report.get("run_s", time.monotonic() - entered) * 1000
        if isinstance(report.get("fuel"), int):
            metrics["fuel"] = float(report["fuel"])
        limit = running.exceeded or (ended.reason if ended.reason != "killed" else None)
        limit = limit if limit and (ended.status < 0 or running.exceeded) else None
        limit = limit or folders.excess(str(place / "out"), job.limits.out_bytes, job.limits.out_files)
        error, files = None, {}
        if limit:
            error = over(limit, getattr(job.limits, limit), "files" if limit == "out_files" else "")
        elif running.stopped.done() and ended.status < 0:
            error = STOPPED
        elif not report:
            error, limit = _died(ended.status, ended.memory_peak_bytes, job.limits)
        else:
            error, limit = report.get("error"), report.get("limit")
        if error is None:
            try:
                files = folders.collect(place / "out")
            except folders.OutError as problem:
                error = str(problem)
        code, value = report.get("exit_code"), report.get("value")
        return Outcome(error, limit, code, stdout, value, files, metrics)

    async def _compiled(self, digest: str, limits: Limits) -> tuple[Program, float]:
        """The program with its artifact made, and the milliseconds that took now (0: it was there)."""
        hello = await self._link.hello()
        program = self._cache.find(digest, hello["wasmtime"], fuel=limits.fuel is not None)
        if self._cache.trusted(program):
            return program, 0.0
        async with self._compiling.setdefault(program.artifact, asyncio.Lock()):
            if self._cache.trusted(program):
                return program, 0.0
            begin = time.monotonic()
            await self._compile(program, limits)
            return program, (time.monotonic() - begin) * 1000

    async def _compile(self, program: Program, limits: Limits) -> None:
        await asyncio.to_thread(self._cache.check, program)
        written = self._cache.temporary(program)
        task = {
            "kind": "compile",
            "source": str(program.source),
            "target": str(written),
            "component": program.component,
            "fuel": limits.fuel is not None,
            "artifact_bytes": self._cache_bytes,
            "limits": asdict(limits),
        }
        place = self._tasks / f"{secrets.token_hex(8)}.json"
        pipes = [Pipe(0, lambda _: None, lambda: None), Pipe(0, lambda _: None, lambda: None)]
        try:
            _write(place, task)
            process = self._link.start({"task": str(place), "wall_time_s": limits.compile_s}, pipes)
            try:
                ended = await process.ended()
            except asyncio.CancelledError:
                process.kill()
                raise
            report = _read(ended.result)
            if ended.reason == "wall_time_s":
                raise ProgramError(over("compile_s", limits.compile_s), "compile_s")
            if not report and ended.status in {-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGKILL}:
                raise ProgramError(over("compile_memory_bytes", limits.compile_memory_bytes), "compile_memory_bytes")
            if not report or report.get("error"):
                raise ProgramError(str(report.get("error") or f"the compiler ended with status {ended.status}"))
            await asyncio.to_thread(self._cache.keep, written, program)
        finally:
            place.unlink(missing_ok=True)
            written.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Make this sandbox's task folder, and remove those of sandboxes that are gone: no one holds their lock."""
        base = self._tasks.parent
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in base.iterdir():
            fd = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folders.remove(entry)
            except BlockingIOError:
                pass
            finally:
                os.close(fd)
        self._tasks.mkdir(mode=0o700)
        self._lock = os.open(self._tasks, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)


class _Running:
    """A job under way: whether it was stopped or went over what the proplet's side counts."""

    def __init__(self) -> None:
        self.process: Process | None = None
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.exceeded: str | None = None

    def stop(self) -> None:
        if not self.stopped.done():
            self.stopped.set_result(None)
        self._kill()

    def exceed(self, limit: str) -> None:
        self.exceeded = self.exceeded or limit
        self._kill()

    def _kill(self) -> None:
        if self.process:
            with contextlib.suppress(LinkError):  # then it has ended already
                self.process.kill()


def _prepare(place: Path, job: Job, task: dict[str, Any]) -> None:
    folders.make(place, job.files)
    _write(place / "task.json", task)


def _write(path: Path, task: dict[str, Any]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w", encoding="utf-8") as file:  # noqa: PTH123 - of a descriptor
        json.dump(task, file)


async def _perhaps_in_thread(files: Any, do: Callable[..., None], *arguments: Any) -> None:
    """Small things are quicker done here than handed to a thread; large ones must not hold up the loop."""
    if sum(map(len, files.values())) > _INLINE_BYTES:
        await asyncio.to_thread(do, *arguments)
    else:
        do(*arguments)


def _read(result: bytes) -> dict[str, Any]:
    """A task process's report; a broken one (the process is not to be trusted) is none at all."""
    try:
        report = json.loads(result)
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def _died(status: int, peak: int, limits: Limits) -> tuple[str, str | None]:
    """The error of a process that ended without a report."""
    if status == -signal.SIGXCPU:
        return over("wall_time_s", limits.wall_time_s), "wall_time_s"
    if status == -signal.SIGABRT and peak > limits.memory_bytes / 2:
        return over("memory_bytes", limits.memory_bytes), "memory_bytes"
    if status == -signal.SIGKILL:
        return "the task's process was killed from outside (is the device out of memory?)", None
    name = signal.Signals(-status).name if status < 0 else f"status {status}"
    return f"the task's process ended by {name}", None
