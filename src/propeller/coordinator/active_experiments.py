"""Experiments in memory: one object for each, with its lock, its timer and those who follow its events."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from propeller.coordinator.experiment_records import ExperimentRecord
from propeller.coordinator.experiment_store import ExperimentStore, StoredEvent
from propeller.coordinator.round_events import NewEvent
from propeller.coordinator.store import StoreConflictError
from propeller.errors import NotFoundError, PropellerError
from propeller.fl.experiment import ExperimentState
from propeller.fl.tensors import Specs
from propeller.process.logs import get_logger
from propeller.process.retry import doubling, retry, spread_out
from propeller.protocol.ids import InvalidIdError, check_id

log = get_logger("coordinator")

MAX_EXPERIMENTS = 64
"""Experiments in memory, above which those that are over make room for others; open ones are always in memory."""

MAX_RECENT_EVENTS = 64
"""Of an experiment, in memory: who follows it as things happen needs no query for them."""

_RETRY_DELAYS_S = doubling(0.2, 15.0)

_TRIES_APART_S = doubling(1.0, 30.0)
"""Between the beginnings of two tries of a round, by how many have failed already."""

StateValues = Mapping[str, Any]
"""The values of a version's server state."""


class ActiveExperiment:
    """An experiment in memory. Its record changes only under its lock, and only to what is in the database."""

    def __init__(self, record: ExperimentRecord) -> None:
        """Start with ``record``."""
        self.record = record
        self.lock = asyncio.Lock()
        self.in_doubt = False
        """Whether a transaction was begun and its end is not known: the record may be older than the database."""
        self.specs: Specs | None = None
        """Of its model, once they are known; no round changes them."""
        self.told: dict[int, StateValues | PropellerError] = {}
        """What the registry said of the version that its next round starts from, or why it has none."""
        self.waits_for: str | None = None
        """What its open round waits for, as it was told last."""
        self.left_out: str | None = None
        """Which devices its rounds left out, as it was told last."""
        self.tried_at: float | None = None
        """When its last round was begun by this process, in Unix seconds."""
        self.aliases: dict[str, int] = {}
        """Aliases that are to be moved, and where to."""
        self.moved: dict[str, int] = {}
        """Aliases that were moved, and where to."""
        self.is_ending = asyncio.Event()
        """Set when it is about to be over: its aliases lag behind no longer."""
        self._recent: deque[StoredEvent] = deque(maxlen=MAX_RECENT_EVENTS)
        self._timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()

    def set_record(self, record: ExperimentRecord, events: Sequence[StoredEvent] = ()) -> None:
        """Replace the record by what is stored, with the events that were stored with it, and wake those who follow them."""
        if (
            not events and record.last_seq != self.record.last_seq
        ):  # read back: what was told is not known here
            self._recent.clear()
        self._recent.extend(events)
        self.record, self.in_doubt = record, False
        self.wake_followers()

    def recent_events(self, after: int) -> list[StoredEvent] | None:
        """The events after number ``after``; ``None`` if not all of them are in memory."""
        if after >= self.record.last_seq:
            return []
        if not self._recent or self._recent[0].seq > after + 1:
            return None
        return [event for event in self._recent if event.seq > after]

    def pause_before(self, failed_tries: int, now: float) -> float:
        """How long the next try waits after so many that failed, in seconds.

        What fails at once, such as a program whose registry is away, would else use up all tries before anybody could mend
        it; a try that took long has waited enough. Times are Unix seconds.
        """
        if not failed_tries:
            return 0.0
        apart_s = spread_out(_TRIES_APART_S[min(failed_tries, len(_TRIES_APART_S)) - 1])
        began = now if self.tried_at is None else min(self.tried_at, now)
        return max(0.0, began + apart_s - now)

    def next_change(self) -> asyncio.Event:
        """What is set at the next change."""
        return self._changed

    def wake_followers(self) -> None:
        """Let those who follow look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def set_timer(self, delay_s: float | None, at_end: Callable[[], None]) -> None:
        """Call ``at_end`` in ``delay_s`` seconds, and nothing else that was to be called; nothing at all for ``None``."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if delay_s is None else loop.call_later(max(0.0, delay_s), at_end)


