"""The rounds that an experiment starts: their ids, and what each is asked to be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from propeller.fl.experiment.state import Experiment, OpenRound
from propeller.fl.schedules import resolve_hyperparams
from propeller.protocol.experiments import RoundKind, SelectionPolicy


@dataclass(frozen=True)
class RoundRequest:
    """A round to start; the same request is always the same round.

    Attributes:
        experiment_id: whose round it is.
        round_id: its id.
        kind: whether participants train or evaluate.
        number: of the round, from 1.
        attempt: from 1; each has a round id of its own.
        base_version: the model version that participants start from, or evaluate.
        policy: how participants are chosen.
        k_of_n: how many updates close the round; ``None``: all that are chosen but the surplus.
        min_updates: how many are enough at the deadline.
        timeout_s: from the choice to the deadline, in seconds.
        hyperparams: with schedules resolved for this round.
        strategy: name or program, and parameters.
    """

    experiment_id: str
    round_id: str
    kind: RoundKind
    number: int
    attempt: int
    base_version: int
    policy: SelectionPolicy
    k_of_n: int | None
    min_updates: int
    timeout_s: float
    hyperparams: Mapping[str, Any]
    strategy: Mapping[str, Any]


def round_id(experiment_id: str, opened: OpenRound) -> str:
    """The id of a round: ``ID.3``, ``ID.3.2`` for its second attempt, ``ID.e3`` for the evaluation after it."""
    letter = "e" if opened.kind == "evaluate" else ""
    attempt = f".{opened.attempt}" if opened.attempt > 1 else ""
    return f"{experiment_id}.{letter}{opened.number}{attempt}"


def make_request(current: Experiment, opened: OpenRound) -> RoundRequest:
    """The request of the open round, or of one that would be opened now."""
    spec, evaluates = current.spec, opened.kind == "evaluate"
    return RoundRequest(
        experiment_id=current.id,
        round_id=round_id(current.id, opened),
        kind=opened.kind,
        number=opened.number,
        attempt=opened.attempt,
        base_version=current.version,
        policy=_evaluation_policy(current) if evaluates else _training_policy(current),
        k_of_n=None if evaluates else spec.k_of_n,
        min_updates=1 if evaluates else spec.min_updates,
        timeout_s=spec.timeout_s,
        hyperparams=resolve_hyperparams(spec.hyperparams, opened.number, spec.rounds),
        strategy=spec.strategy.to_json(),
    )


def _training_policy(current: Experiment) -> SelectionPolicy:
    spec, selection = current.spec, current.spec.selection
    return SelectionPolicy(
        **selection.to_json(),
        min_chosen=spec.k_of_n or spec.min_updates,
        exclude=list(current.exclude),
        last_rounds=dict(current.last_rounds),
    )


def _evaluation_policy(current: Experiment) -> SelectionPolicy:
    """Of those that could take part in training, the fraction that evaluates; all of them are 1."""
    selection, plan = current.spec.selection, current.spec.evaluate
    return SelectionPolicy(
        fraction=1.0 if plan is None else plan.fraction,
        tags=selection.tags,
        names=selection.names,
        seed=selection.seed,
        exclude=list(current.exclude),
    )
