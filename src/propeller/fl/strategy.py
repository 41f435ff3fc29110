"""What an aggregation strategy is, and which there are.

A strategy is an explicit state: empty when made, ``fold`` takes one update into it, ``finish`` turns it into a model. For a mean
it holds the sums and never the updates, so memory does not grow with their number.
"""

from collections.abc import Callable
from typing import Protocol

from propeller.errors import InvalidError
from propeller.fl.fedavg import FedAvg
from propeller.fl.tensors import Tensors


class Strategy(Protocol):
    """Makes one model of a round's updates, taken one at a time."""

    def fold(self, update: Tensors, num_samples: int) -> None:
        """Take one update in.

        Raises:
            TensorError: it does not fit the first one, or the result is not finite.
        """

    def finish(self) -> Tensors:
        """The aggregate.

        Raises:
            TensorError: there is nothing to aggregate, or the result is not finite.
        """


class UnknownStrategyError(InvalidError):
    """No strategy has this name; the text lists those there are."""


STRATEGIES: dict[str, Callable[[], Strategy]] = {"fedavg": FedAvg}
"""Strategies by the name that the API takes."""


def new_strategy(name: str) -> Strategy:
    """A strategy with an empty state.

    Raises:
        UnknownStrategyError: there is none of that name.
    """
    make = STRATEGIES.get(name)
    if make is None:
        raise UnknownStrategyError(f"strategy {name[:80]!r} is not known; there are {', '.join(STRATEGIES)}")
    return make()
