"""Why a task fails, and how its parts are done at the same time."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class TaskError(Exception):
    """A task cannot go on; the text is what the manager is told."""


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
