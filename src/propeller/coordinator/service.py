"""The coordinator: sets rounds up, accepts their updates, and turns each round's updates into one model version."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from propeller.coordinator.active_rounds import ActiveRound, ActiveRounds, Arrival
from propeller.coordinator.aggregation import UPDATE_IS_GONE, Aggregation
from propeller.coordinator.base_models import BaseModels
from propeller.coordinator.kept_updates import KeptUpdates, UpdateRetention
from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.coordinator.round_runner import RoundObserver, RoundRunner
from propeller.coordinator.rounds import AcceptedUpdate, RoundRecord
from propeller.coordinator.store import Also, RoundStore
from propeller.coordinator.telemetry import RoundTelemetry
from propeller.coordinator.update_checks import check_update
from propeller.coordinator.updates import NO_TENSORS, ReceivedUpdate, evaluation_digest
from propeller.errors import ConflictError, InvalidError, NotFoundError, PropellerError, RefusedError
from propeller.fl.bounds import OutOfBoundsError, check_numbers
from propeller.fl.round import (
    ChoiceFailed,
    Event,
    ParticipantFailed,
    ParticipantsChosen,
    RetryRequested,
    RoundCancelled,
    RoundConfigured,
    RoundState,
    UpdateReceived,
    Verdict,
    admit,
    step,
)
from propeller.process.background import BackgroundTasks
from propeller.process.clock import steady_time
from propeller.process.logs import get_logger
from propeller.protocol.rounds import (
    ChosenParticipants,
    Experiment,
    ParticipantFailure,
    ParticipantStage,
    RoundParticipants,
    RoundStop,
    model_version,
)
from propeller.protocol.task import Stage

log = get_logger("coordinator")

RESTART_GRACE_S = 2.0
"""How long a round whose deadline passed while the coordinator was down still collects what waits in the broker."""

RETRY_INTERVAL_S = 60.0
"""Between looks whether the updates are back of rounds that failed for want of them, in seconds."""

CLEANUP_INTERVAL_S = 600.0
"""Between searches for updates that nobody needs any more, in seconds."""

COMPILING = "devices to which the program is new are compiling it"
"""What an experiment waits for while participants say that they do."""

_ERRORS: dict[Verdict, type[PropellerError]] = {
    Verdict.FOREIGN: RefusedError,
    Verdict.DIFFERENT: ConflictError,
    Verdict.STALE: ConflictError,
    Verdict.LATE: ConflictError,
}


class Coordinator:
    """Rounds from their configuration to their model version.

    ``fl.round`` decides; this carries out. The tensors of a large update go to the blobs first; then those of a small one, its
    header and the round's new state go to the database in one transaction, and then it is answered. Use ``start`` and ``close``.
    """

    def __init__(
        self,
        store: RoundStore,
        registry: ModelRegistryClient,
        updates: KeptUpdates,
        aggregation: Aggregation,
        telemetry: RoundTelemetry,
        bases: BaseModels,
        *,
        keep_failed_s: float,
        keep_updates: bool = False,
        announce: Callable[[str, int, bool], None] | None = None,
        stop_tasks: Callable[[RoundStop], None] | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            store: the rounds.
            registry: knows the base models.
            updates: where the updates are kept.
            aggregation: makes model versions of them.
            telemetry: logs and counts what happens.
            bases: the base models that updates are measured from.
            keep_failed_s: how long the updates of a failed round stay, so that it can be retried, in seconds.
            keep_updates: whether all updates stay for good.
            announce: called with a completed round's id and model version, and whether it is to be recorded that this was
                announced; without it, rounds are not announced.
            stop_tasks: has the tasks of a round stopped that nobody wants any more; without it they go on to their end.
        """
        self._store, self._registry, self._updates, self._bases = store, registry, updates, bases
        self._telemetry, self._announces, self._stop_tasks = telemetry, announce is not None, stop_tasks
        self._rounds = ActiveRounds(store)
        self._retention = UpdateRetention(
            updates, store, self._rounds, keep_failed_s=keep_failed_s, keep_all=keep_updates
        )
        self._background = BackgroundTasks("coordinator")
        self._runner = RoundRunner(store, aggregation, telemetry, self._retention, self._background, announce)
        self._stopping = False

    def observe(self, observer: RoundObserver) -> None:
        """Have an observer know of everything that happens to rounds from now on."""
        self._runner.observer = observer

    async def start(self) -> None:
        """Go on with every round that was open when the process ended."""
        for record in await self._store.load_open():
            active = self._rounds.add(record)
            log.info("resuming round", round_id=record.round_id, state=record.state.value)
            if record.refusal is not None:
                self._background.spawn(
                    self._runner.apply_until_stored(active, RoundCancelled(record.refusal))
                )
                continue
            self._runner.resume(active)
            if record.state is RoundState.COLLECTING:
                self._runner.start_timer(active, grace_s=RESTART_GRACE_S)
        self._background.spawn_periodic(
            "retrying rounds whose updates are back", self._retry_failed, RETRY_INTERVAL_S, at_once=True
        )
        if not self._retention.keep_all:
            self._background.spawn_periodic(
                "removing updates of old rounds", self._retention.remove_old, CLEANUP_INTERVAL_S, at_once=True
            )

    def answer_waiters(self) -> None:
        """Answer everyone who waits for a round to change: the process is about to end."""
        self._stopping = True
        self._rounds.wake_waiters()

    async def close(self) -> None:
        """Stop. What is not done yet is done after the next start."""
        self.answer_waiters()
        self._rounds.cancel_timers()
        await self._background.close()

    async def configure(self, experiment: Experiment) -> RoundRecord:
        """Set a round up; the same experiment again changes nothing.

        Raises:
            InvalidError: the round's id is reserved.
            ConflictError: the round exists and was asked for differently.
            NotFoundError: its base model does not exist.
            ServiceError: the model registry does not answer.
        """
        round_id = experiment.round_id
        if round_id == "next":
            raise InvalidError("round_id: 'next' is reserved; choose another id")
        known = self._rounds.get(round_id)
        if known is not None:
            return known.record.require_same(experiment)
        specs = await self._registry.specs(model_version(experiment.model_ref))
        created = RoundRecord.create(experiment, specs, steady_time())
        collecting = step(created.round, RoundConfigured()).round
        record = replace(created, round=collecting, announced=not self._announces)
        # Not looked for first: rounds that are set up twice are rare, and every look-up costs a transaction.
        active = await self._rounds.create(record)
        if active is None:
            return (await self._find(round_id)).record.require_same(experiment)
        self._runner.start_timer(active)
        self._telemetry.round_configured(record)
        return record

    def open_round(self, record: RoundRecord) -> None:
        """Take over a round of an experiment that is stored already: it waits for its participants, or has its updates."""
        if self._rounds.get(record.round_id) is None:  # someone may have asked for it since it was stored
            self._runner.resume(self._rounds.add(record))

    async def choose_participants(self, round_id: str, chosen: ChosenParticipants) -> RoundParticipants:
        """Let a round that waits for participants have them; the first choice stays.

        Raises:
            NotFoundError: there is no such round.
        """
        active = await self._find(round_id)
        observer = self._runner.observer if active.record.state is RoundState.CREATED else None
        if chosen.waiting:
            if observer is not None:
                await observer.note_waiting(active.record, chosen.waiting)
        elif observer is None or not await observer.gives_up(active.record, chosen):
            event: Event = ParticipantsChosen(tuple(chosen.participants), chosen.surplus)
            if chosen.failure:
                event = ChoiceFailed(chosen.failure)
            if observer is not None and chosen.left_out:
                await observer.note_left_out(active.record, chosen.left_out)
            async with active.lock:
                before = active.record
                await self._runner.apply(active, event, program=chosen.program, names=chosen.names)
                if active.record is not before and active.record.state is RoundState.COLLECTING:
                    self._runner.start_timer(active)
        record = active.record
        collects = record.state is RoundState.COLLECTING
        return RoundParticipants(
            participants=list(record.round.plan.participants) if collects else [],
            state=record.state.value,
            task_wasm_image=record.request.task_wasm_image,
            model_digest=await self.model_digest(record) if collects else None,
            model=self._registry.sent_along(record.round.plan.base_version) if collects else None,
        )

    async def model_digest(self, record: RoundRecord) -> str | None:
        """The digest of a round's base model, by which its participants may read it; ``None`` if the registry has none.

        Raises:
            ServiceError: the model registry does not answer.
        """
        return await self._registry.digest(record.round.plan.base_version)

    async def cancel_round(self, round_id: str, reason: str) -> None:
        """End a round that is not wanted any more; one that is over stays as it is."""
        active = await self._rounds.find(round_id)
        if active is not None:
            await self._runner.apply_until_stored(active, RoundCancelled(reason))

    async def cancel_single_round(self, round_id: str, reason: str) -> RoundRecord:
        """End an open round that is of no experiment of many rounds, wherever it is; ``retry_round`` goes on with what it has.

        Raises:
            NotFoundError: there is none of this id.
            ConflictError: it is over, or an experiment's.
        """
        active = await self._find(round_id)
        if (owner := active.record.experiment_id) is not None:
            raise ConflictError(
                f"round {round_id} is of experiment {owner}, which would try it again: stop that (POST /experiments/{owner}/stop)"
            )
        async with active.lock:
            before = active.record
            if not before.state.is_over:
                await self._runner.apply(active, RoundCancelled(reason))
            record = active.record
        if record is before:
            raise ConflictError(f"round {round_id} cannot be cancelled: it is {record.state}")
        if before.missing and self._stop_tasks is not None:
            self._stop_tasks(RoundStop(round_id=round_id, participants=before.missing, reason=reason))
        return record

    def rounds_of(self, experiment_id: str) -> AsyncIterator[list[RoundRecord]]:
        """The rounds of an experiment in the order in which they were created, some at a time."""
        return self._store.rounds_of(experiment_id)

    async def remove_kept_updates(self, experiment_id: str) -> None:
        """Remove the updates of an experiment that no round needs any more, as it is over."""
        await self._retention.remove_of_experiment(experiment_id)

    async def find_round(self, round_id: str) -> RoundRecord | None:
        """A round as it is; ``None`` if there is none of this id."""
        active = await self._rounds.find(round_id)
        return None if active is None else active.record

    async def accept_update(self, update: ReceivedUpdate) -> Verdict:
        """Accept an update, which is durable once this returns, or raise why it does not count.

        Raises:
            NotFoundError: there is no such round.
            RefusedError: its sender is not a participant.
            ConflictError: it is late, starts from another version, or another one of its sender counts.
            InvalidError: its tensors are malformed, or do not fit the base model.
        """
        try:
            verdict = await self._accept_update(update)
        except PropellerError as error:
            await self._refuse(update, error)
            raise
        self._telemetry.update_accepted(verdict)
        return verdict

    async def record_failure(self, round_id: str, failure: ParticipantFailure) -> bool:
        """Remember that no update is expected of a participant; ``False`` if the round collects no more.

        Raises:
            NotFoundError: there is no such round.
            RefusedError: it is not a participant.
        """
        active = await self._find(round_id)
        async with active.lock:
            answer = await self._runner.apply(active, ParticipantFailed(failure.proplet_id, failure.reason))
        if answer is None:
            raise AssertionError("a failure is always answered")
        if answer.verdict is Verdict.FOREIGN:
            raise RefusedError(answer.reason)
        return answer.verdict.is_positive

    async def note_stage(self, round_id: str, told: ParticipantStage) -> bool:
        """Remember what a participant does, for whoever asks and for the end of the round; ``False`` if that collects no more.

        It is kept in memory alone: after a restart nothing is known until more is said.

        Raises:
            NotFoundError: there is no such round.
            RefusedError: it is not a participant.
        """
        active = await self._find(round_id)
        record = active.record
        if told.proplet_id not in record.round.plan.slots:
            raise RefusedError(f"{told.proplet_id} is not a participant of round {round_id}")
        if record.state is not RoundState.COLLECTING:
            return False
        active.stages[told.proplet_id] = told.stage
        if told.stage is Stage.COMPILING and self._runner.observer is not None:
            await self._runner.observer.note_waiting(record, COMPILING)
        return True

    def detail(self, record: RoundRecord) -> dict[str, Any]:
        """Everything about a round; while it collects with ``stages``, what participants do whose updates it waits for, as far as that is known.

        While its updates cannot be aggregated with ``waiting``, what is away.
        """
        told, active = record.detail(), self._rounds.get(record.round_id)
        if active is None:
            return told
        if active.waits_for is not None:
            told["waiting"] = active.waits_for
        stages = [
            {**record.device(name), "stage": active.stages[name].value}
            for name in record.round.unheard
            if name in active.stages and name not in record.round.failures
        ]
        return {**told, "stages": stages} if stages else told

    async def note_refusal(self, round_id: str, proplet_id: str, reason: str) -> None:
        """Have a round not wait for a participant whose update can never count: its failure, unless it has failed already.

        So a device that sends such updates over and over is written down once.
        """
        active = await self._rounds.find(round_id)
        if active is None or active.record.state is not RoundState.COLLECTING:
            return
        current = active.record.round
        if proplet_id in current.plan.slots and proplet_id not in current.failures:
            await self.record_failure(round_id, ParticipantFailure(proplet_id=proplet_id, reason=reason))

    async def get_round(self, round_id: str) -> RoundRecord:
        """A round as it is.

        Raises:
            NotFoundError: there is none of this id.
        """
        return (await self._find(round_id)).record

    async def wait_for_round(
        self, round_id: str, timeout_s: float, more_than: int | None = None
    ) -> RoundRecord:
        """A round once it is over or has more updates than ``more_than``, or as it is after ``timeout_s`` seconds.

        Raises:
            NotFoundError: there is none of this id.
        """

        def changed_enough(record: RoundRecord) -> bool:
            grown = more_than is not None and len(record.updates) > more_than
            return grown or record.state.is_over or self._stopping

        return await (await self._find(round_id)).wait_until(changed_enough, timeout_s)

    async def list_rounds(self, offset: int, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many rounds there are, and the summaries of some, the newest first."""
        return await self._store.list_summaries(offset, limit)

    async def last_completed(self) -> tuple[str, int] | None:
        """The id and the model version of the round that completed last, of those that made a version."""
        return await self._store.last_completed()

    async def retry_round(self, round_id: str) -> RoundRecord:
        """Aggregate a failed round's updates after all.

        Raises:
            NotFoundError: there is none of this id.
            ConflictError: it has not failed, has too few updates, or they were removed.
        """
        active = await self._find(round_id)
        if active.record.experiment_id is not None:
            raise ConflictError(
                f"round {round_id} is of experiment {active.record.experiment_id}, which tries its rounds again by itself"
            )
        async with active.lock:
            failed = active.record.state is RoundState.FAILED
            if failed and not await self._updates.has_all(active.record):
                raise ConflictError(
                    f"round {round_id} cannot be retried: its updates are not there any more, they are kept "
                    f"for {self._retention.keep_failed_s:g} s after it failed (COORDINATOR_KEEP_FAILED); start a new round"
                )
            await self._runner.apply(active, RetryRequested())
            record = active.record
        if record.state is not RoundState.AGGREGATING:
            raise ConflictError(
                f"round {round_id} cannot be retried: it is {record.state} with {len(record.updates)} updates"
            )
        return record

    async def _retry_failed(self) -> None:
        """Aggregate the updates of rounds that failed because some of them were not where they are kept, and are again."""
        since = steady_time() - self._retention.keep_failed_s
        for round_id in await self._store.failed_because(UPDATE_IS_GONE, since):
            with contextlib.suppress(ConflictError):  # they are not, or somebody was faster
                await self.retry_round(round_id)
                log.info("the updates of a failed round are back", round_id=round_id)

    async def _find(self, round_id: str) -> ActiveRound:
        active = await self._rounds.find(round_id)
        if active is None:
            raise NotFoundError("Round not found")
        return active

    async def check_admission(self, update: ReceivedUpdate) -> None:
        """Refuse an update whose header alone is known for what ``accept_update`` would: nobody waits for it.

        Raises:
            PropellerError: as ``accept_update``.
        """
        try:
            await self._admit(update)
        except PropellerError as error:
            await self._refuse(update, error)
            raise

    async def _refuse(self, update: ReceivedUpdate, error: PropellerError) -> None:
        """Note that an update does not count; the round does not wait for one whose numbers are out of bounds."""
        header = update.header
        if not error.temporary:
            self._telemetry.update_refused(header, error)
        if isinstance(error, OutOfBoundsError):
            await self.note_refusal(header.round_id, header.proplet_id, str(error))

    async def _admit(self, update: ReceivedUpdate) -> tuple[ActiveRound, int | None]:
        """The round that an update is for, and the version that it says it starts from."""
        header = update.header
        active = await self._rounds.find(header.round_id)
        if update.read_tensors is None and (active is None or active.record.kind == "train"):
            raise InvalidError(NO_TENSORS)
        if active is None:
            raise NotFoundError(
                f"Round not found: {header.round_id}; configure it first with POST /experiments"
            )
        base_version = model_version(header.base_model_uri) if header.base_model_uri else None
        admission = admit(active.record.round, header.proplet_id, base_version)
        if not admission.verdict.is_positive:
            raise _ERRORS[admission.verdict](admission.reason)
        check_numbers(
            active.record.bounds, header.proplet_id, header.num_samples, header.steps, header.metrics
        )
        return active, base_version

    async def _accept_update(self, update: ReceivedUpdate) -> Verdict:
        header = update.header
        active, base_version = await self._admit(update)
        document = await check_update(active.record, update, self._updates.new_file, self._bases)
        write: Also | None = None
        if document is None:
            digest, size = evaluation_digest(header), 0
        else:
            with contextlib.closing(document):
                digest, size = document.digest, document.size
                if header.proplet_id not in active.record.round.accepted:
                    write = await self._updates.put(document)
        transfer = update.transfer if active.record.kind == "train" else None
        accepted = AcceptedUpdate.of(header, digest, size, steady_time(), transfer)
        answer = await self._runner.apply_update(
            active, Arrival(UpdateReceived(header.proplet_id, digest, base_version), accepted, write)
        )
        if not answer.verdict.is_positive:
            if document is not None and write is None:
                await self._updates.remove([digest])
            raise _ERRORS[answer.verdict](answer.reason)
        return answer.verdict
