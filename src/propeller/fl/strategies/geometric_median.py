"""The geometric median: the point with the least sum of distances to the updates."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from propeller.fl.strategies.contribution import Contribution, StrategyInputError
from propeller.fl.strategies.mean import MeanStrategy
from propeller.fl.strategies.strategy import Measure, Measured, Plan
from propeller.fl.tensors import Float64


class GeometricMedian(MeanStrategy):
    """The point ``v`` with the least ``Σ α_k ‖v - w_k‖``, by the smoothed Weiszfeld algorithm.

    Pillutla, Kakade and Harchaoui, *Robust Aggregation for Federated Learning*, IEEE Transactions on Signal Processing 70, 2022
    (arXiv:1912.13445), algorithm 2: from ``v = Σ α_k w_k``, again and again ``v = Σ β_k w_k / Σ β_k`` with
    ``β_k = α_k / max(ν, ‖v - w_k‖)``, and ``α_k = n_k / n``. As ``v`` is always a mean of the updates, it is found from their inner products
    alone, without another look at them.
    """

    name: ClassVar[str] = "geometric_median"
    paper: ClassVar[str] = (
        "Pillutla, Kakade and Harchaoui, Robust Aggregation for Federated Learning, IEEE Transactions on Signal Processing 70, "
        "2022, arXiv:1912.13445, algorithm 2"
    )
    measure: ClassVar[Measure] = Measure.GRAM

    nu: float = Field(1e-6, gt=0, description="smoothing ν: distances below it count as this")
    iterations: int = Field(1000, ge=1, le=100_000, description="the most steps of the algorithm")
    tolerance: float = Field(
        1e-9,
        ge=0,
        lt=1,
        description="it ends when a step is shorter than this share of the median distance to the updates",
    )

    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """How much each update counts in the median."""
        if measured.gram is None:
            raise StrategyInputError(f"{self.name} needs the inner products of the updates")
        even = super().plan(contributions, values, measured)
        shares = np.array(even.coefficients) / even.divisor
        # An update that is infinitely far has no weight from the first step on, and its products are no numbers.
        near = np.flatnonzero(np.isfinite(np.diag(measured.gram)))
        coefficients = np.zeros(len(shares))
        coefficients[near], steps = self._weiszfeld(
            shares[near] / shares[near].sum(), measured.gram[np.ix_(near, near)]
        )
        return Plan(coefficients.tolist(), float(coefficients.sum()), report={"iterations": steps})

    def _weiszfeld(self, shares: Float64, gram: Float64) -> tuple[Float64, int]:
        centre = shares
        for number in range(1, self.iterations + 1):
            distances = distances_to(centre, gram)
            weights = shares / np.maximum(self.nu, distances)
            last, centre = centre, weights / weights.sum()
            step = centre - last
            # By the median distance: the sum of all is as large as a bad device likes.
            if step @ gram @ step <= (self.tolerance * np.median(distances)) ** 2:
                return centre, number
        return centre, self.iterations


def distances_to(centre: Float64, gram: Float64) -> Float64:
    """``‖Σ c_j x_j - x_k‖`` for each ``k``, of coefficients ``c`` with the sum 1 and the inner products of all ``x``."""
    towards = gram @ centre
    squares = float(centre @ towards) - 2 * towards + np.diag(gram)
    result: Float64 = np.sqrt(np.maximum(squares, 0.0))
    return result
