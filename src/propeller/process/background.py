"""Work that nobody waits for: held, so that it is not collected, and ended with its owner."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from propeller.process.logs import get_logger


class Background:
    """Tasks beside the caller; a fault of one is logged."""

    def __init__(self, service: str) -> None:
        """``service`` names the log."""
        self._log = get_logger(service)
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin some work and return at once."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Cancel what is not done, and wait for its end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._log.error("background work failed", exc_info=task.exception())
