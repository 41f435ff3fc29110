"""Experiments as users have them: submitted, paused, stopped, looked at, and followed to their end."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

from propeller.coordinator.active_experiments import ActiveExperiment, ActiveExperiments
from propeller.coordinator.aggregator_client import AggregatorClient
from propeller.coordinator.central_evaluation import CentralEvaluations
from propeller.coordinator.experiment_records import ExperimentRecord
from propeller.coordinator.experiment_runner import ExperimentRunner, Publisher
from propeller.coordinator.experiment_store import ExperimentStore, StoredEvent
from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.coordinator.round_events import NewEvent
from propeller.coordinator.rounds import RoundRecord
from propeller.coordinator.service import Coordinator
from propeller.errors import ConflictError, NotFoundError, UnavailableError
from propeller.fl.experiment import (
    Experiment,
    ExperimentState,
    PauseRequested,
    Request,
    ResumeRequested,
    StopRequested,
    check_names,
    check_strategy,
    round_id,
)
from propeller.process.clock import steady_time
from propeller.process.logs import get_logger
from propeller.protocol.experiments import ExperimentSpec, canonical_json

log = get_logger("coordinator")

ADMISSION_WAIT_S = 5.0
"""How long the answer to a submission waits for the experiment's first round, in seconds."""

_EVENTS_AT_ONCE = 500


