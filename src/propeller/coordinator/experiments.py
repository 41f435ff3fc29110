"""Experiments: what ``fl.experiment`` decides is stored, then carried out; after a crash it goes on where it was.

A step of an experiment is one transaction with what led to it: the end of a round, the events that are told of it and
the round that comes next are stored together, or none of them. Only then is a round started, or a task stopped.
"""

import asyncio
import contextlib
import functools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from propeller.coordinator.active_experiments import ActiveExperiment, ActiveExperiments
from propeller.coordinator.central_evaluation import CentralEvaluations, is_central
from propeller.coordinator.clients import AggregatorClient, ModelRegistryClient
from propeller.coordinator.experiment_records import ExperimentRecord
from propeller.coordinator.experiment_store import ExperimentStore, StoredEvent, write
from propeller.coordinator.round_events import NewEvent, events_of, outcome_of, place_of
from propeller.coordinator.rounds import AcceptedUpdate, RoundRecord
from propeller.coordinator.service import Coordinator
from propeller.coordinator.store import Also, StoreConflictError, insert_round
from propeller.errors import ConflictError, InvalidError, NotFoundError, PropellerError, UnavailableError
from propeller.fl.experiment import (
    Admitted,
    CancelRound,
    EvaluateCentrally,
    Event,
    Experiment,
    MarkBest,
    MarkLatest,
    MergeRequest,
    MergeUpdates,
    PauseRequested,
    Persist,
    Report,
    Request,
    ResumeRequested,
    RoundEnded,
    RoundRefused,
    RoundRequest,
    StartRound,
    StopRequested,
    TimePassed,
    WaveChanged,
    check_strategy,
    refusal,
    resume,
    round_id,
    step,
    wave_id,
)
from propeller.fl.round import Round, RoundPlan, RoundState
from propeller.fl.strategies import read_strategy
from propeller.process.background import BackgroundTasks
from propeller.process.logs import get_logger
from propeller.process.retry import doubling, retry
from propeller.protocol.experiments import ExperimentSpec, canonical_json
from propeller.protocol.rounds import RoundStart, RoundStop, UpdateSource, model_uri

log = get_logger("coordinator")

START_AGAIN_S = 30.0
"""How long a round may wait for its participants before its start is published again, in seconds."""

ALIAS_DELAY_S = 0.25
"""How long an alias may lag behind while an experiment runs, in seconds: short rounds are not slowed down by it."""

ADMISSION_WAIT_S = 5.0
"""How long the answer to a submission waits for the experiment's first round, in seconds."""

_RETRY_DELAYS_S = doubling(0.2, 15.0)
_EVENTS_AT_ONCE = 500


class Publisher(Protocol):
    """Tells the manager what to do (``mqtt.RoundPublisher``)."""

    def start(self, start: RoundStart) -> None:
        """Start a round."""

    def stop(self, stop: RoundStop) -> None:
        """Stop tasks of a round."""


@dataclass
class _Step:
    """What an event led to: to be stored, and then carried out."""

    before: ExperimentRecord
    after: ExperimentRecord
    events: list[NewEvent] = field(default_factory=list)
    started: list[RoundRecord] = field(default_factory=list)
    cancelled: list[CancelRound] = field(default_factory=list)
    marks: list[MarkLatest | MarkBest] = field(default_factory=list)
    changed: RoundRecord | None = None
    """The round that is stored with it, as it will be."""

    @property
    def changes_anything(self) -> bool:
        return bool(self.events or self.started) or self.after != self.before

    async def write(self, connection: AsyncConnection) -> None:
        await write(connection, self.before, self.after, self.events)
        for record in self.started:
            await insert_round(connection, record)


