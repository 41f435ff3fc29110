"""What strategies that begin with a mean of the updates have in common."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from propeller.fl.strategies.contribution import Contribution
from propeller.fl.strategies.strategy import Measured, Plan, Strategy


class MeanStrategy(Strategy):
    """The mean of the updates, weighted by their samples or not."""

    weighting: Literal["samples", "uniform"] = Field(
        "samples", description="whether an update counts by its samples, or each the same"
    )

    def plan(
        self, contributions: Sequence[Contribution], values: Mapping[str, Any], measured: Measured
    ) -> Plan:
        """Each update counts by its samples, or the same."""
        del measured
        if self.weighting == "uniform":
            return Plan.evenly(len(contributions), values=values)
        return Plan.by_samples(contributions, values=values)
