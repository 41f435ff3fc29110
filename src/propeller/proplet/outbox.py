"""Results on their way to the manager: on disk until the broker has them, so that a restart sends them too.

A file is made when a task is accepted, holding the result that is true if the process dies now ("interrupted"). The
task's own result takes its place, and it is removed once published. Killed at any point, the manager hears once what
became of each task, or twice the same.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from propeller.process.logs import get_logger
from propeller.protocol.task import TaskResult
from propeller.protocol.wire import MalformedMessageError

log = get_logger("outbox")

SYNC_AFTER_S = 1.0
"""A result that the broker does not take for this long is synced to the disk, against a loss of power."""

Send = Callable[[bytes], Awaitable[None]]
"""Publishes a result, however long it takes; returns when the broker has it."""


class Outbox:
    """Unsent results, a file each."""

    def __init__(self, folder: Path, send: Send, max_bytes: int) -> None:
        """``folder`` is made if it is not there; ``max_bytes`` is the longest message the broker takes."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._send, self._max_bytes = folder, send, max_bytes
        self._numbers = itertools.count()
        for cut_off in folder.glob("*.tmp"):  # what it would have replaced is still there
            cut_off.unlink()
        self._left = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)

    def hold(self, result: TaskResult) -> Path:
        """Keep what is true if the process dies now; quick, safe against the process's death (not the machine's)."""
        path = self._folder / f"{result.task_id}-{time.time_ns()}-{next(self._numbers)}.json"
        _write(path, result.encode())
        return path

    async def deliver(self, path: Path, result: TaskResult) -> None:
        """Put a task's result in the place of what was held, publish it, and forget it."""
        payload = result.encode()
        if len(payload) > self._max_bytes:
            error = (
                f"the result of {len(payload)} bytes is over the {self._max_bytes} that a message may have"
            )
            payload = result.model_copy(update={"results": "", "error": error}).encode()
        _write(path, payload)
        loop = asyncio.get_running_loop()
        late = loop.call_later(SYNC_AFTER_S, lambda: loop.run_in_executor(None, _sync, path))
        try:
            await self._send(payload)
        finally:
            late.cancel()
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - quick

    async def send_left(self) -> None:
        """Publish, oldest first, what an earlier process left."""
        while self._left:
            path = self._left[0]
            payload = await asyncio.to_thread(path.read_bytes)
            try:
                result = TaskResult.decode(payload)
            except MalformedMessageError as error:
                log.warning("unsent result dropped, it cannot be read", file=path.name, reason=str(error))
            else:
                await self._send(payload)
                log.info("sent a result that an earlier run left", task_id=result.task_id, error=result.error)
            path.unlink(missing_ok=True)
            self._left.pop(0)


def _write(path: Path, payload: bytes) -> None:
    """Write a file as a whole or not at all; a full disk costs the safety, not the result."""
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb", opener=_private) as file:
            file.write(payload)
        temporary.replace(path)
    except OSError as error:
        log.warning("a result is not safe on disk", file=path.name, reason=str(error))


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def _sync(path: Path) -> None:
    """Make a file and its name outlive a loss of power."""
    try:
        for part in (path, path.parent):
            descriptor = os.open(part, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except FileNotFoundError:  # it was sent meanwhile
        pass
    except OSError as error:
        log.warning("a result is not safe on disk", file=path.name, reason=str(error))
