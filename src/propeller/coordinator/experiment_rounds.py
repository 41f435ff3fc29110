"""The rounds that experiments start: what the state machine asks for, as a record that can be stored."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from propeller.coordinator.experiment_records import ExperimentRecord
from propeller.coordinator.rounds import RoundRecord
from propeller.errors import ConflictError, InvalidError, NotFoundError, PropellerError
from propeller.fl.experiment import MergeRequest, RoundRequest
from propeller.fl.round import Round, RoundPlan, RoundState
from propeller.fl.strategies import read_strategy
from propeller.fl.tensors import Specs
from propeller.protocol.bounds import UpdateBounds
from propeller.protocol.rounds import RoundStart, UpdateSource, model_uri

if TYPE_CHECKING:  # with a database and HTTP, which a simulation has no use for
    from propeller.coordinator.active_experiments import ActiveExperiment, StateValues
    from propeller.coordinator.registry_client import ModelRegistryClient

FindRound = Callable[[str], Awaitable[RoundRecord | None]]
"""Gives a round by its id, or ``None``."""


class NotToldError(Exception):
    """A round cannot be made before the model registry has told of the version that it starts from: ``RoundMaker.ask``."""

    def __init__(self, request: RoundRequest | MergeRequest) -> None:
        """``request`` is what the round is asked to be."""
        super().__init__(request.round_id)
        self.request = request


class RoundMaker:
    """Makes records of rounds. What they need of the model registry is asked for before, as it may take long."""

    def __init__(self, find_round: FindRound, registry: "ModelRegistryClient") -> None:
        """``find_round`` gives the rounds that there are, ``registry`` the models and server states."""
        self._find_round, self._registry = find_round, registry

    async def ask(
        self, active: "ActiveExperiment", record: ExperimentRecord, request: RoundRequest | MergeRequest
    ) -> None:
        """Ask the model registry what a round needs to know; why it can never be known is kept for ``make``.

        Raises:
            ServiceError: it does not answer.
        """
        version = request.base_version
        try:
            if active.specs is None:
                active.specs = await self._registry.specs(version)
            needs_values = isinstance(request, RoundRequest) and _has_values(record)
            active.told = {version: await self._registry.values_of_state(version) if needs_values else {}}
        except (InvalidError, NotFoundError, ConflictError) as error:  # what time does not heal
            active.told = {version: error}

    async def make(
        self, active: "ActiveExperiment", record: ExperimentRecord, request: RoundRequest, now: float
    ) -> RoundRecord:
        """A round that waits for its participants.

        Args:
            active: the experiment.
            record: the experiment as it will be.
            request: what the round is asked to be.
            now: in Unix seconds.

        Raises:
            NotToldError: what it needs to know was not asked for.
            ConflictError: there is a round of its id.
            InvalidError: the strategy is none that this version has.
            NotFoundError: its base model is not there.
        """
        specs, values = _told(active, record, request)
        if await self._find_round(request.round_id) is not None:
            raise ConflictError(
                f"id: there is a round {request.round_id} already, which is not of this experiment; submit it with another id"
            )
        return make_round(record, request, specs, values, now)

    async def make_merge(
        self,
        active: "ActiveExperiment",
        record: ExperimentRecord,
        request: MergeRequest,
        now: float,
        *,
        changed: RoundRecord | None,
    ) -> RoundRecord:
        """A round that has all its updates, so that they are aggregated at once.

        Args:
            active: the experiment.
            record: the experiment as it will be.
            request: what the round is asked to be.
            now: in Unix seconds.
            changed: a wave as it will be stored together with the round.

        Raises:
            NotToldError: what it needs to know was not asked for.
            NotFoundError: its base model is not there, or an update of it is not in the database any more.
        """
        specs, _values = _told(active, record, request)
        updates, names = {}, {}
        for one in request.updates:
            wave = changed
            if wave is None or wave.round_id != one.round_id:
                wave = await self._find_round(one.round_id)
            if wave is None or one.proplet_id not in wave.updates:
                raise NotFoundError(
                    f"the update of {one.proplet_id} in {one.round_id}, which it was to be made of, is not in the coordinator's "
                    "database any more"
                )
            updates[one.proplet_id] = wave.updates[one.proplet_id]
            if one.proplet_id in wave.names:
                names[one.proplet_id] = wave.names[one.proplet_id]
        plan = RoundPlan(request.round_id, tuple(updates), request.base_version, len(updates))
        accepted = {name: update.digest for name, update in updates.items()}
        return RoundRecord(
            Round(plan, RoundState.AGGREGATING, accepted),
            make_merge_start(record, request, names),
            specs,
            now,
            now,
            updates,
            now,
            announced=True,
            strategy=dict(record.strategy),
        )


def _has_values(record: ExperimentRecord) -> bool:
    """Whether a server state may have values for devices."""
    return "program" not in record.strategy and record.experiment.done > 0


def _told(
    active: "ActiveExperiment", record: ExperimentRecord, request: RoundRequest | MergeRequest
) -> "tuple[Specs, StateValues]":
    """What the model registry has told.

    Raises:
        NotToldError: not what the round needs.
        PropellerError: it never will.
    """
    told = active.told.get(request.base_version)
    if isinstance(told, PropellerError):
        raise told
    if told is None and isinstance(request, RoundRequest) and _has_values(record):
        raise NotToldError(request)
    if active.specs is None:
        raise NotToldError(request)
    return active.specs, told or {}


def make_round(
    record: ExperimentRecord, request: RoundRequest, specs: Specs, values: "StateValues", now: float
) -> RoundRecord:
    """A round that waits for its participants; ``values`` are those of the base model's server state.

    Raises:
        InvalidError: the strategy is none that this version has.
    """
    plan = RoundPlan(
        request.round_id,
        (),
        request.base_version,
        request.k_of_n,
        request.min_updates,
        request.kind,
        request.is_wave,
    )
    told = {} if "program" in record.strategy else read_strategy(record.strategy).for_devices(values)
    start = make_start(record, request, told)
    return RoundRecord(Round(plan), start, specs, now, announced=True, strategy=dict(record.strategy))


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
        update=spec.update.for_devices(),
        seed=spec.selection.seed,
        bounds=_bounds(record),
    )


def _bounds(record: ExperimentRecord) -> UpdateBounds | None:
    bounds = record.spec.update.bounds
    return None if bounds.given() is None else bounds


def make_merge_start(record: ExperimentRecord, request: MergeRequest, names: Mapping[str, str]) -> RoundStart:
    """What is on record of a round that merges updates: nobody is told to start it; ``names`` are those of devices by id."""
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
        names=dict(names) or None,
        bounds=_bounds(record),
    )
