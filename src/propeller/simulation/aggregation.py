"""How a round's updates become a version."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from propeller.fl.bounds import difference_norms
from propeller.fl.outliers import find_outliers
from propeller.fl.strategies import (
    Contribution,
    ServerState,
    aggregate_round,
    read_strategy,
)
from propeller.fl.strategies.aggregation import Aggregated, UpdateTensors
from propeller.fl.tensors import Tensors

Received = Sequence[tuple[Contribution, UpdateTensors]]
"""Updates in the order of slots, with their tensors or what reads these."""


@dataclass(frozen=True)
class Bases:
    """The model that a version replaces, its server state, and older models that updates started from."""

    model: Tensors
    state: ServerState | None = None
    older: Sequence[Tensors] = ()


class RoundAggregator(ABC):
    """Makes versions of updates.

    Attributes:
        strategy: as an experiment's record has it.
    """

    strategy: dict[str, Any]

    @abstractmethod
    def aggregate(self, round_id: str, bases: Bases, received: Received) -> Aggregated:
        """The next model and server state.

        Raises:
            PropellerError: an update does not fit, or there is no aggregate.
        """

    def find_outliers(self, _bases: Bases, _received: Received, _reason: str) -> dict[str, str]:
        """Who is to blame, and why, for an aggregation that failed for a reason; of programs nothing is known."""
        return {}


class StrategyAggregator(RoundAggregator):
    """By a strategy of ``fl.strategies``."""

    def __init__(self, strategy: Mapping[str, Any]) -> None:
        """As an experiment has it.

        Raises:
            InvalidError: there is no such strategy, or a parameter is wrong.
        """
        self.strategy = dict(strategy)
        self._strategy = read_strategy(strategy)

    def aggregate(self, _round_id: str, bases: Bases, received: Received) -> Aggregated:
        """As ``RoundAggregator.aggregate``."""
        return aggregate_round(
            self._strategy, bases.model, bases.state, received, other_bases=list(bases.older)
        )

    def find_outliers(self, bases: Bases, received: Received, reason: str) -> dict[str, str]:
        """As ``RoundAggregator.find_outliers``."""
        contributions = [contribution for contribution, _tensors in received]
        models = [bases.model, *bases.older]
        norms = [
            difference_norms(
                tensors() if callable(tensors) else tensors, models[contribution.base], contribution.kind
            )
            for contribution, tensors in received
        ]
        return find_outliers(self._strategy, contributions, norms, reason)
