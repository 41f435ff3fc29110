"""Rounds in memory: one object for each, with its lock, its timer and those who wait for it to change."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from propeller.coordinator.rounds import AcceptedUpdate, RoundRecord
from propeller.coordinator.store import Also, RoundStore
from propeller.fl.round import Answer, UpdateReceived
from propeller.protocol.ids import InvalidIdError, check_id
from propeller.protocol.task import Stage

MAX_ROUNDS = 64
"""Rounds in memory, above which those that are over make room for others; open ones are always in memory."""


@dataclass(eq=False)
class Arrival:
    """An update that came for a round and is to be applied to it.

    Attributes:
        event: what came.
        update: as what it counts, if it does.
        write: stores its tensors in the transaction by which it counts, unless they are stored already.
        answer: what became of it, once that is stored.
    """

    event: UpdateReceived
    update: AcceptedUpdate
    write: Also | None
    answer: Answer | None = None


class ActiveRound:
    """A round in memory. Its record changes only under its lock, and only to what is in the database."""

    def __init__(self, record: RoundRecord) -> None:
        """Start with ``record``."""
        self.record = record
        self.lock = asyncio.Lock()
        self.in_doubt = False
        """Whether a transaction was begun and its end is not known: the record may be older than the database."""
        self.waits_for: str | None = None
        """What is away, while its updates cannot be aggregated."""
        self.stages: dict[str, Stage] = {}
        """What participants do, as they said last."""
        self.arrivals: list[Arrival] = []
        """Updates that wait for the lock; whoever gets it applies many of them together."""
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def set_record(self, record: RoundRecord) -> None:
        """Replace the record, and wake those who wait; a round that collects no more needs no timer."""
        if record.state is not self.record.state:
            self.cancel_timer()
            self.waits_for = None
            self.stages.clear()
        self.record, self.in_doubt = record, False
        self.wake_waiters()

    def start_timer(self, delay_s: float, at_end: Callable[[], None]) -> None:
        """Call ``at_end`` in ``delay_s`` seconds, unless the round changes its state before."""
        self._timer = asyncio.get_running_loop().call_later(max(0.0, delay_s), at_end)

    def cancel_timer(self) -> None:
        """Stop the timer, if there is one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def wake_waiters(self) -> None:
        """Let those who wait check their condition again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_until(self, condition: Callable[[RoundRecord], bool], timeout_s: float) -> RoundRecord:
        """The record once it fulfils the condition, or as it is after ``timeout_s`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not condition(self.record):
                    await self._changed.wait()
        return self.record


class ActiveRounds:
    """Every round that is open, and the last ones that are over; others are read from the database when asked for."""

    def __init__(self, store: RoundStore) -> None:
        """Read rounds from ``store``."""
        self._store = store
        self._rounds: dict[str, ActiveRound] = {}
        self._loading = asyncio.Lock()
        self._most = MAX_ROUNDS

    def get(self, round_id: str) -> ActiveRound | None:
        """A round that is in memory."""
        return self._rounds.get(round_id)

    async def find(self, round_id: str) -> ActiveRound | None:
        """A round; ``None`` if there is none of this id."""
        known = self._rounds.get(round_id)
        if known is not None:
            return known
        try:
            check_id(round_id)
        except InvalidIdError:
            return None  # a database may not even accept it as text
        async with self._loading:
            if round_id in self._rounds:
                return self._rounds[round_id]
            record = await self._store.load(round_id)
            return None if record is None else self.add(record)

    async def create(self, record: RoundRecord) -> ActiveRound | None:
        """Store a new round; ``None`` if there is one of its id."""
        # Under the lock of ``find``: nobody may read the round back before it is in memory.
        async with self._loading:
            return self.add(record) if await self._store.add(record) else None

    def add(self, record: RoundRecord) -> ActiveRound:
        """Put a round into memory; the oldest ones that are over make room."""
        active = self._rounds[record.round_id] = ActiveRound(record)
        if len(self._rounds) > self._most:
            over = [round_id for round_id, known in self._rounds.items() if known.record.state.is_over]
            for round_id in over[: len(self._rounds) - MAX_ROUNDS]:
                if not self._rounds[round_id].lock.locked():
                    del self._rounds[round_id]
            # With thousands of open ones, looking at all for each that is added took seconds of a start.
            self._most = max(MAX_ROUNDS, len(self._rounds) * 5 // 4)
        return active

    def wake_waiters(self) -> None:
        """Let everyone who waits for any round check again."""
        for active in self._rounds.values():
            active.wake_waiters()

    def cancel_timers(self) -> None:
        """Stop the timer of every round."""
        for active in self._rounds.values():
            active.cancel_timer()
