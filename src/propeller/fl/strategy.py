"""What an aggregation strategy is, and which there are.

A strategy is made anew for each round: ``accumulate`` adds one update, ``apply`` makes the model. For a mean it holds
the sums and never the updates, so memory does not grow with their number.
"""

from collections.abc import Callable
from typing import Protocol

from propeller.errors import InvalidError
from propeller.fl.fedavg import FedAvg
from propeller.fl.tensors import Tensors


class Strategy(Protocol):
    """Makes one model of a round's updates, which come one at a time."""

    def accumulate(self, update: Tensors, num_samples: int) -> None:
        """Add one update.

        Raises:
            TensorError: it does not fit the first one, or the result is not finite.
        """

    def apply(self) -> Tensors:
        """The model.

        Raises:
            TensorError: there is nothing to aggregate, or the result is not finite.
        """


class UnknownStrategyError(InvalidError):
    """No strategy has this name; the text lists those there are."""


STRATEGIES: dict[str, Callable[[], Strategy]] = {"fedavg": FedAvg}
"""Strategies by name, as the API knows them."""


def create_strategy(name: str) -> Strategy:
    """A strategy that has no updates yet.

    Raises:
        UnknownStrategyError: there is none of that name.
    """
    strategy = STRATEGIES.get(name)
    if strategy is None:
        raise UnknownStrategyError(f"strategy {name[:80]!r} is not known; there are {', '.join(STRATEGIES)}")
    return strategy()
