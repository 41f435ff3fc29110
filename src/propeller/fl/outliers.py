"""Who is to blame where updates of finite numbers have no finite result: the devices whose numbers are far beyond the others'."""

from collections.abc import Mapping, Sequence
from statistics import median_low

from propeller.fl.bounds import norm_of
from propeller.fl.strategies import Contribution, Strategy

FAR = 1000.0
"""A number this many times the median of all is far beyond: honest updates differ by less, and sums overflow by much more."""


def find_outliers(
    strategy: Strategy,
    contributions: Sequence[Contribution],
    norms: Sequence[Mapping[str, float]],
    reason: str,
) -> dict[str, str]:
    """Why the updates of some devices are left out of an aggregation that failed, by proplet id; empty where nobody stands out.

    Args:
        strategy: that had no result.
        contributions: of which it had none.
        norms: of each, as ``bounds.difference_norms``.
        reason: why it failed.
    """
    kinds = sorted({beside for one in norms for beside in one})
    sizes = {norm_of(beside): [one.get(beside, 0.0) for one in norms] for beside in kinds}
    metric = getattr(strategy, "metric", None)  # that the strategy computes with
    if isinstance(metric, str) and contributions:
        sizes[f"the metric {metric!r}"] = [abs(one.metrics.get(metric, 0.0)) for one in contributions]
    found: dict[str, str] = {}
    for what, numbers in sizes.items():
        usual = median_low(numbers)
        for contribution, number in zip(contributions, numbers, strict=True):
            if number > FAR * usual:
                found.setdefault(
                    contribution.proplet_id,
                    f"left out of the aggregation, which failed with it: {what} is {number:.3g}, that of others {usual:.3g} "
                    f"({reason})",
                )
    return found
