"""Runs experiments: what ``fl.experiment`` decides is stored, then carried out; after a crash it goes on where it was.

A step of an experiment is one transaction with what led to it: the end of a round, the events that are told of it and
the round that comes next are stored together, or none of them. Only then is a round started, or a task stopped.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from propeller.coordinator.active_experiments import ActiveExperiment, ActiveExperiments, until_done
from propeller.coordinator.central_evaluation import CentralEvaluations
from propeller.coordinator.experiment_aliases import ExperimentAliases
from propeller.coordinator.experiment_records import ExperimentRecord
from propeller.coordinator.experiment_rounds import NotToldError, RoundMaker
from propeller.coordinator.experiment_steps import Step, extend
from propeller.coordinator.experiment_store import ExperimentStore, number
from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.coordinator.round_events import (
    NewEvent,
    events_of,
    outcome_of,
    place_of,
    round_ended,
    wave_changed,
)
from propeller.coordinator.rounds import RoundChange, RoundRecord
from propeller.coordinator.service import Coordinator
from propeller.coordinator.store import Also
from propeller.errors import ConflictError
from propeller.fl.experiment import (
    Admitted,
    CancelRound,
    CannotGoOn,
    EvaluateCentrally,
    Event,
    ExperimentState,
    MarkBest,
    MarkLatest,
    MergeUpdates,
    Request,
    StartRound,
    TimePassed,
    WaveChanged,
    explain_missing_functions,
    refusal,
    resume,
)
from propeller.fl.round import RoundState
from propeller.process.background import BackgroundTasks
from propeller.process.clock import steady_time
from propeller.process.logs import get_logger
from propeller.protocol.rounds import ChosenParticipants, RoundStart, RoundStop

log = get_logger("coordinator")

CLEANUP_INTERVAL_S = 600.0
"""Between searches for events that are old enough to be removed, in seconds."""

START_AGAIN_S = 30.0
"""How long a round may wait for its participants before its start is published again, in seconds."""


class Publisher(Protocol):
    """Tells the manager what to do (``mqtt.RoundPublisher``)."""

    def start(self, start: RoundStart) -> None:
        """Start a round."""

    def stop(self, stop: RoundStop) -> None:
        """Stop tasks of a round."""


class ExperimentRunner:
    """Applies events to experiments, one after the other to each. Use ``start`` and ``close``."""

    def __init__(
        self,
        store: ExperimentStore,
        active: ActiveExperiments,
        rounds: Coordinator,
        registry: ModelRegistryClient,
        *,
        publisher: Publisher | None,
        central: CentralEvaluations,
        max_running: int,
        keep_events_s: float,
    ) -> None:
        """Start nothing yet.

        Args:
            store: the experiments and their events.
            active: those of them that are in memory.
            rounds: carries out their rounds, and tells what happens to them.
            registry: knows the models that they start from.
            publisher: tells the manager what to do; without one no round of devices begins.
            central: carries out the evaluations that are the coordinator's own.
            max_running: how many run at once.
            keep_events_s: how long the events of an experiment stay after its end, in seconds.
        """
        self._store, self._active, self._rounds = store, active, rounds
        self._publisher, self._central, self._max_running = publisher, central, max_running
        self._keep_events_s = keep_events_s
        self._background = BackgroundTasks("coordinator")
        self._maker = RoundMaker(rounds.find_round, registry)
        self._aliases = ExperimentAliases(registry, store, self._background)
        self._admitting = asyncio.Lock()
        rounds.observe(self)

    async def start(self) -> None:
        """Go on with every experiment that was not over when the process ended."""
        for active in await self._active.load():
            record = active.record
            log.info("resuming experiment", experiment_id=record.id, state=record.state.value)
            if record.refusal is not None and not record.state.is_over:
                why = CannotGoOn(steady_time(), record.refusal)
                self._do(active, functools.partial(self.apply, active, why))
            else:
                self._do(active, functools.partial(self._resume, active))
        self._background.spawn_periodic("starting rounds again", self._start_again, START_AGAIN_S)
        self._background.spawn_periodic(
            "removing old events", self._remove_old_events, CLEANUP_INTERVAL_S, at_once=True
        )

    async def close(self) -> None:
        """Stop. What is not done yet is done after the next start."""
        self._active.cancel_timers()
        await self._background.close()
        await self._central.close()

    def admit(self) -> asyncio.Task[None]:
        """Let the oldest queued experiments run while there are places; what is returned ends when they do."""
        return self._background.spawn(self._admit())

    async def apply(self, active: ActiveExperiment, event: Event) -> ExperimentRecord:
        """Store what an event leads to, and carry it out.

        Raises:
            ConflictError: it is a request that cannot be fulfilled.
            ServiceError: the model registry does not answer.
        """

        async def fill(found: Step) -> None:
            experiment = active.record.experiment
            refused = refusal(experiment, event) if isinstance(event, Request) else None
            if refused is not None:
                raise ConflictError(refused)
            await extend(found, event, steady_time(), self._maker)

        async with self._stepping(active, fill) as found:
            if found.changes_anything:
                await self._store_step(found)
        self._carry_out(found)
        return active.record

    # What rounds tell (``service.RoundObserver``).

    @contextlib.asynccontextmanager
    async def saving(self, changes: Sequence[RoundChange]) -> AsyncIterator[Also | None]:
        """Store with changes of a round what they mean to its experiment, and carry that out afterwards."""
        before, after = changes[0].before, changes[-1].after
        if after.experiment_id is None:
            yield None
            return
        active = await self._active.get(after.experiment_id)
        now = steady_time()

        async def fill(found: Step) -> None:
            active.specs, found.changed = after.specs, after
            for change in changes:
                found.events += events_of(change, now)
            if active.record.program != after.request.task_wasm_image:
                found.after = replace(found.after, program=after.request.task_wasm_image)
            outcome = outcome_of(after) if after.state.is_over else None
            if after.round.plan.is_wave:
                await extend(found, wave_changed(after, now), now, self._maker, outcome)
            elif after.state.is_over and not before.state.is_over:
                ended = round_ended(active.record, after, now)
                await extend(found, ended, now, self._maker, outcome)

        async with self._stepping(active, fill) as found:
            active.in_doubt = True
            yield found.write
            self._commit(found)
        if before.state is RoundState.COLLECTING and after.state is not RoundState.COLLECTING:
            self._stop_missing(active, after)
        self._carry_out(found)

    async def note_waiting(self, record: RoundRecord, reason: str) -> None:
        """Tell that a round waits for its participants, unless that was told already."""
        if record.experiment_id is None:
            return
        active = await self._active.get(record.experiment_id)
        async with self._changing(active):
            if active.waits_for == reason:
                return
            found = Step.begin(active)
            found.events.append(NewEvent("waiting", steady_time(), {**place_of(record), "reason": reason}))
            await self._store_step(found)
            active.waits_for = reason

    async def note_left_out(self, record: RoundRecord, reason: str) -> None:
        """Tell which devices were left out, unless that was told already."""
        if record.experiment_id is None:
            return
        active = await self._active.get(record.experiment_id)
        async with self._changing(active):
            if active.left_out == reason:
                return
            found = Step.begin(active)
            found.events.append(NewEvent("note", steady_time(), {**place_of(record), "reason": reason}))
            await self._store_step(found)
            active.left_out = reason

    async def gives_up(self, record: RoundRecord, chosen: ChosenParticipants) -> bool:
        """Whether a round can never be started as it is: then its experiment fails, which cancels the round."""
        if record.experiment_id is None:
            return False
        active = await self._active.get(record.experiment_id)
        reason = chosen.failure if chosen.final else None
        if reason is None and chosen.functions is not None:
            reason = explain_missing_functions(active.record.spec, chosen.functions)
        if reason is None and chosen.requirements is not None:
            program = chosen.program or record.request.task_wasm_image
            reason = self._central.explain_native(active.record.spec, program, chosen.requirements)
        if reason is None:
            return False
        await self.apply(active, CannotGoOn(steady_time(), reason))
        return True

    async def _apply_until_stored(self, active: ActiveExperiment, make_event: Callable[[], Event]) -> None:
        """Apply an event that nobody waits for, however long the database or the registry takes."""
        await until_done(active, lambda: self.apply(active, make_event()))

    def _do(self, active: ActiveExperiment, work: Callable[[], Awaitable[object]]) -> None:
        """Have something done about an experiment that nobody waits for, however long it takes."""
        self._background.spawn(until_done(active, work))

    @contextlib.asynccontextmanager
    async def _stepping(
        self, active: ActiveExperiment, fill: Callable[[Step], Awaitable[None]]
    ) -> AsyncIterator[Step]:
        """Hold an experiment's lock, with a step that ``fill`` has filled and that can be stored.

        What the registry is needed for is done before, without the lock: the experiment can be stopped meanwhile, and the
        step is then another one. An end is told once its aliases are moved, if the registry does that in time.
        """
        has_caught_up = False
        while True:
            async with self._changing(active):
                found, request = Step.begin(active), None
                try:
                    if (
                        found.before.refusal is not None
                    ):  # whatever happened: it must not go on from a substitute
                        why = CannotGoOn(steady_time(), found.before.refusal)
                        await extend(found, why, why.at, self._maker)
                    await fill(found)
                except NotToldError as error:
                    request = error.request
                if request is None and (has_caught_up or not found.ends):
                    yield found
                    return
            if request is not None:
                await self._maker.ask(active, found.after, request)
            else:
                await self._aliases.catch_up(active, found.marks)
                has_caught_up = True

    @contextlib.asynccontextmanager
    async def _changing(self, active: ActiveExperiment) -> AsyncIterator[None]:
        """Hold an experiment's lock, with a record that is not older than the database."""
        async with active.lock:
            if active.in_doubt:
                await self._active.read_back(active)
                self._do(active, functools.partial(self._resume, active))
            try:
                yield
            except BaseException:
                if active.in_doubt:  # nothing else may ever happen to it
                    self._do(active, functools.partial(self._find_out, active))
                raise

    async def _find_out(self, active: ActiveExperiment) -> None:
        """Find out what became of a transaction that failed, and go on from there."""
        async with active.lock:
            if not active.in_doubt:
                return
            await self._active.read_back(active)
        self._do(active, functools.partial(self._resume, active))

    async def _store_step(self, found: Step) -> None:
        found.active.in_doubt = True
        await self._store.transact(found.write)
        self._commit(found)

    def _commit(self, found: Step) -> None:
        """Take over what is stored."""
        last_seq = found.before.last_seq + len(found.events)
        found.active.set_record(replace(found.after, last_seq=last_seq), number(found.before, found.events))
        if found.started:
            found.active.waits_for = None

    def _carry_out(self, found: Step) -> None:
        """Do what a stored step asks for. Nothing here waits: a round's lock may be held."""
        active = found.active
        for record in found.started:
            self._rounds.open_round(record)
            if pause_s := found.pauses.get(record.round_id):
                self._background.spawn(self._begin_after(active, record, pause_s))
            else:
                self._begin(active, record)
        for cancel in found.cancelled:
            self._do(active, functools.partial(self._cancel, active, cancel))
        for mark in found.marks:
            self._aliases.mark(active, mark)
        before, after = found.before.experiment, found.after.experiment
        if after.state is not before.state:
            log.info(
                "experiment changed", experiment_id=after.id, state=after.state.value, reason=after.reason
            )
        if after.deadline != before.deadline:
            self._set_timer(active)
        if before.needs_place and not after.needs_place:
            self.admit()
        if found.settles and after.spec.mode.kind == "async":
            self._do(active, functools.partial(self._rounds.remove_kept_updates, after.id))
        if found.settles and not active.aliases:
            self._do(active, functools.partial(self._aliases.settle, active))

    async def _begin_after(self, active: ActiveExperiment, record: RoundRecord, pause_s: float) -> None:
        """Have a round begun in a while, unless it is over by then; after a restart it is begun at once."""
        await asyncio.sleep(pause_s)
        await until_done(active, lambda: self._resume_round(active, record.round_id))

    def _begin(self, active: ActiveExperiment, record: RoundRecord) -> None:
        """Have a round begun, again if need be."""
        if record.refusal is not None:  # it is cancelled
            return
        active.tried_at = steady_time()
        evaluate = active.record.spec.evaluate
        if active.record.is_central(record) and evaluate is not None and evaluate.dataset is not None:
            self._central.begin(record, evaluate.dataset)
        elif (
            self._publisher is not None
            and isinstance(record.request, RoundStart)
            and record.request.merged is None
        ):
            self._publisher.start(record.request)

    def _stop_missing(self, active: ActiveExperiment, record: RoundRecord) -> None:
        """Have the tasks stopped whose updates come too late."""
        if active.record.is_central(record):
            self._central.end(record.round_id)
        elif self._publisher is not None and record.missing:
            reason = record.round.reason or "the round has enough updates"
            stop = RoundStop(round_id=record.round_id, participants=record.missing, reason=reason)
            self._publisher.stop(stop)

    async def _cancel(self, active: ActiveExperiment, cancel: CancelRound) -> None:
        record = await self._rounds.find_round(cancel.round_id)
        if record is None:  # a wave that was cancelled before it could be created
            over = WaveChanged(cancel.round_id, steady_time(), is_over=True, reason=cancel.reason)
            await self._apply_until_stored(active, lambda: over)
        elif not record.state.is_over:
            waited = record.state is RoundState.CREATED
            await self._rounds.cancel_round(cancel.round_id, cancel.reason)
            if waited and self._publisher is not None:
                stop = RoundStop(round_id=cancel.round_id, participants=[], reason=cancel.reason)
                self._publisher.stop(stop)
        else:  # it ended while the process was down
            await self._tell(active, record)

    async def _tell(self, active: ActiveExperiment, record: RoundRecord) -> None:
        """Tell an experiment how a wave is, or how a round ended."""
        describe = (
            wave_changed if record.round.plan.is_wave else functools.partial(round_ended, active.record)
        )
        await self._apply_until_stored(active, lambda: describe(record, steady_time()))

    async def _resume(self, active: ActiveExperiment) -> None:
        """Do again what may not have been done about an experiment."""
        self._set_timer(active)
        if active.record.state is ExperimentState.QUEUED:
            self.admit()
        for effect in resume(active.record.experiment):
            match effect:
                case StartRound() | EvaluateCentrally() | MergeUpdates():
                    await self._resume_round(active, effect.request.round_id)
                case CancelRound():
                    await self._cancel(active, effect)
                case MarkLatest() | MarkBest():
                    self._aliases.mark(active, effect)
                case _:
                    pass

    async def _resume_round(self, active: ActiveExperiment, name: str) -> None:
        record = await self._rounds.find_round(name)
        if record is None:
            log.error("the open round of an experiment is not in the database", round_id=name)
            return
        if record.state.is_over or record.round.plan.is_wave:
            await self._tell(active, record)
        if record.state is RoundState.CREATED or (
            active.record.is_central(record) and not record.state.is_over
        ):
            self._begin(active, record)

    async def _start_again(self) -> None:
        """Publish the starts again that nobody has answered: what told of them may be lost."""
        for active in self._active.all():
            old = steady_time() - START_AGAIN_S
            for name in active.record.open_rounds:
                record = await self._rounds.find_round(name)
                if record is not None and record.state is RoundState.CREATED and record.created_at < old:
                    self._begin(active, record)

    async def _remove_old_events(self) -> None:
        removed = await self._store.remove_events_before(steady_time() - self._keep_events_s)
        if removed:
            log.info("old events removed", experiments=removed)

    async def _admit(self) -> None:
        """Let the oldest queued experiments run while there are places."""
        async with self._admitting:
            for active in self._active.queued():
                if self._active.count_running() >= self._max_running:
                    return
                await self._apply_until_stored(active, lambda: Admitted(steady_time()))

    def _set_timer(self, active: ActiveExperiment) -> None:
        deadline = active.record.experiment.deadline
        if deadline is None:
            active.set_timer(None, lambda: None)
            return
        # Not earlier than the deadline: the clock may have been set back a little meanwhile, and the timer rings once.
        work = functools.partial(
            self._apply_until_stored, active, lambda: TimePassed(max(steady_time(), deadline))
        )
        active.set_timer(deadline - steady_time(), lambda: self._do(active, work))
