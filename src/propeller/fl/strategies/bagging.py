"""Bagging: the model is what all devices have made, side by side."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import ClassVar

from pydantic import Field

from propeller.fl.strategies.mean import MeanStrategy
from propeller.fl.strategies.reductions import Collection, Reduction
from propeller.fl.strategies.strategy import Mode, Patterns
from propeller.fl.tensors import Array


class Bagging(MeanStrategy):
    """The trees, or whatever bytes devices send, of all updates, added behind those of the model; other tensors as in FedAvg.

    Breiman, *Bagging Predictors*, Machine Learning 24(2), 1996; over devices as in Flower's ``FedXgbBagging``, where each client boosts
    the round's ensemble by trees of its own data and the server puts all of these into it. What the bytes are is the program's matter:
    those of one device must end by themselves, such as lines of JSON.
    """

    name: ClassVar[str] = "bagging"
    paper: ClassVar[str] = (
        "Breiman, Bagging Predictors, Machine Learning 24(2), 1996; over devices as Flower's FedXgbBagging"
    )
    only_mode: ClassVar[Mode | None] = "sync"
    only_because: ClassVar[str] = "the trees of a round are made for the same ensemble"

    free: Patterns = Field(
        min_length=1,
        description="names of tensors of bytes (uint8), of any length, that are collected; they may have * and ?",
    )

    @property
    def free_patterns(self) -> Sequence[str]:
        """``free``."""
        return self.free

    def reduction(self, tensor: str, base: Array) -> Reduction | None:
        """A collection of those that are free."""
        return Collection(base) if any(fnmatchcase(tensor, pattern) for pattern in self.free) else None