class Experiments:
    """Experiments from their submission to their end. Use ``start`` and ``close``."""

    def __init__(
        self,
        store: ExperimentStore,
        rounds: Coordinator,
        registry: ModelRegistryClient,
        aggregator: AggregatorClient,
        *,
        publisher: Publisher | None,
        central: CentralEvaluations,
        max_running: int,
    ) -> None:
        """Start nothing yet.

        Args:
            store: the experiments and their events.
            rounds: carries out their rounds.
            registry: knows the models that they start from.
            aggregator: knows strategies that are programs.
            publisher: tells the manager what to do; without one no experiment can be submitted.
            central: carries out the evaluations that are the coordinator's own.
            max_running: how many run at once.
        """
        self._store, self._rounds = store, rounds
        self._registry, self._aggregator = registry, aggregator
        self._publisher, self._central, self._max_running = publisher, central, max_running
        self._active = ActiveExperiments(store)
        self._admitting = asyncio.Lock()
        self._background = BackgroundTasks("coordinator")
        self._stopping = False
        rounds.observe(self)

    async def start(self) -> None:
        """Go on with every experiment that was not over when the process ended."""
        for active in await self._active.load():
            record = active.record
            log.info("resuming experiment", experiment_id=record.id, state=record.state.value)
            self._do(active, functools.partial(self._resume, active))
        self._background.spawn_periodic("starting rounds again", self._start_again, START_AGAIN_S)
        self._background.spawn(self._admit())

    def answer_waiters(self) -> None:
        """End every stream of events: the process is about to end."""
        self._stopping = True
        self._active.wake_followers()

    async def close(self) -> None:
        """Stop. What is not done yet is done after the next start."""
        self.answer_waiters()
        self._active.cancel_timers()
        await self._background.close()
        await self._central.close()

    async def submit(self, spec: ExperimentSpec) -> ExperimentRecord:
        """Begin an experiment, or queue it; the same one under the same id again changes nothing.

        Raises:
            ConflictError: there is another one of this id.
            InvalidError: a field is wrong; the text names it.
            NotFoundError: the model that it starts from does not exist.
            ServiceError: the model registry does not answer.
            UnavailableError: the coordinator has no broker.
        """
        self._require_broker()
        experiment_id = spec.id or f"{spec.name}-{uuid.uuid4().hex[:8]}"
        known = await self._active.find(experiment_id)
        if known is not None:
            return _require_same(known.record, spec)
        check_spec(spec)
        self._central.check(spec)
        strategy = await self._pin_strategy(spec)
        version = await self._base_version(spec)
        specs = await self._registry.specs(version)
        experiment = Experiment(experiment_id, spec, version)
        record = ExperimentRecord(experiment, time.time(), spec.program, strategy)
        queued = NewEvent("state", record.created_at, {"state": record.state.value, "reason": None})
        active = await self._active.create(record, [queued])
        if active is None:
            return _require_same((await self.find(experiment_id)).record, spec)
        active.specs = specs
        log.info(
            "experiment submitted", experiment_id=experiment_id, program=spec.program, rounds=spec.rounds
        )
        self._central.prepare(spec)
        # Not longer than this: the experiment is stored, and begins by itself once the registry answers again.
        await asyncio.wait([self._background.spawn(self._admit())], timeout=ADMISSION_WAIT_S)
        return active.record

    async def check(self, spec: ExperimentSpec) -> bool:
        """See that an experiment could begin; begins and stores nothing. A model is looked for only if the experiment names one.

        Returns:
            Whether there is an experiment of this id already.

        Raises:
            InvalidError, NotFoundError, ServiceError, UnavailableError: as ``submit``.
        """
        self._require_broker()
        if spec.id is not None and await self._active.find(spec.id) is not None:
            return True
        check_spec(spec)
        self._central.check(spec)
        await self._pin_strategy(spec)
        if spec.model is not None:
            await self._base_version(spec)
        return False

    async def pause(self, experiment_id: str) -> ExperimentRecord:
        """Start no other round; the open one goes on.

        Raises:
            NotFoundError: there is no such experiment.
            ConflictError: it does not run.
        """
        return await self._request(experiment_id, PauseRequested(time.time()))

    async def resume(self, experiment_id: str) -> ExperimentRecord:
        """Go on with a paused experiment.

        Raises:
            NotFoundError: there is no such experiment.
            ConflictError: it is not paused.
        """
        return await self._request(experiment_id, ResumeRequested(time.time()))

    async def stop(self, experiment_id: str, reason: str = "stopped by request") -> ExperimentRecord:
        """End an experiment, and cancel its open round.

        Raises:
            NotFoundError: there is no such experiment.
            ConflictError: it is over.
        """
        return await self._request(experiment_id, StopRequested(time.time(), reason))

    async def find(self, experiment_id: str) -> ActiveExperiment:
        """An experiment.

        Raises:
            NotFoundError: there is none of this id.
        """
        active = await self._active.find(experiment_id)
        if active is None:
            raise NotFoundError(
                f"no experiment {experiment_id[:128]}: GET /experiments lists those there are"
            )
        return active

    async def page(self, state: str | None, offset: int, limit: int) -> tuple[int, list[ExperimentRecord]]:
        """How many experiments there are in a state, or in all, and some of them, the newest first."""
        return await self._store.page(state, offset, limit)

    async def open_round(self, record: ExperimentRecord) -> RoundRecord | None:
        """The round of an experiment that is open, if there is one that devices take part in."""
        opened = record.experiment.open
        return None if opened is None else await self._rounds.find_round(round_id(record.id, opened))

    def rounds_of(self, experiment_id: str) -> AsyncIterator[list[RoundRecord]]:
        """Every round of an experiment, in the order in which they were created, some at a time."""
        return self._rounds.rounds_of(experiment_id)

    async def follow(
        self, experiment_id: str, after: int, silence_s: float
    ) -> AsyncIterator[StoredEvent | None]:
        """The events after number ``after``, as they happen, to the end; ``None`` after each ``silence_s`` without one.

        Raises:
            NotFoundError: there is no such experiment.
        """
        active = await self.find(experiment_id)
        while True:
            changed = active.next_change()
            # Looked at before the events are read: the last ones are stored together with the end.
            is_last = active.record.experiment.is_settled
            events = await self._store.events(experiment_id, after, _EVENTS_AT_ONCE)
            for event in events:
                after = event.seq
                yield event
            if events:
                continue
            if is_last or self._stopping:
                return
            try:
                await asyncio.wait_for(changed.wait(), silence_s)
            except TimeoutError:
                yield None

    # What rounds tell (``service.RoundObserver``).

    @contextlib.asynccontextmanager
    async def saving(
        self, before: RoundRecord, after: RoundRecord, update: AcceptedUpdate | None
    ) -> AsyncIterator[Also | None]:
        """Store with a change of a round what it means to its experiment, and carry that out afterwards."""
        if after.experiment_id is None:
            yield None
            return
        active = await self.find(after.experiment_id)
        now = time.time()
        async with self._changing(active):
            active.specs = after.specs
            told = list(events_of(before, after, update, now))
            found = _Step(active.record, active.record, told, changed=after)
            if active.record.program != after.request.task_wasm_image:
                found.after = replace(found.after, program=after.request.task_wasm_image)
            if after.round.plan.is_wave:
                outcome = outcome_of(after) if after.state.is_over else None
                await self._extend(active, found, _wave_changed(after, now), outcome)
            elif after.state.is_over and not before.state.is_over:
                await self._extend(active, found, _round_ended(active.record, after, now), outcome_of(after))
            active.in_doubt = True
            yield found.write
            self._commit(active, found)
        if before.state is RoundState.COLLECTING and after.state is not RoundState.COLLECTING:
            self._stop_missing(active, after)
        self._carry_out(active, found)

    async def note_waiting(self, record: RoundRecord, reason: str) -> None:
        """Tell that a round waits for its participants, unless that was told already."""
        if record.experiment_id is None:
            return
        active = await self.find(record.experiment_id)
        async with self._changing(active):
            if active.waits_for == reason:
                return
            event = NewEvent("waiting", time.time(), {**place_of(record), "reason": reason})
            await self._store_step(active, _Step(active.record, active.record, [event]))
            active.waits_for = reason

    async def _request(self, experiment_id: str, event: Request) -> ExperimentRecord:
        return await self._apply(await self.find(experiment_id), event)

    async def _apply(self, active: ActiveExperiment, event: Event) -> ExperimentRecord:
        """Store what an event leads to, and carry it out.

        Raises:
            ConflictError: it is a request that cannot be fulfilled.
        """
        async with self._changing(active):
            refused = refusal(active.record.experiment, event) if isinstance(event, Request) else None
            if refused is not None:
                raise ConflictError(refused)
            found = _Step(active.record, active.record)
            await self._extend(active, found, event)
            if found.changes_anything:
                await self._store_step(active, found)
        self._carry_out(active, found)
        return active.record

    async def _apply_until_stored(self, active: ActiveExperiment, make_event: Callable[[], Event]) -> None:
        """Apply an event that nobody waits for, however long the database or the registry takes."""
        await self._until_done(active, lambda: self._apply(active, make_event()))

    def _do(self, active: ActiveExperiment, work: Callable[[], Awaitable[object]]) -> None:
        """Have something done about an experiment that nobody waits for, however long it takes."""
        self._background.spawn(self._until_done(active, work))

    async def _until_done(self, active: ActiveExperiment, work: Callable[[], Awaitable[object]]) -> None:
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

    @contextlib.asynccontextmanager
    async def _changing(self, active: ActiveExperiment) -> AsyncIterator[None]:
        """Hold an experiment's lock, with a record that is not older than the database."""
        async with active.lock:
            if active.in_doubt:
                await self._active.read_back(active)
                self._do(active, lambda: self._resume(active))
            try:
                yield
            except BaseException:
                if active.in_doubt:  # nothing else may ever happen to it
                    self._do(active, lambda: self._find_out(active))
                raise

    async def _find_out(self, active: ActiveExperiment) -> None:
        """Find out what became of a transaction that failed, and go on from there."""
        async with active.lock:
            if not active.in_doubt:
                return
            await self._active.read_back(active)
        self._do(active, lambda: self._resume(active))

    async def _extend(
        self, active: ActiveExperiment, found: _Step, event: Event, outcome: dict[str, Any] | None = None
    ) -> None:
        """Add to a step what an event leads to; ``outcome`` is told of the round that it ends."""
        now = time.time()
        transition = step(found.after.experiment, event)
        found.after = found.after.advance(transition.experiment, now)
        for effect in transition.effects:
            match effect:
                case Report("round_started", _):
                    pass  # told once it is known who takes part
                case Report(kind, data):
                    more = outcome if outcome and kind in {"round_ended", "metrics"} else {}
                    found.events.append(NewEvent(kind, now, {**data, **more}))
                case StartRound(request) | EvaluateCentrally(request):
                    try:
                        found.started.append(await self._create_round(active, found.after, request, now))
                    except (InvalidError, NotFoundError, ConflictError) as error:  # what time does not heal
                        await self._extend(active, found, RoundRefused(request.round_id, now, str(error)))
                case MergeUpdates(merge):
                    found.started.append(await self._create_merge(active, found, merge, now))
                    found.events.append(_merge_started(found.started[-1], now))
                case CancelRound():
                    found.cancelled.append(effect)
                case MarkLatest() | MarkBest():
                    found.marks.append(effect)
                case Persist():
                    pass  # all of this is stored before anything is carried out

    async def _create_round(
        self, active: ActiveExperiment, record: ExperimentRecord, request: RoundRequest, now: float
    ) -> RoundRecord:
        if await self._rounds.find_round(request.round_id) is not None:
            raise ConflictError(
                f"id: there is a round {request.round_id} already, which is not of this experiment; submit it with another id"
            )
        if active.specs is None:
            active.specs = await self._registry.specs(request.base_version)
        plan = RoundPlan(
            request.round_id,
            (),
            request.base_version,
            request.k_of_n,
            request.min_updates,
            request.kind,
            request.is_wave,
        )
        start = make_start(record, request, await self._device_values(record, request))
        return RoundRecord(
            Round(plan), start, active.specs, now, announced=True, strategy=dict(record.strategy)
        )

    async def _create_merge(
        self, active: ActiveExperiment, found: _Step, request: MergeRequest, now: float
    ) -> RoundRecord:
        """A round that has all its updates, so that they are aggregated at once."""
        if active.specs is None:
            active.specs = await self._registry.specs(request.base_version)
        updates = {}
        for one in request.updates:
            wave = found.changed
            if wave is None or wave.round_id != one.round_id:
                wave = await self._rounds.find_round(one.round_id)
            if wave is None or one.proplet_id not in wave.updates:
                raise AssertionError(
                    f"{request.round_id}: the update of {one.proplet_id} is not in {one.round_id}"
                )
            updates[one.proplet_id] = wave.updates[one.proplet_id]
        names = tuple(updates)
        plan = RoundPlan(request.round_id, names, request.base_version, len(names))
        accepted = {name: update.digest for name, update in updates.items()}
        return RoundRecord(
            Round(plan, RoundState.AGGREGATING, accepted),
            make_merge_start(found.after, request),
            active.specs,
            now,
            now,
            updates,
            now,
            announced=True,
            strategy=dict(found.after.strategy),
        )

    async def _device_values(self, record: ExperimentRecord, request: RoundRequest) -> dict[str, Any]:
        """What devices are told of the strategy in a round."""
        if "program" in record.strategy:
            return {}
        strategy = read_strategy(record.strategy)
        values = (
            {} if record.experiment.done == 0 else await self._registry.values_of_state(request.base_version)
        )
        return strategy.for_devices(values)

    def _require_broker(self) -> None:
        if self._publisher is None:
            raise UnavailableError(
                "experiments need MQTT, over which their rounds are started: set MQTT_BROKER and restart the coordinator"
            )

    async def _base_version(self, spec: ExperimentSpec) -> int:
        """The version that an experiment starts from, which is there.

        Raises:
            NotFoundError: there is none.
            ServiceError: the model registry does not answer.
        """
        version = spec.model.version if spec.model else "latest"
        try:
            if isinstance(version, str):
                version = int((await self._registry.info(version))["version"])
            await self._registry.specs(version)
        except NotFoundError as error:
            reason = str(error).removeprefix("model_ref: ")
            if spec.model is None:
                reason = f"there is no model to start from: {reason}"
            raise NotFoundError(f"model.version: {reason}") from None
        return version

    async def _pin_strategy(self, spec: ExperimentSpec) -> dict[str, Any]:
        """The strategy of an experiment, with the program by digest if it is one."""
        strategy = spec.strategy.to_json()
        if spec.strategy.program is not None:
            strategy["program"] = await self._aggregator.resolve_program(spec.strategy.program)
        return strategy

    async def _store_step(self, active: ActiveExperiment, found: _Step) -> None:
        active.in_doubt = True
        await self._store.transact(found.write)
        self._commit(active, found)

    def _commit(self, active: ActiveExperiment, found: _Step) -> None:
        """Take over what is stored."""
        last_seq = found.before.last_seq + len(found.events)
        active.set_record(replace(found.after, last_seq=last_seq))
        if found.started:
            active.waits_for = None

    def _carry_out(self, active: ActiveExperiment, found: _Step) -> None:
        """Do what a stored step asks for. Nothing here waits: a round's lock may be held."""
        for record in found.started:
            self._rounds.open_round(record)
            self._begin(active, record)
        for cancel in found.cancelled:
            self._do(active, functools.partial(self._cancel, active, cancel))
        for mark in found.marks:
            self._mark(active, mark)
        before, after = found.before.experiment, found.after.experiment
        if after.state is not before.state:
            log.info(
                "experiment changed", experiment_id=after.id, state=after.state.value, reason=after.reason
            )
        if after.deadline != before.deadline:
            self._set_timer(active)
        if before.needs_place and not after.needs_place:
            self._background.spawn(self._admit())
        if after.is_settled and not before.is_settled and after.spec.mode.kind == "async":
            self._do(active, lambda: self._rounds.remove_kept_updates(after.id))
        if after.is_settled and not before.is_settled and not active.aliases:
            self._do(active, lambda: self._settle(active))

    async def _settle(self, active: ActiveExperiment) -> None:
        """Remember it once nothing is left to be done about an experiment: until then each start looks at it again."""
        record = active.record
        if record.experiment.is_settled and record.has_aliases and not active.aliases:
            await self._store.settle(record.id)

    def _begin(self, active: ActiveExperiment, record: RoundRecord) -> None:
        """Have a round begun, again if need be."""
        evaluate = active.record.spec.evaluate
        if is_central(record, active.record.spec) and evaluate is not None and evaluate.dataset is not None:
            self._central.begin(record, evaluate.dataset)
        elif (
            self._publisher is not None
            and isinstance(record.request, RoundStart)
            and record.request.merged is None
        ):
            self._publisher.start(record.request)

    def _stop_missing(self, active: ActiveExperiment, record: RoundRecord) -> None:
        """Have the tasks stopped whose updates come too late."""
        if is_central(record, active.record.spec):
            self._central.end(record.round_id)
        elif self._publisher is not None and record.missing:
            reason = record.round.reason or "the round has enough updates"
            stop = RoundStop(round_id=record.round_id, participants=record.missing, reason=reason)
            self._publisher.stop(stop)

    async def _cancel(self, active: ActiveExperiment, cancel: CancelRound) -> None:
        record = await self._rounds.find_round(cancel.round_id)
        if record is None:  # a wave that was cancelled before it could be created
            over = WaveChanged(cancel.round_id, time.time(), is_over=True, reason=cancel.reason)
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
            _wave_changed if record.round.plan.is_wave else functools.partial(_round_ended, active.record)
        )
        await self._apply_until_stored(active, lambda: describe(record, time.time()))

    async def _resume(self, active: ActiveExperiment) -> None:
        """Do again what may not have been done about an experiment."""
        self._set_timer(active)
        for effect in resume(active.record.experiment):
            match effect:
                case StartRound() | EvaluateCentrally() | MergeUpdates():
                    await self._resume_round(active, effect.request.round_id)
                case CancelRound():
                    await self._cancel(active, effect)
                case MarkLatest() | MarkBest():
                    self._mark(active, effect)
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
            is_central(record, active.record.spec) and not record.state.is_over
        ):
            self._begin(active, record)

    async def _start_again(self) -> None:
        """Publish the starts again that nobody has answered: what told of them may be lost."""
        for active in self._active.all():
            old = time.time() - START_AGAIN_S
            for name in open_rounds(active.record):
                record = await self._rounds.find_round(name)
                if record is not None and record.state is RoundState.CREATED and record.created_at < old:
                    self._begin(active, record)

    async def _admit(self) -> None:
        """Let the oldest queued experiments run while there are places."""
        async with self._admitting:
            for active in self._active.queued():
                if self._active.count_running() >= self._max_running:
                    return
                await self._apply_until_stored(active, lambda: Admitted(time.time()))

    def _set_timer(self, active: ActiveExperiment) -> None:
        deadline = active.record.experiment.deadline
        if deadline is None:
            active.set_timer(None, lambda: None)
            return
        # Not earlier than the deadline: the clock may have been set back a little meanwhile, and the timer rings once.
        work = functools.partial(
            self._apply_until_stored, active, lambda: TimePassed(max(time.time(), deadline))
        )
        active.set_timer(deadline - time.time(), lambda: self._do(active, work))

    def _mark(self, active: ActiveExperiment, mark: MarkLatest | MarkBest) -> None:
        """Have an alias moved, in the background: nothing waits for it."""
        name = "latest" if isinstance(mark, MarkLatest) else "best"
        is_idle = name not in active.aliases
        active.aliases[name] = mark.version
        if is_idle:
            self._background.spawn(self._move_alias(active, name))

    async def _move_alias(self, active: ActiveExperiment, name: str) -> None:
        """Move an alias to the newest version that is wanted, a moment later while the experiment runs."""
        alias = f"{active.record.id}/{name}"
        version: int | None = None
        while active.aliases[name] != version:
            if not active.record.state.is_over:
                await asyncio.sleep(ALIAS_DELAY_S)
            wanted = version = active.aliases[name]
            try:
                await retry(
                    lambda: self._registry.set_alias(alias, wanted),  # noqa: B023 - awaited before the next version
                    delays=_RETRY_DELAYS_S,
                    forever=True,
                    on=lambda error: isinstance(error, PropellerError) and error.temporary,
                    failed=lambda error, _delay_s: log.warning(
                        "alias is not set yet", alias=alias, reason=str(error)
                    ),
                )
            except PropellerError as error:
                log.warning("alias is not set", alias=alias, version=wanted, reason=str(error))
        del active.aliases[name]
        await self._until_done(active, lambda: self._settle(active))


