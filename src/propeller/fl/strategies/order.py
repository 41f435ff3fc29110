"""Order statistics of each number by itself: what a few devices send cannot move the result far."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from propeller.fl.strategies.contribution import Contribution
from propeller.fl.strategies.strategy import Measured, Plan, Strategy
from propeller.fl.tensors import Float64

_YIN = "Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018, arXiv:1803.01498"


class FedMedian(Strategy):
    """The median of each number over the updates; of an even number of updates, the mean of the two in the middle.

    Yin, Chen, Ramchandran and Bartlett, *Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates*, ICML 2018
    (arXiv:1803.01498), definition 1 and algorithm 1, option I. Samples do not count.
    """

    name: ClassVar[str] = "fedmedian"
    paper: ClassVar[str] = f"{_YIN}, definition 1"
    rows: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False

    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """Each update counts the same."""
        del values, measured
        return Plan.evenly(len(contributions))

    def combine(self, _plan: Plan, rows: Float64) -> Float64:
        """The median of each column."""
        return middle(in_order(rows))


class TrimmedMean(Strategy):
    """The mean of each number over the updates without the largest and the smallest ``⌊β n⌋`` of them.

    Yin, Chen, Ramchandran and Bartlett, *Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates*, ICML 2018
    (arXiv:1803.01498), definition 2 and algorithm 1, option II. Samples do not count.
    """

    name: ClassVar[str] = "trimmed_mean"
    paper: ClassVar[str] = f"{_YIN}, definition 2"
    rows: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False

    beta: float = Field(
        0.2,
        ge=0,
        lt=0.5,
        description="share β of the updates that is left out at each end; more than the share of bad devices",
    )

    @property
    def min_updates(self) -> int:
        """So many that at least one is left out at each end."""
        return ceil(min(1 / self.beta, 2.0**53) - 1e-9) if self.beta else 1

    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """Each update counts the same; how many are left out."""
        del values, measured
        count = len(contributions)
        # The share is a decimal fraction: 0.3 of 10 are 3, though 0.3 is a little less in binary.
        trimmed = int(self.beta * count + 1e-9)
        return Plan.evenly(count, scalars={"trimmed": trimmed}, report={"trimmed": 2 * trimmed})

    def combine(self, plan: Plan, rows: Float64) -> Float64:
        """The mean of the middle of each column."""
        trimmed = int(plan.scalars["trimmed"])
        ordered = in_order(rows)
        return mean_of(ordered[:, trimmed : ordered.shape[1] - trimmed])


def in_order(rows: Float64) -> Float64:
    """The numbers of each column in ascending order, as rows: ``[n, m]`` to ``[m, n]``.

    numpy sorts what lies side by side several times as fast, and faster than it finds a median.
    """
    ordered: Float64 = np.ascontiguousarray(rows.T)
    ordered.sort(axis=1)
    return ordered


def middle(ordered: Float64) -> Float64:
    """The median of each row of ``in_order``."""
    half = ordered.shape[1] // 2
    if ordered.shape[1] % 2:
        return ordered[:, half]
    # Halves first: the sum of two large numbers may leave float64.
    result: Float64 = ordered[:, half - 1] * 0.5 + ordered[:, half] * 0.5
    return result


def mean_of(rows: Float64) -> Float64:
    """The mean of each row, exactly the number where all of it are the same."""
    first = rows[:, :1]
    result: Float64 = first[:, 0] + np.add.reduce(rows - first, axis=1) / rows.shape[1]
    return result
