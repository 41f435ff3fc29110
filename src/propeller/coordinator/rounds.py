"""A round as the coordinator knows it: the state machine's part, what was asked for, and when things happened."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from propeller.coordinator.transfer import Transfer
from propeller.errors import ConflictError
from propeller.fl.bounds import counted_samples
from propeller.fl.round import Round, RoundPlan, RoundState
from propeller.fl.tensors import Specs
from propeller.metrics import weighted_metrics
from propeller.protocol.aggregation import StrategyField
from propeller.protocol.bounds import DEFAULT_BOUNDS, UpdateBounds
from propeller.protocol.rounds import (
    DEFAULT_TIMEOUT_S,
    Experiment,
    RoundStart,
    UpdateKind,
    model_uri,
    model_version,
)
from propeller.protocol.selection import RoundKind
from propeller.protocol.updates import UpdateHeader
from propeller.protocol.wire import format_time

RoundRequest = Experiment | RoundStart
"""What a round was asked to be: by itself, or by an experiment; then as the manager is told."""


@dataclass(frozen=True)
class NewVersion:
    """A model version that was stored.

    Attributes:
        version: its number.
        timings: how long the stages took, in milliseconds.
        report: what the strategy says about the round, numbers by name.
    """

    version: int
    timings: Mapping[str, float]
    report: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AcceptedUpdate:
    """An update that counts: the header of what is kept under ``digest``; ``received_at`` in Unix seconds.

    ``transfer`` says how it came; of updates from before that was kept, and of evaluations, there is none. ``corrected`` is
    whether its program says that it did its part of the strategy; ``metrics_left_out`` has what those metrics were that are no
    numbers.
    """

    proplet_id: str
    digest: str
    num_samples: int
    metrics: Mapping[str, float]
    size: int
    received_at: float
    steps: int | None = None
    kind: UpdateKind = "weights"
    transfer: Transfer | None = None
    corrected: bool | None = None
    metrics_left_out: Mapping[str, str] | None = None

    @classmethod
    def of(
        cls,
        header: UpdateHeader,
        digest: str,
        size: int,
        received_at: float,
        transfer: Transfer | None = None,
    ) -> "AcceptedUpdate":
        """An update with this header, stored under ``digest`` in ``size`` bytes; an evaluation is not stored and has 0."""
        return cls(
            header.proplet_id,
            digest,
            header.num_samples,
            header.metrics,
            size,
            received_at,
            header.steps,
            header.kind,
            transfer,
            header.corrected,
            header.metrics_left_out,
        )

    def to_json(self) -> dict[str, Any]:
        """What is told of it."""
        return {
            "proplet_id": self.proplet_id,
            "num_samples": self.num_samples,
            **({} if self.steps is None else {"steps": self.steps}),
            **({} if self.corrected is None else {"corrected": self.corrected}),
            "metrics": dict(self.metrics),
            **({"metrics_left_out": dict(self.metrics_left_out)} if self.metrics_left_out else {}),
            "size": self.size,
            **({} if self.transfer is None else self.transfer.to_json()),
            "received_at": format_unix_time(self.received_at),
        }


@dataclass(frozen=True)
class RoundRecord:
    """One round. All times are Unix seconds.

    Attributes:
        round: the state machine's part.
        request: what was asked for.
        specs: of the base model, whose names and shapes every update must have.
        created_at: when it was configured.
        started_at: when its participants were known, and its time to collect began.
        updates: those that count, by proplet id.
        closed_at: when it took its last update.
        ended_at: when its model was stored, or when it failed.
        timings: of its stages, in milliseconds.
        announced: whether its completion was announced, or need not be after a crash: that of an experiment's round is
            among the experiment's events.
        strategy: that makes a model of its updates: a name or a program, and parameters.
        report: what the strategy says about the round, numbers by name.
        refusal: why this version of the code cannot carry it out, as another one stored ``request``, which is then a substitute.
    """

    round: Round
    request: RoundRequest
    specs: Specs
    created_at: float
    started_at: float | None = None
    updates: Mapping[str, AcceptedUpdate] = field(default_factory=dict)
    closed_at: float | None = None
    ended_at: float | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    announced: bool = False
    strategy: StrategyField = "fedavg"
    report: Mapping[str, float] = field(default_factory=dict)
    refusal: str | None = None

    @classmethod
    def create(cls, experiment: Experiment, specs: Specs, created_at: float) -> "RoundRecord":
        """A round that does not collect yet; its time to collect begins at ``created_at``."""
        plan = RoundPlan(
            experiment.round_id,
            tuple(experiment.participants),
            model_version(experiment.model_ref),
            experiment.k_of_n,
            experiment.min_updates,
        )
        return cls(Round(plan), experiment, specs, created_at, created_at)

    @property
    def round_id(self) -> str:
        """The round's id."""
        return self.round.plan.round_id

    @property
    def state(self) -> RoundState:
        """Where the round is."""
        return self.round.state

    @property
    def kind(self) -> RoundKind:
        """Whether its participants train or evaluate."""
        return self.round.plan.kind

    @property
    def deadline(self) -> float:
        """When it closes with what has come; of a round without participants, if it had them now."""
        timeout_s = DEFAULT_TIMEOUT_S if self.request.timeout_s is None else self.request.timeout_s
        return (self.created_at if self.started_at is None else self.started_at) + timeout_s

    @property
    def experiment_id(self) -> str | None:
        """The experiment that it is a round of, if it is."""
        return self.request.experiment_id if isinstance(self.request, RoundStart) else None

    @property
    def bounds(self) -> UpdateBounds:
        """How large an update's numbers may be."""
        request = self.request
        return (request.bounds if isinstance(request, RoundStart) else request.update) or DEFAULT_BOUNDS

    def counted_samples(self) -> dict[str, int]:
        """By how many samples each update counts, by proplet id: fewer than it has, if its share would be too large."""
        samples = [update.num_samples for update in self.updates.values()]
        return dict(zip(self.updates, counted_samples(samples, self.bounds.max_share), strict=True))

    @property
    def metrics(self) -> dict[str, float]:
        """The means of the participants' metrics, weighted by the samples that count."""
        if self.bounds.max_share is None:
            return weighted_metrics(self.updates.values())
        counted = self.counted_samples()
        return weighted_metrics(
            replace(update, num_samples=counted[name]) for name, update in self.updates.items()
        )

    @property
    def keeps_updates(self) -> bool:
        """Whether its updates are needed when it is over without a version: a wave's are merged later, a merge's again."""
        return self.round.plan.is_wave or bool(isinstance(self.request, RoundStart) and self.request.merged)

    def in_slot_order(self) -> list[AcceptedUpdate]:
        """The updates in the order of the participants, whoever was faster."""
        return [self.updates[name] for name in self.round.plan.participants if name in self.updates]

    @property
    def numbers(self) -> dict[str, int]:
        """Which round and attempt of its experiment it is, if it is of one."""
        request = self.request
        if not isinstance(request, RoundStart):
            return {}
        return {"number": request.number, "attempt": request.attempt}

    @property
    def names(self) -> Mapping[str, str]:
        """The names of its participants by their ids, as the manager told them: of a round of an experiment."""
        return (self.request.names or {}) if isinstance(self.request, RoundStart) else {}

    def device(self, proplet_id: str) -> dict[str, str]:
        """How a participant is told: its id, and its name if it is known."""
        name = self.names.get(proplet_id)
        return {"proplet_id": proplet_id, **({} if name is None else {"name": name})}

    def update_json(self, update: AcceptedUpdate) -> dict[str, Any]:
        """What is told of an update."""
        return {**self.device(update.proplet_id), **update.to_json()}

    def updates_json(self, updates: Iterable[AcceptedUpdate]) -> list[dict[str, Any]]:
        """What is told of updates, all of which have come; of those that do not count by all their samples, by how many."""
        counted = self.counted_samples()
        return [
            {
                **self.update_json(update),
                **({} if number == update.num_samples else {"counted_samples": number}),
            }
            for update in updates
            for number in [counted[update.proplet_id]]
        ]

    @property
    def missing(self) -> list[str]:
        """The participants whose updates have not come."""
        return list(self.round.unheard)

    def require_same(self, experiment: Experiment) -> "RoundRecord":
        """This record, if ``experiment`` is what was asked for.

        Raises:
            ConflictError: the round was asked for differently.
        """
        if self.request != experiment:
            raise ConflictError(
                f"round_id: round {self.round_id} exists and was configured differently; choose another id"
            )
        return self

    def advance(
        self,
        after: Round,
        moment: float,
        accepted: Iterable[AcceptedUpdate] = (),
        *,
        new: NewVersion | None = None,
        program: str | None = None,
        names: Mapping[str, str] | None = None,
    ) -> "RoundRecord":
        """This record with the round after an event, what came with it, and the times that follow.

        Args:
            after: the round.
            moment: of the event, in Unix seconds.
            accepted: updates that were.
            new: the version that was made.
            program: the reference of its program by digest, found out together with its participants.
            names: of its participants by their ids, told together with them.
        """
        changes: dict[str, Any] = {"round": after}
        if new is not None:
            changes |= {"timings": {**self.timings, **new.timings}, "report": new.report}
        if self.state is RoundState.CREATED and after.state is RoundState.COLLECTING:
            changes["started_at"] = moment
        told = {"task_wasm_image": program, "names": names if isinstance(self.request, RoundStart) else None}
        if known := {field: value for field, value in told.items() if value}:
            changes["request"] = self.request.model_copy(update=known)
        came = {update.proplet_id: update for update in accepted}
        if came or len(after.accepted) < len(self.updates):
            updates = {**self.updates, **came}
            if len(after.accepted) < len(updates):  # some were left out
                updates = {name: updates[name] for name in updates if name in after.accepted}
            changes["updates"] = updates
        if after.state is not self.state:
            if self.state is RoundState.COLLECTING:
                changes["closed_at"] = moment
            changes["ended_at"] = moment if after.state.is_over else None
        return replace(self, **changes)

    def summary(self) -> dict[str, Any]:
        """The round in a list of rounds."""
        return {
            "round_id": self.round_id,
            "experiment_id": self.request.experiment_id,
            **({"kind": self.kind, **self.numbers} if self.numbers else {}),
            "state": self.state.value,
            "num_updates": len(self.round.accepted),
            "k_of_n": self.round.plan.k_of_n,
            "participants": len(self.round.plan.participants),
            "base_version": self.round.plan.base_version,
            "created_at": format_unix_time(self.created_at),
            "ended_at": format_unix_time(self.ended_at),
            **self._outcome(),
        }

    def status(self) -> dict[str, Any]:
        """Whether the round is complete, flat as the coordinator of absmach/propeller and nested as its manager."""
        plan = self.round.plan
        status = {
            "round_id": self.round_id,
            "completed": self.state is RoundState.COMPLETED,
            "num_updates": len(self.round.accepted),
            "k_of_n": plan.k_of_n,
            **({"model_version": self.round.model_version} if self.state is RoundState.COMPLETED else {}),
        }
        return {**status, **self._outcome(), "state": self.state.value, "status": status}

    def detail(self) -> dict[str, Any]:
        """Everything about the round."""
        plan = self.round.plan
        return {
            **self.summary(),
            "participants": list(plan.participants),
            "missing": self.missing,
            "received": self.updates_json(self.updates.values()),
            "failures": [
                {**self.device(name), "reason": self.round.failures[name]}
                for name in plan.participants
                if name in self.round.failures
            ],
            "model_ref": self.request.model_ref,
            "task_wasm_image": self.request.task_wasm_image,
            "hyperparams": self.request.hyperparams,
            **({"limits": self.request.limits} if self.request.limits else {}),
            **({"bounds": bounds} if (bounds := self.bounds.given()) else {}),
            "min_updates": plan.min_updates,
            "timeout_s": self.request.timeout_s,
            "deadline": format_unix_time(self.deadline),
            "closed_at": format_unix_time(self.closed_at),
            "timings": dict(self.timings),
        }

    def detail_for(self, proplet_id: str) -> dict[str, Any]:
        """What one device is told of the round: how it stands, and what became of its own update. Who else took part is not for it."""
        told = self.detail()
        own = {
            key: [one for one in told[key] if one["proplet_id"] == proplet_id]
            for key in ("received", "failures")
        }
        return {"round_id": told["round_id"], "state": told["state"], **own}

    def _outcome(self) -> dict[str, Any]:
        version = self.round.model_version
        return {
            **({} if version is None else {"model_version": version, "model_uri": model_uri(version)}),
            **({} if self.round.reason is None else {"reason": self.round.reason}),
        }


@dataclass(frozen=True)
class RoundChange:
    """What an event made of a round.

    Attributes:
        before: the round.
        after: the round after it.
        update: that was accepted, if it was one.
    """

    before: RoundRecord
    after: RoundRecord
    update: AcceptedUpdate | None = None


def format_unix_time(moment: float | None) -> str | None:
    """A time in Unix seconds as RFC 3339."""
    return None if moment is None else format_time(datetime.fromtimestamp(moment, UTC))
