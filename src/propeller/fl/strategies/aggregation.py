"""A whole aggregation in memory: for tests, simulation and small models. The aggregator does the same part by part."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, TypeVar

from propeller.fl.strategies.contribution import Contribution, StrategyInputError, UpdateError
from propeller.fl.strategies.measurement import Measurement
from propeller.fl.strategies.part import PartAggregation
from propeller.fl.strategies.strategy import Measure, Measured, Plan, ServerState, Strategy
from propeller.fl.tensors import TensorError, Tensors

K = TypeVar("K")

UpdateTensors = Tensors | Callable[[], Tensors]
"""An update's tensors, or what reads them whenever they are needed, so that not all updates are in memory at once."""

PART_BYTES = 4 * 1024 * 1024
"""A part of a model has the tensors that fit into this, or a larger one, or a piece of that."""


class NoUpdatesError(StrategyInputError):
    """There is nothing to aggregate."""


def make_plan(
    strategy: Strategy, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
) -> Plan:
    """What the strategy decides for a round, once its contributions were checked.

    Args:
        strategy: decides.
        contributions: the round's.
        values: the server state's; empty before the first round.
        measured: what its ``measure`` asks for.

    Raises:
        NoUpdatesError: there are no contributions.
        StrategyInputError: there are too few, one lacks what the strategy needs, or what they report leads to no result.
    """
    if not contributions:
        raise NoUpdatesError("there are no updates to aggregate")
    if len(contributions) < strategy.min_updates:
        raise StrategyInputError(
            f"{strategy.name} with these parameters needs at least {strategy.min_updates} updates, there are {len(contributions)}; "
            "raise k_of_n and min_updates, or change its parameters"
        )
    for contribution in contributions:
        strategy.check(contribution)
    plan = strategy.plan(contributions, values or strategy.initial_values(), measured)
    _check_plan(strategy, plan, len(contributions))
    return plan


def _check_plan(strategy: Strategy, plan: Plan, count: int) -> None:
    """Check what a strategy decided, which may be somebody else's code, and computes with what devices report."""
    lists = {
        "coefficients": plan.coefficients,
        **{f"extra {kind!r}": plan.extra.get(kind, ()) for kind in strategy.extra_kinds},
    }
    if plan.weights is not None:
        lists["weights"] = plan.weights
    for name, numbers in lists.items():
        if len(numbers) != count or not all(map(isfinite, numbers)):
            raise StrategyInputError(
                f"{strategy.name} planned {len(numbers)} {name} for {count} updates, which must be as many finite numbers"
            )
    if not (isfinite(plan.divisor) and plan.divisor > 0):
        raise StrategyInputError(
            f"{strategy.name} planned the divisor {plan.divisor}, which must be finite and above 0"
        )
    weights = plan.coefficients if plan.weights is None else plan.weights
    if not any(plan.coefficients) or sum(weights) <= 0:
        raise StrategyInputError(f"{strategy.name} gave no update a part in the result")


def parts_of(sizes: Mapping[K, int], part_bytes: int = PART_BYTES) -> Iterator[list[K]]:
    """The names of a model's tensors, or what else stands for them, part by part, in the model's order.

    Args:
        sizes: bytes of each tensor.
        part_bytes: the most that a part of more than one tensor has.
    """
    names: list[K] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > part_bytes:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    if names:
        yield names


@dataclass(frozen=True)
class Aggregated:
    """What a strategy made of updates.

    Attributes:
        model: the new model.
        state: the server state beside it.
        report: what the strategy says about the round, numbers by name.
    """

    model: Tensors
    state: ServerState
    report: Mapping[str, float] = field(default_factory=dict)


def aggregate(
    strategy: Strategy,
    base: Tensors,
    state: ServerState | None,
    updates: Iterable[tuple[Contribution, UpdateTensors]],
    *,
    other_bases: Sequence[Tensors] = (),
    part_bytes: int = PART_BYTES,
) -> tuple[Tensors, ServerState]:
    """The model and the server state of ``aggregate_round``."""
    made = aggregate_round(strategy, base, state, updates, other_bases=other_bases, part_bytes=part_bytes)
    return made.model, made.state


def aggregate_round(
    strategy: Strategy,
    base: Tensors,
    state: ServerState | None,
    updates: Iterable[tuple[Contribution, UpdateTensors]],
    *,
    other_bases: Sequence[Tensors] = (),
    part_bytes: int = PART_BYTES,
) -> Aggregated:
    """Make a model of updates.

    Args:
        strategy: how.
        base: the model that the result replaces; its dtypes and shapes are the result's.
        state: the server state beside it; ``None`` before the first round.
        updates: the contributions with their tensors, or with what reads these.
        other_bases: older models that contributions with ``base`` 1, 2, … started from.
        part_bytes: the size of parts; the result does not depend on it.

    Raises:
        NoUpdatesError, StrategyInputError: as ``make_plan``.
        UpdateError: an update does not fit the base model, or is not finite.
        TensorError: the state does not fit, or a result is not finite in its dtype.
    """
    received = list(updates)
    contributions = [contribution for contribution, _tensors in received]
    for number, (contribution, tensors) in enumerate(received):
        try:
            strategy.check_update(base, _read(tensors))
        except TensorError as error:
            raise UpdateError(number, contribution, error) from None
    parts = list(parts_of({name: array.nbytes for name, array in base.items()}, part_bytes))
    measurement = Measurement(strategy, contributions)
    for names in parts if strategy.measure is not Measure.NONE else ():
        measurement.begin([_pick(model, names) for model in (base, *other_bases)])
        for number, (_contribution, tensors) in enumerate(received):
            measurement.add(number, _pick(_read(tensors), names))
        measurement.end()
    plan = make_plan(strategy, contributions, state.values if state else {}, measurement.result())
    model: Tensors = {}
    state_tensors: Tensors = {}
    for names in parts:
        part = PartAggregation(
            strategy,
            plan,
            contributions,
            [_pick(old, names) for old in (base, *other_bases)],
            _pick(state.tensors, strategy.state_names(names)) if state else None,
        )
        for number, (_contribution, tensors) in enumerate(received):
            if part.counts(number):
                part.add(number, _pick(_read(tensors), strategy.update_names(names)))
        part_model, part_state = part.finish()
        model |= part_model
        state_tensors |= part_state
    return Aggregated(model, ServerState(state_tensors, plan.values), dict(plan.report))


def _read(tensors: UpdateTensors) -> Tensors:
    return tensors() if callable(tensors) else tensors


def _pick(tensors: Tensors, names: Iterable[str]) -> Tensors:
    return {name: tensors[name] for name in names if name in tensors}
