"""A round as the coordinator knows it: the state machine's part, what was asked for, and when things happened."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from propeller.coordinator.updates import UpdateDocument
from propeller.errors import ConflictError
from propeller.fl.round import Round, RoundPlan, RoundState
from propeller.fl.tensors import Specs
from propeller.protocol.rounds import Experiment, UpdateHeader, model_uri, model_version
from propeller.protocol.wire import format_time


@dataclass(frozen=True)
class AcceptedUpdate:
    """An update that counts: the header of what lies in the blobs under ``digest``; ``received_at`` in Unix seconds."""

    proplet_id: str
    digest: str
    num_samples: int
    metrics: Mapping[str, float]
    size: int
    received_at: float

    @classmethod
    def of(cls, header: UpdateHeader, document: UpdateDocument, received_at: float) -> "AcceptedUpdate":
        """The update of a document that was received at ``received_at``."""
        size = len(document.content)
        return cls(header.proplet_id, document.digest, header.num_samples, header.metrics, size, received_at)


@dataclass(frozen=True)
class RoundRecord:
    """One round. All times are Unix seconds.

    Attributes:
        round: the state machine's part.
        experiment: what was asked for.
        specs: of the base model, whose names and shapes every update must have.
        created_at: when it was configured.
        updates: those that count, by proplet id.
        closed_at: when it took its last update.
        ended_at: when its model was stored, or when it failed.
        timings: of its stages, in milliseconds.
        announced: whether its completion was announced, or nobody is to be told.
    """

    round: Round
    experiment: Experiment
    specs: Specs
    created_at: float
    updates: Mapping[str, AcceptedUpdate] = field(default_factory=dict)
    closed_at: float | None = None
    ended_at: float | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    announced: bool = False

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
        return cls(Round(plan), experiment, specs, created_at)

    @property
    def round_id(self) -> str:
        """The round's id."""
        return self.round.plan.round_id

    @property
    def state(self) -> RoundState:
        """Where the round is."""
        return self.round.state

    @property
    def deadline(self) -> float:
        """When it closes with what has come."""
        return self.created_at + self.experiment.timeout_s

    def require_same(self, experiment: Experiment) -> "RoundRecord":
        """This record, if ``experiment`` is what was asked for.

        Raises:
            ConflictError: the round was asked for differently.
        """
        if self.experiment != experiment:
            raise ConflictError(
                f"round_id: round {self.round_id} exists and was configured differently; choose another id"
            )
        return self

    def advance(
        self, after: Round, moment: float, update: AcceptedUpdate | None, timings: Mapping[str, float]
    ) -> "RoundRecord":
        """This record with the round after an event, the update that was accepted by it, and the times that follow."""
        record = replace(self, round=after, timings={**self.timings, **timings})
        if update is not None:
            record = replace(record, updates={**self.updates, update.proplet_id: update})
        if after.state is not self.state:
            if self.state is RoundState.COLLECTING:
                record = replace(record, closed_at=moment)
            record = replace(record, ended_at=moment if after.state.is_over else None)
        return record

    def summary(self) -> dict[str, Any]:
        """The round in a list of rounds."""
        return {
            "round_id": self.round_id,
            "experiment_id": self.experiment.experiment_id,
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
            "missing": [name for name in plan.participants if name not in self.updates],
            "received": [
                {
                    "proplet_id": update.proplet_id,
                    "num_samples": update.num_samples,
                    "metrics": dict(update.metrics),
                    "size": update.size,
                    "received_at": format_unix_time(update.received_at),
                }
                for update in self.updates.values()
            ],
            "failures": [
                {"proplet_id": name, "reason": self.round.failures[name]}
                for name in plan.participants
                if name in self.round.failures
            ],
            "model_ref": self.experiment.model_ref,
            "task_wasm_image": self.experiment.task_wasm_image,
            "hyperparams": self.experiment.hyperparams,
            **({"limits": self.experiment.limits} if self.experiment.limits else {}),
            "min_updates": plan.min_updates,
            "timeout_s": self.experiment.timeout_s,
            "deadline": format_unix_time(self.deadline),
            "closed_at": format_unix_time(self.closed_at),
            "timings": dict(self.timings),
        }

    def _outcome(self) -> dict[str, Any]:
        version = self.round.model_version
        return {
            **({} if version is None else {"model_version": version, "model_uri": model_uri(version)}),
            **({} if self.round.reason is None else {"reason": self.round.reason}),
        }


def format_unix_time(moment: float | None) -> str | None:
    """A time in Unix seconds as RFC 3339."""
    return None if moment is None else format_time(datetime.fromtimestamp(moment, UTC))