class Experiments:
    """What can be asked for of experiments; ``ExperimentRunner`` carries it out. Use ``start`` and ``close``."""

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
        keep_events_s: float,
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
            keep_events_s: how long the events of an experiment stay after its end, in seconds.
        """
        self._store, self._rounds = store, rounds
        self._registry, self._aggregator = registry, aggregator
        self._publisher, self._central = publisher, central
        self._active = ActiveExperiments(store)
        self._runner = ExperimentRunner(
            store,
            self._active,
            rounds,
            registry,
            publisher=publisher,
            central=central,
            max_running=max_running,
            keep_events_s=keep_events_s,
        )
        self._stopping = False

    async def start(self) -> None:
        """Go on with every experiment that was not over when the process ended."""
        await self._runner.start()

    def answer_waiters(self) -> None:
        """End every stream of events: the process is about to end."""
        self._stopping = True
        self._active.wake_followers()

    async def close(self) -> None:
        """Stop. What is not done yet is done after the next start."""
        self.answer_waiters()
        await self._runner.close()

    async def submit(self, spec: ExperimentSpec) -> ExperimentRecord:
        """Begin an experiment, or queue it; the same one under the same id again changes nothing.

        Raises:
            ConflictError: there is another one of this id.
            InvalidError: a field is wrong; the text names it.
            NotFoundError: the model that it starts from does not exist, or the data set of its evaluations.
            ServiceError: the model registry does not answer, or the data store.
            UnavailableError: the coordinator has no broker.
        """
        self._require_broker()
        experiment_id = spec.id or f"{spec.name}-{uuid.uuid4().hex[:8]}"
        known = await self._active.find(experiment_id)
        if known is not None:
            return _require_same(known.record, spec)
        check_strategy(spec)
        await self._central.check(spec)
        strategy = await self._pin_strategy(spec)
        version = await self._base_version(spec)
        specs = await self._registry.specs(version)
        check_names(spec, specs)
        experiment = Experiment(experiment_id, spec, version)
        record = ExperimentRecord(experiment, steady_time(), spec.program, strategy)
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
        await asyncio.wait([self._runner.admit()], timeout=ADMISSION_WAIT_S)
        return active.record

    async def check(self, spec: ExperimentSpec, *, brings_dataset: bool = False) -> bool:
        """See that an experiment could begin; begins and stores nothing. A model is looked for only if the experiment names one.

        Args:
            spec: what is asked for.
            brings_dataset: whether the data set of its evaluations is stored before it is submitted, and need not be there yet.

        Returns:
            Whether there is an experiment of this id already.

        Raises:
            InvalidError, NotFoundError, ServiceError, UnavailableError: as ``submit``.
        """
        self._require_broker()
        if spec.id is not None and await self._active.find(spec.id) is not None:
            return True
        check_strategy(spec)
        await self._central.check(spec, brings_dataset=brings_dataset)
        await self._pin_strategy(spec)
        if spec.model is not None:
            check_names(spec, await self._registry.specs(await self._base_version(spec)))
        return False

    async def pause(self, experiment_id: str) -> ExperimentRecord:
        """Start no other round; the open one goes on.

        Raises:
            NotFoundError: there is no such experiment.
            ConflictError: it is over.
        """
        return await self._request(experiment_id, PauseRequested(steady_time()))

    async def resume(self, experiment_id: str) -> ExperimentRecord:
        """Go on with a paused experiment, as soon as there is a place for it.

        Raises:
            NotFoundError: there is no such experiment.
            ConflictError: it is over.
        """
        active = await self.find(experiment_id)
        record = await self._runner.apply(active, ResumeRequested(steady_time()))
        if record.state is ExperimentState.QUEUED:
            await asyncio.wait([self._runner.admit()], timeout=ADMISSION_WAIT_S)
        return active.record

    async def stop(self, experiment_id: str, reason: str = "stopped by request") -> ExperimentRecord:
        """End an experiment, and cancel its open round.

        Raises:
            NotFoundError: there is no such experiment.
            ConflictError: it is over.
        """
        return await self._request(experiment_id, StopRequested(steady_time(), reason))

    async def find(self, experiment_id: str) -> ActiveExperiment:
        """An experiment.

        Raises:
            NotFoundError: there is none of this id.
        """
        return await self._active.get(experiment_id)

    async def page(
        self, offset: int, limit: int, *, state: str | None = None, name: str | None = None
    ) -> tuple[int, list[ExperimentRecord]]:
        """How many experiments there are, of a state or name if one is given, and some of them, the newest first."""
        return await self._store.page(offset, limit, state=state, name=name)

    async def open_round(self, record: ExperimentRecord) -> dict[str, Any] | None:
        """Everything about the round of an experiment that is open, if there is one that devices take part in."""
        opened = record.experiment.open
        found = None if opened is None else await self._rounds.find_round(round_id(record.id, opened))
        return None if found is None else self._rounds.detail(found)

    def rounds_of(self, experiment_id: str) -> AsyncIterator[list[RoundRecord]]:
        """Every round of an experiment, in the order in which they were created, some at a time."""
        return self._rounds.rounds_of(experiment_id)

    async def follow(
        self, experiment_id: str, after: int, silence_s: float
    ) -> AsyncIterator[StoredEvent | None]:
        """The events after number ``after``, as they happen, to the end; ``None`` after each ``silence_s`` without one.

        In the place of events that were removed there is one that says so.

        Raises:
            NotFoundError: there is no such experiment.
        """
        active = await self.find(experiment_id)
        while True:
            changed = active.next_change()
            # Looked at before the events are read: the last ones are stored together with the end.
            is_last = active.record.experiment.is_settled
            events = active.recent_events(after)
            if events is None:
                events = await self._store.events(experiment_id, after, _EVENTS_AT_ONCE)
            if events and events[0].seq > after + 1:
                yield _removed(after + 1, events[0])
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

    async def _request(self, experiment_id: str, event: Request) -> ExperimentRecord:
        return await self._runner.apply(await self.find(experiment_id), event)

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
        self._aggregator.check_strategy(strategy)
        if spec.strategy.program is not None:
            strategy["program"] = await self._aggregator.resolve_program(spec.strategy.program)
        return strategy


def _removed(first: int, kept: StoredEvent) -> StoredEvent:
    """What is told in the place of the events from ``first`` to the one before ``kept``."""
    last = kept.seq - 1
    reason = "removed some time after the end (COORDINATOR_KEEP_EVENTS); the history has the rounds"
    return StoredEvent(last, "removed", kept.at, {"first": first, "last": last, "reason": reason})


def _require_same(known: ExperimentRecord, spec: ExperimentSpec) -> ExperimentRecord:
    if canonical_json(known.spec) != canonical_json(spec):
        raise ConflictError(
            f"id: experiment {known.id} exists and was asked for differently; choose another id"
        )
    return known
