"""Rounds of strategies in memory: contributions by their numbers, one short tensor each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.fl.strategies import (
    Contribution,
    ServerState,
    Strategy,
    aggregate,
    create_strategy,
    strategy_names,
)
from propeller.fl.tensors import Tensors

REQUIRED: dict[str, dict[str, Any]] = {
    "qfedavg": {"lr": 0.1},
    "fedbn": {"personal": ["bn.*"]},
    "fedper": {"personal": ["bn.*"]},
    "bagging": {"free": ["trees"]},
}
"""Parameters of the strategies that have no default for one."""

SUM = {"maximum": ["big", "n"]}
"""Of integers whose sum would be beyond int64."""


def default_strategy(name: str) -> Strategy:
    return create_strategy(name, SUM if name == "sum" else REQUIRED.get(name))


def all_strategies() -> list[str]:
    return strategy_names()


def learning_strategies() -> list[str]:
    """Those that make a model of trained ones: all but sums and collections."""
    return [name for name in all_strategies() if name not in {"sum", "bagging"}]


def one_round(
    strategy: Strategy,
    base: npt.ArrayLike,
    updates: Sequence[npt.ArrayLike],
    *,
    samples: Sequence[int] | None = None,
    state: ServerState | None = None,
    **each: Sequence[Any],
) -> tuple[Any, ServerState]:
    """Aggregate updates of one float64 tensor ``w``.

    Args:
        strategy: the strategy.
        base: the base model's numbers.
        updates: each participant's.
        samples: of each; left out: 1.
        state: the server state.
        each: other fields of the contributions, a value for each; ``control``: numbers of the tensor ``@control/w``.
    """
    control = each.pop("control", None)
    received: list[tuple[Contribution, Tensors]] = []
    for slot, update in enumerate(updates):
        rest: Mapping[str, Any] = {field: values[slot] for field, values in each.items()}
        contribution = Contribution(slot, f"p-{slot}", samples[slot] if samples else 1, **rest)
        tensors = {"w": np.array(update, np.float64)}
        if control is not None:
            tensors["@control/w"] = np.array(control[slot], np.float64)
        received.append((contribution, tensors))
    model, after = aggregate(strategy, {"w": np.array(base, np.float64)}, state, received)
    return model["w"].tolist(), after


def contributions(strategy: Strategy, count: int, samples: Sequence[int] | None = None) -> list[Contribution]:
    """Contributions that have what any strategy may need."""
    del strategy
    return [
        Contribution(
            slot,
            f"p-{slot}",
            samples[slot] if samples else 1,
            steps=5,
            metrics={"loss": 0.5, "loss_before": 1.0},
        )
        for slot in range(count)
    ]


def complete(strategy: Strategy, base: Tensors, update: Tensors) -> Tensors:
    """An update as the strategy expects it: without personal tensors, with extra ones of zeros."""
    shapes = strategy.update_shapes(base)
    return {name: update.get(name, np.zeros(shape, np.float32)) for name, shape in shapes.items()}
