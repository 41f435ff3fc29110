"""Rounds in memory: one object for each, with its lock, its timer and those who wait for it to change."""

import asyncio
import contextlib
from collections.abc import Callable

from propeller.coordinator.record import Record
from propeller.coordinator.store import RoundStore
from propeller.protocol.ids import InvalidIdError, check_id

MOST_KEPT = 64
"""How many rounds that are over stay in memory, for those who come late."""


class Live:
    """A round in memory. Its record changes only under its lock, and only to what is in the database."""

    def __init__(self, record: Record) -> None:
        """Hold ``record``."""
        self.record = record
        self.lock = asyncio.Lock()
        self.timer: asyncio.TimerHandle | None = None
        self.in_doubt = False
        """Whether a transaction was begun and its end is not known: then the record may be older than the database."""
        self._changed = asyncio.Event()

    def move(self, record: Record) -> None:
        """Take a new record, and tell those who wait; a round that collects no more needs no timer."""
        if record.state is not self.record.state and self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.record, self.in_doubt = record, False
        self.notify()

    def notify(self) -> None:
        """Let those who wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, enough: Callable[[Record], bool], timeout: float) -> Record:
        """The record once it is ``enough``, or as it is after ``timeout`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not enough(self.record):
                    await self._changed.wait()
        return self.record


class LiveRounds:
    """Every round that is open, and the last ones that are over; others are read from the database when asked for."""

    def __init__(self, store: RoundStore) -> None:
        """Read rounds from ``store``."""
        self._store = store
        self._rounds: dict[str, Live] = {}
        self._reading = asyncio.Lock()

    def held(self, round_id: str) -> Live | None:
        """A round that is in memory."""
        return self._rounds.get(round_id)

    async def find(self, round_id: str) -> Live | None:
        """A round; ``None`` if there is none of this id."""
        known = self._rounds.get(round_id)
        if known is not None:
            return known
        try:
            check_id(round_id)
        except InvalidIdError:
            return None  # a database may not even take it as text
        async with self._reading:
            if round_id in self._rounds:
                return self._rounds[round_id]
            record = await self._store.load(round_id)
            return None if record is None else self.add(record)

    async def create(self, record: Record) -> Live | None:
        """Store a new round; ``None`` if there is one of its id."""
        # Under the lock of ``find``: nobody may read the round back before it is in memory.
        async with self._reading:
            return self.add(record) if await self._store.add(record) else None

    def add(self, record: Record) -> Live:
        """Put a round into memory; the oldest ones that are over make room."""
        live = self._rounds[record.round_id] = Live(record)
        if len(self._rounds) > MOST_KEPT:
            over = [one for one, held in self._rounds.items() if held.record.state.is_over]
            for round_id in over[: len(self._rounds) - MOST_KEPT]:
                if not self._rounds[round_id].lock.locked():
                    del self._rounds[round_id]
        return live

    def notify(self) -> None:
        """Let everyone who waits for any round look again."""
        for live in self._rounds.values():
            live.notify()

    def close(self) -> None:
        """Stop every timer."""
        for live in self._rounds.values():
            if live.timer is not None:
                live.timer.cancel()
