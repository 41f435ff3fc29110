"""Why a task fails, and how things are done at the same time or once for several."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class TaskError(Exception):
    """A task cannot go on; the text is what the manager is told.

    ``usage``: what its run took until then, if it ran.
    """

    def __init__(self, text: str, usage: Mapping[str, float] | None = None) -> None:
        super().__init__(text)
        self.usage = usage or {}


async def together(*parts: Coroutine[Any, Any, Any]) -> list[Any]:
    """Do the parts at the same time; when one fails, end the others and raise its own error (not a group)."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def once(
    running: dict[str, asyncio.Task[T]], key: str, start: Callable[[], Coroutine[Any, Any, T]]
) -> T:
    """Join the work that runs under a key, or start it; it goes on when one who waits for it is stopped."""
    task = running.get(key)
    if task is None:
        task = running[key] = asyncio.create_task(start())

        def done(ended: asyncio.Task[T]) -> None:
            running.pop(key, None)
            if not ended.cancelled():
                ended.exception()  # it may be that nobody waits for it any more

        task.add_done_callback(done)
    return await asyncio.shield(task)
