"""Sums instead of means: statistics of all devices' data, without training."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from propeller.fl.strategies.contribution import Contribution
from propeller.fl.strategies.reductions import Extreme, FloatSum, IntegerSum, OfEnough, Reduction
from propeller.fl.strategies.strategy import Measured, Mode, Patterns, Plan, Strategy
from propeller.fl.tensors import Array, is_floating
from propeller.fl.tensors.dtypes import bounds


class Sum(Strategy):
    """The sum of the updates, number by number; of tensors that are named, the smallest or the largest.

    Integers are exact; floating-point numbers are summed as in twice float64's precision (Ogita, Rump and Oishi, *Accurate Sum and
    Dot Product*, SIAM Journal on Scientific Computing 26(6), 2005, algorithm 4.4), then rounded to the model's dtype. Truth values
    are true where any update says so. The base model's numbers are no part of it, and samples do not count.
    """

    name: ClassVar[str] = "sum"
    paper: ClassVar[str] = (
        "Ogita, Rump and Oishi, Accurate Sum and Dot Product, SIAM Journal on Scientific Computing 26(6), 2005, algorithm 4.4"
    )
    needs_base: ClassVar[bool] = False
    only_mode: ClassVar[Mode | None] = "sync"
    only_because: ClassVar[str] = (
        "a device counts once in a round, and could count twice among updates that come at any time"
    )

    min_devices: int = Field(
        3, ge=1, description="a round with updates of fewer devices fails, and nothing is published"
    )
    minimum: Patterns = Field(
        (), description="names of tensors of which the smallest number counts, which may have * and ?"
    )
    maximum: Patterns = Field(
        (), description="names of tensors of which the largest number counts, which may have * and ?"
    )
    cells: Patterns = Field(
        (),
        description="names of tensors, which may have * and ?, each of whose numbers is 0 unless `min_devices` devices have another one; "
        "with `minimum`, the dtype's largest number instead of 0, with `maximum` the smallest",
    )

    @property
    def min_updates(self) -> int:
        """``min_devices``: each device sends one update in a round."""
        return self.min_devices

    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """Each update counts once."""
        del measured
        return Plan([1.0] * len(contributions), values=values)

    def reduction(self, tensor: str, base: Array) -> Reduction | None:
        """A sum or an extreme of each tensor."""
        ends = bounds(base.dtype)
        made: Reduction
        if _matches(tensor, self.minimum):
            made, nothing = Extreme(base, np.minimum), ends[1]
        elif _matches(tensor, self.maximum):
            made, nothing = Extreme(base, np.maximum), ends[0]
        elif base.dtype.kind == "b":
            made, nothing = Extreme(base, np.maximum), 0
        else:
            made, nothing = FloatSum(base) if is_floating(base.dtype) else IntegerSum(base), 0
        return OfEnough(made, base, self.min_devices, nothing) if _matches(tensor, self.cells) else made


def _matches(tensor: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(tensor, pattern) for pattern in patterns)
