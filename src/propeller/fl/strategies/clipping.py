"""Norm clipping: no update moves the model further than a bound."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from propeller.fl.strategies.contribution import Contribution, StrategyInputError
from propeller.fl.strategies.mean import MeanStrategy
from propeller.fl.strategies.strategy import Measure, Measured, Plan


class NormClipping(MeanStrategy):
    """FedAvg of updates whose difference ``Δ_k`` to the model is cut to ``Δ_k · min(1, M / ‖Δ_k‖)``.

    Sun, Kairouz, Suresh and McMahan, *Can You Really Backdoor Federated Learning?*, 2019 (arXiv:1911.07963), section 4, norm thresholding.
    Without ``bound``, ``M`` is the median of the round's norms: then half of the updates would have to be bad to raise it at will.
    Integers and truth values have no part in the norm and are not cut.
    """

    name: ClassVar[str] = "norm_clipping"
    paper: ClassVar[str] = (
        "Sun, Kairouz, Suresh and McMahan, Can You Really Backdoor Federated Learning?, 2019, arXiv:1911.07963, section 4"
    )
    measure: ClassVar[Measure] = Measure.NORMS

    bound: float | None = Field(
        None,
        gt=0,
        description="the largest norm M of a difference to the model; left out: the median of the round's",
    )

    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """Each update counts by its samples, and less if it is too long."""
        if measured.norms is None:
            raise StrategyInputError(f"{self.name} needs the norms of the updates")
        even = super().plan(contributions, values, measured)
        bound = float(np.median(measured.norms)) if self.bound is None else self.bound
        if not np.isfinite(bound):
            raise StrategyInputError(
                f"{self.name}: half of the updates are too large for the median of their norms; set strategy.bound"
            )
        coefficients = [
            share if norm <= bound else share * (bound / float(norm))
            for share, norm in zip(even.coefficients, measured.norms, strict=True)
        ]
        clipped = int((measured.norms > bound).sum())
        return Plan(
            coefficients,
            even.divisor,
            weights=even.coefficients,
            report={"bound": bound, "clipped": clipped},
        )
