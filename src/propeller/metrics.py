"""What metrics are, by one rule and one text for programs, proplets and the coordinator; and those of a round."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

MAX_METRICS = 1000
"""The most metrics that an update may have."""

MAX_METRIC_NAME = 128
"""The longest name of one, in characters."""

DIVERGED = "training diverged (a lower learning rate may help), or something was divided by zero"
"""What NaN and infinities mean to the person whose program gave them."""

_KINDS: dict[type, str] = {bool: "true or false", str: "text", dict: "an object", list: "a list"}


def split_metrics(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Those metrics that are numbers, NaN and infinities among them; and of the others what they are: text, a list, null.

    Args:
        metrics: plain Python values by name, as JSON has them.
    """
    numbers = {name: value for name, value in metrics.items() if _is_number(value)}
    return numbers, {name: _kind(value) for name, value in metrics.items() if name not in numbers}


def metrics_fault(metrics: Mapping[str, Any]) -> str | None:
    """Why these are no metrics, for a person; ``None`` if they are: finite numbers by name."""
    if fault := names_fault(metrics):
        return fault
    return next((fault for name, value in metrics.items() if (fault := metric_fault(name, value))), None)


def names_fault(metrics: Mapping[str, Any]) -> str | None:
    """Why these are no metrics, whatever their values are; ``None`` if that is up to the values."""
    if len(metrics) > MAX_METRICS:
        return f"{len(metrics)} are more than the limit of {MAX_METRICS}"
    for name in metrics:
        if not name or len(name) > MAX_METRIC_NAME or not name.isprintable():
            return f"{name[:80]!r} is no name of a metric; use up to {MAX_METRIC_NAME} printable characters"
    return None


def metric_fault(name: str, value: Any) -> str | None:
    """Why a value is no metric, for a person; ``None`` if it is one: a finite number.

    Args:
        name: the metric's name, as the program gave it.
        value: a plain Python value, as JSON has them.
    """
    if not _is_number(value):
        return f"{name[:80]!r} is {_kind(value)}; a metric is one finite number: give each number a name, and leave the rest out"
    try:
        finite = math.isfinite(value)
    except OverflowError:
        return f"{name[:80]!r} is beyond the range of float64; a metric is one finite number"
    if not finite:
        return f"{name[:80]!r} is {value}; a metric is one finite number: {DIVERGED}"
    return None


class HasMetrics(Protocol):
    """What counts of an update or an evaluation, beside its tensors."""

    @property
    def num_samples(self) -> int:
        """On how many samples; at least 1."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Finite numbers by name."""


def weighted_metrics(contributions: Iterable[HasMetrics]) -> dict[str, float]:
    """The metrics of a round: each metric's mean, weighted by samples, over the contributions that have it.

    The sum is rounded once (``math.fsum``), so that the order of the contributions does not matter, and a mean is
    never outside of its values: equal values give that value.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for one in contributions:
        for name, value in one.metrics.items():
            found.setdefault(name, []).append((one.num_samples, value))
    return {name: _weighted_mean(found[name]) for name in sorted(found)}


def _weighted_mean(weighted: list[tuple[int, float]]) -> float:
    total = sum(weight for weight, _value in weighted)
    values = [value for _weight, value in weighted]
    # Weights are divided first: a large metric times many samples may be infinite.
    mean = math.fsum(weight / total * value for weight, value in weighted)
    return float(min(max(mean, min(values)), max(values)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")
