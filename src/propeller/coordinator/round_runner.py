"""Applies events to rounds: what ``fl.round`` decides is stored, then carried out; after a crash it goes on where it was."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from propeller.coordinator.active_rounds import ActiveRound, Arrival
from propeller.coordinator.aggregation import Aggregation, AggregationError, OutliersError
from propeller.coordinator.aggregation_requests import AggregationRequest
from propeller.coordinator.kept_updates import UpdateRetention
from propeller.coordinator.rounds import NewVersion, RoundChange, RoundRecord
from propeller.coordinator.store import Also, RoundStore, StoreConflictError
from propeller.coordinator.telemetry import RoundTelemetry
from propeller.errors import NotFoundError
from propeller.fl.round import (
    Aggregate,
    AggregateStored,
    AggregationFailed,
    AnnounceVersion,
    Answer,
    DeadlinePassed,
    Effect,
    Event,
    Persist,
    RoundState,
    UpdatesLeftOut,
    resume,
    step,
)
from propeller.process.background import BackgroundTasks
from propeller.process.clock import steady_time
from propeller.process.logs import get_logger
from propeller.process.retry import retry
from propeller.protocol.rounds import ChosenParticipants

log = get_logger("coordinator")

STORE_RETRY_DELAY_S = 1.0
"""Between tries to store what happened when the database fails, in seconds."""

MAX_TOGETHER = 50
"""Updates of one transaction: others are answered after it, and it holds up the event loop for 10 ms."""


class RoundObserver(Protocol):
    """Who must know what happens to rounds: experiments."""

    def saving(self, changes: Sequence[RoundChange]) -> AbstractAsyncContextManager[Also | None]:
        """Around the transaction that stores what events changed; what it gives is written in it too."""

    async def note_waiting(self, record: RoundRecord, reason: str) -> None:
        """A round's participants cannot be chosen yet, or its updates not be aggregated."""

    async def note_left_out(self, record: RoundRecord, reason: str) -> None:
        """Devices were left out of a round's choice."""

    async def gives_up(self, record: RoundRecord, chosen: ChosenParticipants) -> bool:
        """Whether a round can never be started as it is, however often it is tried; then the experiment is over."""


