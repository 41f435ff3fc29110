"""What a strategy sees of one accepted update, and how it says that this is not enough."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from propeller.errors import InvalidError
from propeller.fl.tensors import TensorError


@dataclass(frozen=True)
class Contribution:
    """The header of one accepted update.

    Attributes:
        slot: the participant's position in the round, from 0.
        proplet_id: the device, for error texts.
        num_samples: how many samples it trained on, at least 1.
        steps: how many local optimizer steps it took, if it said so.
        metrics: what it reported, finite numbers by name.
        staleness: how many versions newer the round's base model is than the one it started from.
        base: which of the round's base models it started from; 0 is the one that the result replaces.
        kind: whether its tensors are weights, or differences to its base model.
    """

    slot: int
    proplet_id: str
    num_samples: int
    steps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    staleness: int = 0
    base: int = 0
    kind: Literal["weights", "delta"] = "weights"

    def __str__(self) -> str:
        """As error texts name it."""
        return f"the update of {self.proplet_id[:80]!r}" if self.proplet_id else f"update {self.slot + 1}"


class UpdateError(TensorError):
    """An update cannot be aggregated.

    Attributes:
        number: its position among the contributions, from 0.
        reason: what is wrong, without its sender.
    """

    def __init__(self, number: int, contribution: Contribution, error: TensorError) -> None:
        super().__init__(f"{contribution}: {error}")
        self.tensor = error.tensor
        self.number = number
        self.reason = str(error)


class StrategyInputError(InvalidError):
    """A strategy cannot work with these contributions or this server state; the text says what it needs."""


def require_metric(strategy: str, contribution: Contribution, metric: str, meaning: str) -> float:
    """A metric that the strategy computes with.

    Raises:
        StrategyInputError: the contribution does not have it; the text says how a program reports it.
    """
    value = contribution.metrics.get(metric)
    if value is None:
        has = ", ".join(sorted(contribution.metrics)) or "none"
        raise StrategyInputError(
            f"{contribution}: {strategy} needs the metric {metric!r} ({meaning}), its metrics are: {has}; report it from the "
            f"program, as Update(..., metrics={{{metric!r}: …}})"
        )
    return float(value)


def require_steps(strategy: str, contribution: Contribution) -> int:
    """The number of local steps.

    Raises:
        StrategyInputError: the contribution does not say it.
    """
    if contribution.steps is None:
        raise StrategyInputError(
            f"{contribution}: {strategy} needs its number of local optimizer steps; report it from the program, as "
            "Update(..., steps=…), in other languages as the field `steps`"
        )
    return contribution.steps