def check_spec(spec: ExperimentSpec) -> None:
    """Refuse what the coordinator cannot carry out.

    Raises:
        InvalidError: naming the field.
    """
    check_strategy(spec)


def make_start(record: ExperimentRecord, request: RoundRequest, strategy: dict[str, Any]) -> RoundStart:
    """What the manager is told of a round; ``strategy`` is for the devices."""
    spec = record.spec
    central = request.kind == "evaluate" and spec.evaluate is not None and spec.evaluate.on == "central"
    return RoundStart(
        round_id=request.round_id,
        model_uri=model_uri(request.base_version),
        task_wasm_image=record.program,
        selection=request.policy,
        hyperparams=dict(request.hyperparams),
        k_of_n=request.k_of_n,
        timeout_s=request.timeout_s,
        experiment_id=request.experiment_id,
        limits=spec.limits,
        mode=request.kind,
        number=request.number,
        attempt=request.attempt,
        min_updates=request.min_updates,
        strategy=strategy or None,
        # The coordinator's own evaluation is on all of its data set.
        split=None if spec.data.split is None or central else spec.data.split.to_json(),
        update=spec.update.to_json() if spec.update.kind == "delta" else None,
        seed=spec.selection.seed,
    )


def make_merge_start(record: ExperimentRecord, request: MergeRequest) -> RoundStart:
    """What is on record of a round that merges updates: nobody is told to start it."""
    merged = [
        UpdateSource(round_id=one.round_id, base_version=one.base_version, staleness=one.staleness)
        for one in request.updates
    ]
    return RoundStart(
        round_id=request.round_id,
        model_uri=model_uri(request.base_version),
        task_wasm_image=record.program,
        participants=[one.proplet_id for one in request.updates],
        k_of_n=len(merged),
        experiment_id=request.experiment_id,
        number=request.number,
        attempt=request.attempt,
        merged=merged,
    )


