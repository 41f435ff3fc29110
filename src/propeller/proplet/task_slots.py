"""How many tasks run at the same time, and which of those that wait is next."""

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator


class TaskSlots:
    """So many places for tasks: of those that wait, the one with the highest priority is next, and of equals the one that came first."""

    def __init__(self, count: int) -> None:
        """``count`` places."""
        self._free = count
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @contextlib.asynccontextmanager
    async def taken(self, priority: int) -> AsyncIterator[None]:
        """Wait for a place, which is taken until the end of the block."""
        if self._free:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (-priority, next(self._order), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it was given a place just now
                    self._release()
                raise
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        """Give a place to whoever is next."""
        while self._waiting:
            _priority, _order, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
