"""The rounds that an experiment starts: their ids, and what each is asked to be."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from propeller.fl.experiment.needs import fewest_updates, needs_device_state
from propeller.fl.experiment.state import BufferedUpdate, Experiment, OpenRound, Wave
from propeller.fl.schedules import resolve_hyperparams
from propeller.protocol.selection import RoundKind, SelectionPolicy


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
        is_wave: whether the round makes no version, and ``number`` counts waves.
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
    is_wave: bool = False


@dataclass(frozen=True)
class MergedUpdate:
    """An update that is merged: of which wave's round, and from which base model."""

    round_id: str
    proplet_id: str
    base_version: int
    staleness: int
    """How many versions were made since its base model."""


@dataclass(frozen=True)
class MergeRequest:
    """A round whose updates are there already; the same request is always the same round.

    Attributes:
        experiment_id: whose round it is.
        round_id: its id.
        number: of the round, from 1.
        attempt: from 1.
        base_version: the model version to which the updates are applied.
        updates: each of another participant, in the order in which they are aggregated.
        strategy: name or program, and parameters.
    """

    experiment_id: str
    round_id: str
    number: int
    attempt: int
    base_version: int
    updates: tuple[MergedUpdate, ...]
    strategy: Mapping[str, Any]


def round_id(experiment_id: str, opened: OpenRound) -> str:
    """The id of a round: ``ID.3``, ``ID.3.2`` for its second attempt, ``ID.e3`` for the evaluation after it."""
    letter = "e" if opened.kind == "evaluate" else ""
    attempt = f".{opened.attempt}" if opened.attempt > 1 else ""
    return f"{experiment_id}.{letter}{opened.number}{attempt}"


def wave_id(experiment_id: str, number: int) -> str:
    """The id of the round of a wave: ``ID.w3``."""
    return f"{experiment_id}.w{number}"


def make_wave_request(current: Experiment, wave: Wave) -> RoundRequest:
    """The request of a wave; its schedules are those of the round that its updates were expected in."""
    spec, selection = current.spec, current.spec.selection
    return RoundRequest(
        experiment_id=current.id,
        round_id=wave_id(current.id, wave.number),
        kind="train",
        number=wave.number,
        attempt=1,
        base_version=wave.base_version,
        policy=SelectionPolicy(
            up_to=wave.up_to,
            tags=selection.tags,
            names=selection.names,
            min_available=selection.min_available,
            min_chosen=wave.min_chosen,
            seed=selection.seed,
            busy=list(wave.busy),
            exclude=list(wave.exclude),
            device_state=needs_device_state(spec),
        ),
        k_of_n=None,
        min_updates=1,
        timeout_s=spec.timeout_s,
        hyperparams=resolve_hyperparams(spec.hyperparams, wave.base_done + 1, spec.rounds),
        strategy=spec.strategy.to_json(),
        is_wave=True,
    )


def make_merge_request(current: Experiment, opened: OpenRound) -> MergeRequest:
    """The request of the open round of an asynchronous experiment.

    Updates are in the order of waves and slots, so that the result does not depend on who was faster.
    """

    def merged(one: BufferedUpdate) -> MergedUpdate:
        wave = wave_id(current.id, one.wave)
        return MergedUpdate(wave, one.proplet_id, one.base_version, current.done - one.base_done)

    return MergeRequest(
        experiment_id=current.id,
        round_id=round_id(current.id, opened),
        number=opened.number,
        attempt=opened.attempt,
        base_version=current.version,
        updates=tuple(merged(one) for one in sorted(current.merging, key=lambda one: (one.wave, one.slot))),
        strategy=current.spec.strategy.to_json(),
    )


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
        min_updates=1 if evaluates else fewest_updates(spec),
        timeout_s=spec.timeout_s,
        hyperparams=resolve_hyperparams(spec.hyperparams, opened.number, spec.rounds),
        strategy=spec.strategy.to_json(),
    )


def _training_policy(current: Experiment) -> SelectionPolicy:
    spec, selection = current.spec, current.spec.selection
    return SelectionPolicy(
        **selection.to_json(),
        min_chosen=spec.k_of_n or fewest_updates(spec),
        exclude=list(current.exclude),
        last_rounds=dict(current.last_rounds),
        device_state=needs_device_state(spec),
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
        device_state=needs_device_state(current.spec),
    )