class RoundRunner:
    """Applies events, one after the other to each round; updates that wait for each other in one transaction."""

    def __init__(
        self,
        store: RoundStore,
        aggregation: Aggregation,
        telemetry: RoundTelemetry,
        retention: UpdateRetention,
        background: BackgroundTasks,
        announce: Callable[[str, int, bool], None] | None,
    ) -> None:
        """Begin nothing yet.

        Args:
            store: the rounds.
            aggregation: makes model versions of their updates.
            telemetry: logs and counts what happens.
            retention: removes the updates of rounds that are over.
            background: has what nobody waits for.
            announce: as ``Coordinator``.
        """
        self._store, self._aggregation, self._telemetry = store, aggregation, telemetry
        self._retention, self._background, self._announce = retention, background, announce
        self.observer: RoundObserver | None = None
        """Who knows of everything that happens to rounds."""

    async def apply_update(self, active: ActiveRound, arrival: Arrival) -> Answer:
        """Apply an update, with those that wait as it does: a transaction for all of them waits for the disk once."""
        active.arrivals.append(arrival)
        try:
            async with active.lock:
                if arrival.answer is None:
                    waiting = [
                        each for each in active.arrivals if each is not arrival and each.answer is None
                    ]
                    await self._apply_first(active, arrival, waiting[: MAX_TOGETHER - 1])
        finally:
            if arrival in active.arrivals:
                active.arrivals.remove(arrival)
        if arrival.answer is None:
            raise AssertionError("an update is always answered")
        return arrival.answer

    async def _apply_first(self, active: ActiveRound, arrival: Arrival, others: Sequence[Arrival]) -> None:
        """Apply an update together with others; by itself, if that fails: it may be for one of them, which has its turn too."""
        if others:
            try:
                await self._apply_together(active, [arrival, *others])
            except Exception as error:  # noqa: BLE001 - whatever the database raises; it is tried again alone
                log.warning("not stored together", round_id=active.record.round_id, reason=str(error))
            else:
                return
        await self._apply_together(active, [arrival])

    async def _apply_together(self, active: ActiveRound, arrivals: Sequence[Arrival]) -> None:
        """Carry out what updates lead to. The caller holds the round's lock."""
        if active.in_doubt:
            await self._read_back(active)
        record, changes, writes = active.record, [], []
        answers: list[Answer] = []
        later: list[Effect] = []
        for arrival in arrivals:
            transition = step(record.round, arrival.event)
            for effect in transition.effects:
                match effect:
                    case Persist():
                        after = record.advance(transition.round, steady_time(), (arrival.update,))
                        changes.append(RoundChange(record, after, arrival.update))
                        writes.append(arrival.write)
                        record = after
                    case Answer():
                        answers.append(effect)
                    case _:
                        later.append(effect)
        if changes:
            await self._save(active, changes, *filter(None, writes))
        for arrival, answer in zip(arrivals, answers, strict=True):
            arrival.answer = answer
        for effect in later:
            self._carry_out(active, effect)

    async def apply(
        self,
        active: ActiveRound,
        event: Event,
        *,
        new: NewVersion | None = None,
        program: str | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Answer | None:
        """Carry out what an event leads to that is no update; ``new``, ``program`` and ``names`` as ``RoundRecord.advance``.

        The caller holds the round's lock.
        """
        if active.in_doubt:
            await self._read_back(active)
        before, transition = active.record, step(active.record.round, event)
        answer: Answer | None = None
        for effect in transition.effects:
            match effect:
                case Persist():
                    after = before.advance(
                        transition.round, steady_time(), new=new, program=program, names=names
                    )
                    await self._save(active, [RoundChange(before, after)])
                case Answer():
                    answer = effect
                case _:
                    self._carry_out(active, effect)
        return answer

    async def _save(self, active: ActiveRound, changes: Sequence[RoundChange], *also: Also) -> None:
        """Store what events changed, and take it over."""
        active.in_doubt = True
        async with self._saving(changes) as more:
            await self._store.save(changes, *also, *filter(None, (more,)))
        after = changes[-1].after
        active.set_record(after)
        for change in changes:
            self._telemetry.round_changed(change)
        if after.experiment_id is not None and after.state is RoundState.FAILED and not after.keeps_updates:
            # Its experiment tries it again with updates of their own.
            self._background.spawn(self._retention.remove_of(after))

    def _carry_out(self, active: ActiveRound, effect: Effect) -> None:
        """Begin what an effect asks for, once what led to it is stored."""
        match effect:
            case Aggregate(proplet_ids):
                self._background.spawn(self._aggregate(active, proplet_ids))
            case AnnounceVersion(version) if self._announce is not None:
                self._announce(active.record.round_id, version, not active.record.announced)

    def _saving(self, changes: Sequence[RoundChange]) -> AbstractAsyncContextManager[Also | None]:
        if self.observer is None:
            return contextlib.nullcontext()
        return self.observer.saving(changes)

    async def _read_back(self, active: ActiveRound) -> None:
        """Find out what became of a transaction that failed: it may have been committed all the same."""
        record = await self._store.load(active.record.round_id)
        if record is None:
            raise NotFoundError(f"round {active.record.round_id} is not in the database any more")
        changed = record.state is not active.record.state
        active.set_record(record)
        if changed:
            self.resume(active)

    def resume(self, active: ActiveRound) -> None:
        """Begin again what a round that was read back asks for."""
        for effect in resume(active.record.round):
            if isinstance(effect, Aggregate):
                self._background.spawn(self._aggregate(active, effect.proplet_ids))

    def start_timer(self, active: ActiveRound, *, grace_s: float = 0.0) -> None:
        """Have the round closed at its deadline, but not before ``grace_s`` seconds from now."""

        def pass_deadline() -> None:
            doing = {name: stage.doing for name, stage in active.stages.items()}
            self._background.spawn(self.apply_until_stored(active, DeadlinePassed(doing)))

        active.start_timer(max(active.record.deadline - steady_time(), grace_s), pass_deadline)

    async def _aggregate(self, active: ActiveRound, proplet_ids: tuple[str, ...]) -> None:
        try:
            request = AggregationRequest.of_round(active.record, proplet_ids)
            new = await self._aggregation.make_version(
                request,
                while_wanted=lambda: active.record.state is RoundState.AGGREGATING,
                waits=lambda reason: self._note_waiting(active, reason),
            )
        except OutliersError as error:
            before = active.record
            await self.apply_until_stored(active, UpdatesLeftOut(error.reasons))
            await self._retention.remove_left_out(before, active.record)
        except AggregationError as error:
            await self.apply_until_stored(active, AggregationFailed(str(error)))
        else:
            await self.apply_until_stored(active, AggregateStored(new.version), new)
            if active.record.state is RoundState.COMPLETED:  # cancelled meanwhile, it may be retried
                await self._retention.remove_of(active.record)

    def _note_waiting(self, active: ActiveRound, reason: str) -> None:
        """Have it told what a round waits for that has its updates; once for each reason."""
        if active.waits_for == reason:
            return
        active.waits_for = reason
        if self.observer is not None:
            self._background.spawn(self.observer.note_waiting(active.record, reason))

    async def apply_until_stored(
        self, active: ActiveRound, event: Event, new: NewVersion | None = None
    ) -> None:
        """Apply an event that nobody waits for, however long the database takes to accept it."""

        async def apply() -> None:
            async with active.lock:
                await self.apply(active, event, new=new)

        await retry(
            apply,
            delays=(STORE_RETRY_DELAY_S,),
            forever=True,
            on=lambda error: not isinstance(error, StoreConflictError | NotFoundError),
            failed=lambda error, _delay_s: log.error(
                "could not be stored, trying again", round_id=active.record.round_id, exc_info=error
            ),
        )
