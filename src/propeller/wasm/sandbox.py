"""Runs Wasm programs, each in its own confined process, within limits.

The process that uses this never loads the runtime: see ``template.py`` for who does, and why that is quick.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from propeller.wasm import folder as folders
from propeller.wasm.cache import Cache, Program
from propeller.wasm.job import MIB, Job, Limits, Outcome, ProgramError
from propeller.wasm.lines import Lines
from propeller.wasm.link import Link, LinkError, Process
from propeller.wasm.pipe import Sink
from propeller.wasm.places import Places
from propeller.wasm.programs import Programs, write_task
from propeller.wasm.report import read_report
from propeller.wasm.verdict import STOPPED, judge, measure

__all__ = ["Job", "Limits", "Outcome", "ProgramError", "Sandbox"]

_INLINE_BYTES = 256 * 1024
_NICE = 5
"""Added to the tasks' niceness, so that the device's other work goes first."""

OnStderr = Callable[[str], None]


class Sandbox:
    """Holds programs and runs them; ``folder`` is its own (task folders, and the cache unless that is elsewhere).

    Args:
        folder: Made if missing, mode 0700.
        cache: The folder of programs; sandboxes of one user may share it.
        cache_bytes: The bound of the cache's size.

    Raises:
        ProgramError: a folder belongs to someone else. Entering raises LinkError if the template does not start.
    """

    def __init__(self, folder: Path, *, cache: Path | None = None, cache_bytes: int = 1024 * MIB) -> None:
        place = folder.absolute()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cache = Cache((cache or place / "programs").absolute(), cache_bytes)
        self._places = Places(place / "tasks")
        self._link = Link(_NICE)
        self._programs = Programs(self._cache, self._link, self._places.own)
        self._running: dict[str, _Running] = {}

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._places.open)
        try:
            self._link.open()
            await self._link.hello()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.close()
        if self._running:  # their ends are on the way
            await asyncio.wait([running.done for running in self._running.values()])
        await asyncio.to_thread(self._places.close)

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

    def turn(self, digest: str, wait_s: float) -> AbstractAsyncContextManager[bool]:
        """Be the only one, of the sandboxes that share the cache, who fetches a program.

        After ``wait_s`` seconds the block is entered all the same.
        """
        return self._cache.turn("fetch", digest, wait_s)

    async def add(self, digest: str, wasm: bytes, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        """Verify a program, compile it in a process of its own, and keep it.

        Raises:
            ProgramError: it is not what its digest says, not valid Wasm, or over a limit; or the sandbox failed.
        """
        try:
            await self._programs.add(digest, wasm, limits)
        except LinkError as error:
            raise ProgramError(str(error)) from None

    async def run(self, job: Job, on_stderr: OnStderr | None = None) -> Outcome:
        """Run a program once; never raises for what the program does.

        Args:
            job: What to run; its id must not be that of a job still running.
            on_stderr: Called with each line of the program's standard error as it comes.
        """
        if job.id in self._running:
            return Outcome(error=f"a job with the id {job.id} is still running")
        running = self._running[job.id] = _Running()
        try:
            return await self._attempts(job, running, on_stderr)
        except (ProgramError, LinkError, ValueError) as error:
            return Outcome(error=str(error), limit=getattr(error, "limit", None))
        except OSError as error:  # the disk is full, or there are no more descriptors
            return Outcome(error=f"sandbox: {error.strerror}: {error.filename or 'a pipe'}")
        finally:
            del self._running[job.id]
            running.done.set_result(None)

    async def kill(self, job_id: str) -> bool:
        """End a job at once; its outcome's error is ``stopped before completion``. False: there is no such job."""
        running = self._running.get(job_id)
        if running is None:
            return False
        running.stop()
        return True

    async def _attempts(self, job: Job, running: "_Running", on_stderr: OnStderr | None) -> Outcome:
        begin = time.monotonic()
        compile_ms = 0.0
        for _ in range(2):
            ready = asyncio.ensure_future(self._programs.ready(job.digest, job.limits))
            try:
                await asyncio.wait([ready, running.stopped], return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not ready.done():
                    ready.cancel()
            if running.stopped.done():
                return Outcome(error=STOPPED)
            program, took_ms = await ready
            compile_ms += took_ms
            outcome = await self._run(job, program, running, begin, on_stderr)
            if outcome is not None:
                extra = {"compile_ms": compile_ms} if compile_ms else {}
                return replace(outcome, metrics={**outcome.metrics, **extra})
            program.artifact.unlink(missing_ok=True)  # damaged, or another build's: made again, once
        return Outcome(error="sandbox: the compiled program cannot be loaded")

    async def _run(
        self, job: Job, program: Program, running: "_Running", begin: float, on_stderr: OnStderr | None
    ) -> Outcome | None:
        """Run it; None if the artifact cannot be loaded."""
        place = self._places.new()
        task = {
            "kind": "run",
            "folder": str(place),
            "artifact": str(program.artifact),
            "component": program.component,
            "tensors": program.tensors,
            "env": dict(job.env),
            "args": job.args,
            "export": job.export,
            "inputs": job.inputs,
            "limits": asdict(job.limits),
        }
        out = place / "out"
        request = {
            "task": str(place / "task.json"),
            "wall_time_s": job.limits.wall_time_s,
            "tensors": program.tensors,
            "out": {"folder": str(out), "out_bytes": job.limits.out_bytes, "out_files": job.limits.out_files},
        }
        stdout, lines = bytearray(), Lines(on_stderr)
        try:
            await _in_thread_if_large(job.files, _prepare, place, job.files, task)
            running.process = process = await self._link.start(
                request,
                Sink(job.limits.stdout_bytes, stdout.extend, lambda: running.exceed("stdout_bytes")),
                Sink(job.limits.stderr_bytes, lines.feed, lambda: running.exceed("stderr_bytes")),
            )
            if running.stopped.done():
                process.kill()
            try:
                ended = await process.ended()
            except asyncio.CancelledError:
                running.stop()
                with contextlib.suppress(LinkError):
                    await process.ended()
                raise
            lines.end()
            report = read_report(ended.result)
            if report.get("stale"):
                return None
            say = partial(
                judge,
                job,
                ended,
                report,
                out=out,
                stdout=bytes(stdout),
                stopped=running.stopped.done(),
                exceeded=running.exceeded,
            )
            outcome = await asyncio.to_thread(say) if folders.holds_anything(out) else say()
            return replace(outcome, metrics=measure(ended, report, begin))
        finally:
            running.process = None
            await _in_thread_if_large(job.files, folders.remove, place)


class _Running:
    """A job under way: whether it was stopped, or went over what this side counts."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.process: Process | None = None
        self.stopped: asyncio.Future[Any] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
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
            self.process.kill()


def _prepare(place: Path, files: Mapping[str, bytes], task: dict[str, Any]) -> None:
    folders.make(place, files)
    write_task(place / "task.json", task)


async def _in_thread_if_large(files: Mapping[str, bytes], do: Callable[..., None], *arguments: Any) -> None:
    """Small things are quicker done here than handed to a thread; large ones must not hold up the loop."""
    if sum(map(len, files.values())) > _INLINE_BYTES:
        await asyncio.to_thread(do, *arguments)
    else:
        do(*arguments)
