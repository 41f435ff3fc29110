"""One lock a key: what concerns one thing happens one at a time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class KeyedLocks:
    """Locks by key, forgotten when nobody holds or awaits them."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}  # with the number of its holders and waiters

    def __len__(self) -> int:
        """How many keys are locked now."""
        return len(self._locks)

    @contextlib.asynccontextmanager
    async def holding(self, key: str) -> AsyncIterator[None]:
        """Hold the lock of ``key`` for the length of the block."""
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            _, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)
