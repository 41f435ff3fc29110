"""Tasks of asyncio that have an owner: work that nobody waits for, and work that is done at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any

from propeller.process.logs import get_logger


class BackgroundTasks:
    """Work beside the caller: held, so that it is not collected, ended with its owner, and its failure logged."""

    def __init__(self, service: str) -> None:
        """``service`` names the log."""
        self._log = get_logger(service)
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(
        self, work: Coroutine[Any, Any, None], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[None]:
        """Start some work and return at once."""
        task = asyncio.create_task(work, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def spawn_periodic(
        self,
        name: str,
        work: Callable[[], Awaitable[None]],
        every_s: float | Callable[[], float],
        *,
        at_once: bool = False,
    ) -> asyncio.Task[None]:
        """Do some work again and again until the owner ends; a failure is logged, and the next time comes all the same.

        Args:
            name: of the work, for the log: ``pruning samples``.
            work: called once each time.
            every_s: seconds from the end of one time to the next, or a function that gives them.
            at_once: whether the first time comes now, not after ``every_s``.
        """

        async def repeat() -> None:
            if not at_once:
                await asyncio.sleep(every_s() if callable(every_s) else every_s)
            while True:
                try:
                    await work()
                except Exception as error:  # noqa: BLE001 - the next time may succeed
                    self._log.error(f"{name} failed", exc_info=error)
                await asyncio.sleep(every_s() if callable(every_s) else every_s)

        return self.spawn(repeat(), name=name)

    async def close(self, grace_s: float = 0.0) -> None:
        """Cancel what is not done after ``grace_s`` seconds, and wait for its end."""
        if grace_s > 0 and self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._log.error("background work failed", exc_info=task.exception())


async def gather_or_cancel(*parts: Coroutine[Any, Any, Any]) -> list[Any]:
    """Do the parts at the same time; when one fails, cancel the others and raise its own error (not a group)."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
