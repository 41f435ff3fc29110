"""The coordinator: sets rounds up, takes their updates, and turns each round's updates into one model version."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from propeller.coordinator.aggregation import Aggregation, AggregationError
from propeller.coordinator.journal import Journal
from propeller.coordinator.live import Live, LiveRounds
from propeller.coordinator.peers import ModelRegistry
from propeller.coordinator.record import Counted, Record, new_record
from propeller.coordinator.store import RoundStore, StoreConflictError
from propeller.coordinator.updates import Incoming, read_document
from propeller.errors import ConflictError, InvalidError, NotFoundError, PropellerError, RefusedError
from propeller.fl.round import (
    Aggregate,
    AggregateStored,
    AggregationFailed,
    AnnounceVersion,
    Answer,
    DeadlinePassed,
    Event,
    ParticipantFailed,
    Persist,
    RetryRequested,
    RoundConfigured,
    RoundState,
    UpdateReceived,
    Verdict,
    admit,
    resume,
    step,
)
from propeller.process.background import BackgroundTasks
from propeller.process.logs import get_logger
from propeller.protocol.rounds import Experiment, ParticipantFailure, model_version

log = get_logger("coordinator")

RESTART_GRACE_S = 2.0
"""How long a round whose deadline passed while the coordinator was down still collects what waits in the broker."""

STORE_DELAY_S = 1.0
"""Between tries to store what happened, when the database fails; in seconds."""

_ERRORS: dict[Verdict, type[PropellerError]] = {
    Verdict.FOREIGN: RefusedError,
    Verdict.DIFFERENT: ConflictError,
    Verdict.STALE: ConflictError,
    Verdict.LATE: ConflictError,
}


class Coordinator:
    """Rounds from their configuration to their model version.

    ``fl.round`` decides; this carries out. An update's tensors go to the blobs first, then its header and the
    round's new state to the database in one transaction, and then it is answered. Use ``start`` and ``close``.
    """

    def __init__(
        self,
        store: RoundStore,
        registry: ModelRegistry,
        aggregation: Aggregation,
        journal: Journal,
        *,
        announce: Callable[[str, int], None] | None = None,
    ) -> None:
        """``announce`` takes a completed round's id and model version; without it nobody is told."""
        self._store, self._registry, self._aggregation = store, registry, aggregation
        self._journal, self._announce = journal, announce
        self._rounds = LiveRounds(store)
        self._background = BackgroundTasks("coordinator")
        self._closing = False

    async def start(self) -> None:
        """Go on with every round that was open when the process ended."""
        for record in await self._store.open():
            live = self._rounds.add(record)
            log.info("resuming round", round_id=record.round_id, state=record.state.value)
            self._resume(live)
            if record.state is RoundState.COLLECTING:
                self._set_timer(live, max(record.deadline - time.time(), RESTART_GRACE_S))
        self._background.spawn(self._aggregation.keep_clear(self._store, self._rounds))

    def release(self) -> None:
        """Answer everyone who waits for a round to change: the process is about to end."""
        self._closing = True
        self._rounds.notify()

    async def close(self) -> None:
        """Stop. What is not done yet is done after the next start."""
        self.release()
        self._rounds.close()
        await self._background.close()

    async def configure(self, experiment: Experiment) -> Record:
        """Set a round up; the same experiment again changes nothing.

        Raises:
            ConflictError: the round exists and was asked for differently.
            NotFoundError: its base model does not exist.
            ServiceError: the model registry does not answer.
        """
        round_id = experiment.round_id
        if round_id == "next":
            raise InvalidError("round_id: 'next' is reserved; choose another id")
        known = self._rounds.held(round_id)
        if known is not None:
            return known.record.same_as(experiment)
        shapes = await self._registry.shapes(model_version(experiment.model_ref))
        created = new_record(experiment, shapes, time.time())
        # Where nobody is told about rounds, nobody waits to be told.
        opened = step(created.round, RoundConfigured()).round
        record = replace(created, round=opened, announced=self._announce is None)
        # Not looked for first: rounds that are set up twice are rare, and every look-up costs a transaction.
        live = await self._rounds.create(record)
        if live is None:
            return (await self._find(round_id)).record.same_as(experiment)
        self._set_timer(live, record.deadline - time.time())
        self._journal.configured(record)
        return record

    async def take(self, incoming: Incoming) -> Verdict:
        """Count an update: once this returns, it is durable. Updates that do not count raise.

        Raises:
            NotFoundError: there is no such round.
            RefusedError: 409, 400 or 422, as the update deserves.
        """
        try:
            verdict = await self._take(incoming)
        except PropellerError as error:
            self._journal.refused(incoming.header, error)
            raise
        self._journal.answered(verdict)
        return verdict

    async def give_up(self, round_id: str, failure: ParticipantFailure) -> bool:
        """Remember that no update is to be expected of a participant; ``False`` if the round collects no more.

        Raises:
            NotFoundError: there is no such round.
            RefusedError: it is not a participant.
        """
        live = await self._find(round_id)
        async with live.lock:
            answer = await self._apply(live, ParticipantFailed(failure.proplet_id, failure.reason))
        if answer is None:
            raise AssertionError("a failure is always answered")
        if answer.verdict is Verdict.FOREIGN:
            raise RefusedError(answer.reason)
        return answer.verdict.is_positive

    async def record(self, round_id: str) -> Record:
        """A round as it is.

        Raises:
            NotFoundError: there is none of this id.
        """
        return (await self._find(round_id)).record

    async def wait(self, round_id: str, timeout: float, more_than: int | None = None) -> Record:
        """A round once it is over, or has ``more_than`` so many updates, or after ``timeout`` seconds.

        Raises:
            NotFoundError: there is none of this id.
        """

        def enough(record: Record) -> bool:
            grown = more_than is not None and len(record.updates) > more_than
            return grown or record.state.is_over or self._closing

        return await (await self._find(round_id)).wait(enough, timeout)

    async def page(self, offset: int, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many rounds there are, and the summaries of some, the newest first."""
        return await self._store.page(offset, limit)

    async def last_completed(self) -> tuple[str, int] | None:
        """The id and the model version of the round that completed last."""
        return await self._store.last_completed()

    async def retry(self, round_id: str) -> Record:
        """Aggregate a failed round's updates after all.

        Raises:
            NotFoundError: there is none of this id.
            ConflictError: it has not failed, has too few updates, or they were removed.
        """
        live = await self._find(round_id)
        async with live.lock:
            await self._aggregation.require(live.record)
            await self._apply(live, RetryRequested())
            record = live.record
        if record.state is not RoundState.AGGREGATING:
            raise ConflictError(
                f"round {round_id} cannot be retried: it is {record.state} with {len(record.updates)} updates"
            )
        return record

    async def _find(self, round_id: str) -> Live:
        live = await self._rounds.find(round_id)
        if live is None:
            raise NotFoundError("Round not found")
        return live

    async def _take(self, incoming: Incoming) -> Verdict:
        header = incoming.header
        live = await self._rounds.find(header.round_id)
        if live is None:
            raise NotFoundError(
                f"Round not found: {header.round_id}; configure it first with POST /experiments"
            )
        base = model_version(header.base_model_uri) if header.base_model_uri else None
        # First without the tensors: who is foreign, stale or late need not have them read.
        admission = admit(live.record.round, header.proplet_id, base)
        if not admission.verdict.is_positive:
            raise _ERRORS[admission.verdict](admission.reason)
        document = await read_document(incoming, live.record.shapes)
        event = UpdateReceived(header.proplet_id, document.digest, base)
        if header.proplet_id not in live.record.round.accepted:
            await self._aggregation.put(document)
        async with live.lock:
            answer = await self._apply(live, event, Counted.of(header, document, time.time()))
        if answer is None:
            raise AssertionError("an update is always answered")
        if not answer.verdict.is_positive:
            await self._aggregation.drop(document)
            raise _ERRORS[answer.verdict](answer.reason)
        return answer.verdict

    async def _apply(
        self, live: Live, event: Event, update: Counted | None = None, timings: dict[str, float] | None = None
    ) -> Answer | None:
        """Carry out what an event leads to. The caller holds the round's lock."""
        if live.in_doubt:
            await self._read_back(live)
        before, done = live.record, step(live.record.round, event)
        answer: Answer | None = None
        for effect in done.effects:
            match effect:
                case Persist():
                    after = before.moved(done.round, time.time(), update, timings or {})
                    live.in_doubt = True
                    await self._store.save(before, after, update)
                    live.move(after)
                    self._journal.moved(before, after, update)
                case Answer():
                    answer = effect
                case Aggregate(proplet_ids):
                    self._background.spawn(self._aggregate(live, proplet_ids))
                case AnnounceVersion(version):
                    if self._announce is not None:
                        self._announce(live.record.round_id, version)
        return answer

    async def _read_back(self, live: Live) -> None:
        """Find out what became of a transaction that failed: it may have been committed all the same."""
        record = await self._store.load(live.record.round_id)
        if record is None:
            raise StoreConflictError(f"round {live.record.round_id} is not in the database any more")
        moved = record.state is not live.record.state
        live.move(record)
        if moved:
            self._resume(live)

    def _resume(self, live: Live) -> None:
        for effect in resume(live.record.round):
            if isinstance(effect, Aggregate):
                self._background.spawn(self._aggregate(live, effect.proplet_ids))

    def _set_timer(self, live: Live, delay: float) -> None:
        def pass_deadline() -> None:
            self._background.spawn(self._settle(live, DeadlinePassed()))

        live.timer = asyncio.get_running_loop().call_later(max(0.0, delay), pass_deadline)

    async def _aggregate(self, live: Live, proplet_ids: tuple[str, ...]) -> None:
        try:
            made = await self._aggregation.make(live.record, proplet_ids)
        except AggregationError as error:
            await self._settle(live, AggregationFailed(str(error)))
        else:
            await self._settle(live, AggregateStored(made.version), made.timings)
            await self._aggregation.clear(live.record)

    async def _settle(self, live: Live, event: Event, timings: dict[str, float] | None = None) -> None:
        """Apply an event that nobody waits for, however long the database takes to take it."""
        while True:
            try:
                async with live.lock:
                    await self._apply(live, event, timings=timings)
            except StoreConflictError:
                raise
            except Exception:
                log.exception("could not be stored, trying again", round_id=live.record.round_id)
                await asyncio.sleep(STORE_DELAY_S)
            else:
                return