class ActiveExperiments:
    """Every experiment that is open, and the last ones that are over; others are read from the database when asked for."""

    def __init__(self, store: ExperimentStore) -> None:
        """Read experiments from ``store``."""
        self._store = store
        self._experiments: dict[str, ActiveExperiment] = {}
        self._loading = asyncio.Lock()

    async def load(self) -> list[ActiveExperiment]:
        """Have every experiment in memory about which something is left to be done, the oldest first."""
        async with self._loading:
            return [
                self._experiments.get(record.id) or self._add(record)
                for record in await self._store.load_open()
            ]

    def all(self) -> list[ActiveExperiment]:
        """Every open experiment, the oldest first."""
        found = [one for one in self._experiments.values() if not one.record.experiment.is_settled]
        return sorted(found, key=lambda one: (one.record.created_at, one.record.id))

    def queued(self) -> list[ActiveExperiment]:
        """Those that wait for a place, the oldest first."""
        return [one for one in self.all() if one.record.state is ExperimentState.QUEUED]

    def count_running(self) -> int:
        """How many places are taken."""
        return sum(one.record.experiment.needs_place for one in self._experiments.values())

    async def find(self, experiment_id: str) -> ActiveExperiment | None:
        """An experiment; ``None`` if there is none of this id."""
        known = self._experiments.get(experiment_id)
        if known is not None:
            return known
        try:
            check_id(experiment_id)
        except InvalidIdError:
            return None
        async with self._loading:
            if experiment_id in self._experiments:
                return self._experiments[experiment_id]
            record = await self._store.load(experiment_id)
            return None if record is None else self._add(record)

    async def get(self, experiment_id: str) -> ActiveExperiment:
        """An experiment.

        Raises:
            NotFoundError: there is none of this id.
        """
        active = await self.find(experiment_id)
        if active is None:
            raise NotFoundError(
                f"there is no experiment {experiment_id[:128]}: GET /experiments lists those there are"
            )
        return active

    async def create(self, record: ExperimentRecord, events: Sequence[NewEvent]) -> ActiveExperiment | None:
        """Store a new experiment with its first events; ``None`` if there is one of its id."""
        async with self._loading:
            stored = await self._store.add(record, events)
            return None if stored is None else self._add(stored)

    async def read_back(self, active: ActiveExperiment) -> None:
        """Find out what became of a transaction that failed: it may have been committed all the same.

        Raises:
            NotFoundError: the experiment is not there any more.
        """
        record = await self._store.load(active.record.id)
        if record is None:
            raise NotFoundError(f"experiment {active.record.id} is not in the database any more")
        active.set_record(record)

    def wake_followers(self) -> None:
        """Let everyone who follows any experiment look again."""
        for active in self._experiments.values():
            active.wake_followers()

    def cancel_timers(self) -> None:
        """Stop the timer of every experiment."""
        for active in self._experiments.values():
            active.set_timer(None, lambda: None)

    def _add(self, record: ExperimentRecord) -> ActiveExperiment:
        active = self._experiments[record.id] = ActiveExperiment(record)
        if len(self._experiments) > MAX_EXPERIMENTS:
            over = [
                known.record.id
                for known in self._experiments.values()
                if known.record.experiment.is_settled and not known.lock.locked() and not known.aliases
            ]
            for experiment_id in over[: len(self._experiments) - MAX_EXPERIMENTS]:
                if experiment_id != record.id:
                    del self._experiments[experiment_id]
        return active


async def until_done(active: ActiveExperiment, work: Callable[[], Awaitable[object]]) -> None:
    """Do something about an experiment that nobody waits for, however long the database or the registry takes.

    Raises:
        StoreConflictError, NotFoundError: no later try can do it.
    """
    await retry(
        work,
        delays=_RETRY_DELAYS_S,
        forever=True,
        on=lambda error: not isinstance(error, StoreConflictError | NotFoundError),
        failed=lambda error, _delay_s: log.error(
            "experiment does not go on yet, trying again",
            experiment_id=active.record.id,
            reason=str(error),
            exc_info=None if isinstance(error, PropellerError) else error,
        ),
    )