def open_rounds(record: ExperimentRecord) -> list[str]:
    """The ids of an experiment's rounds that are not over: the one that is open, and those of waves."""
    experiment = record.experiment
    opened = [] if experiment.open is None else [round_id(record.id, experiment.open)]
    return [*opened, *(wave_id(record.id, wave.number) for wave in experiment.waves)]


def _merge_started(record: RoundRecord, at: float) -> NewEvent:
    plan = record.round.plan
    known = {
        "base_version": plan.base_version,
        "participants": list(plan.participants),
        "k_of_n": plan.k_of_n,
    }
    return NewEvent("round_started", at, {**place_of(record), **known, "deadline": None})


def _wave_changed(record: RoundRecord, at: float) -> WaveChanged:
    current = record.round
    return WaveChanged(
        record.round_id,
        at,
        participants=current.plan.participants if record.started_at is not None else None,
        updates=tuple(current.accepted),
        failed=current.unheard if current.state.is_over else tuple(current.failures),
        is_over=current.state.is_over,
        reason=current.reason,
    )


def _round_ended(experiment: ExperimentRecord, record: RoundRecord, at: float) -> RoundEnded:
    completed = record.state is RoundState.COMPLETED
    return RoundEnded(
        record.round_id,
        at,
        version=record.round.model_version,
        metrics=record.metrics if completed else {},
        reason=None if completed else record.round.reason or "failed",
        participants=record.round.plan.participants,
        # The coordinator is no device, which the next try could leave out.
        failed=() if is_central(record, experiment.spec) else record.round.unheard,
    )


def _require_same(known: ExperimentRecord, spec: ExperimentSpec) -> ExperimentRecord:
    if canonical_json(known.spec) != canonical_json(spec):
        raise ConflictError(
            f"id: experiment {known.id} exists and was asked for differently; choose another id"
        )
    return known
