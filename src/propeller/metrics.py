"""What metrics are: one rule and one text for programs, proplets and the coordinator."""

import math
from collections.abc import Mapping
from typing import Any

MAX_METRICS = 1000
"""The most metrics that an update may have."""

MAX_METRIC_NAME = 128
"""The longest name of one, in characters."""

DIVERGED = "training diverged, or something was divided by zero"
"""What NaN and infinities mean to the person whose program gave them."""

_KINDS: dict[type, str] = {bool: "true or false", str: "text", dict: "an object", list: "a list"}


def metrics_fault(metrics: Mapping[str, Any]) -> str | None:
    """Why these are no metrics, for a person; ``None`` if they are: finite numbers by name."""
    if len(metrics) > MAX_METRICS:
        return f"{len(metrics)} are more than the limit of {MAX_METRICS}"
    for name, value in metrics.items():
        if not name or len(name) > MAX_METRIC_NAME or not name.isprintable():
            return f"{name[:80]!r} is no name of a metric; use up to {MAX_METRIC_NAME} printable characters"
        if fault := metric_fault(name, value):
            return fault
    return None


def metric_fault(name: str, value: Any) -> str | None:
    """Why a value is no metric, for a person; ``None`` if it is one: a finite number.

    Args:
        name: the metric's name, as the program gave it.
        value: a plain Python value, as JSON has them.
    """
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return f"{name[:80]!r} is {_kind(value)}; a metric is one finite number: give each number a name, and leave the rest out"
    try:
        finite = math.isfinite(value)
    except OverflowError:
        return f"{name[:80]!r} is beyond the range of float64; a metric is one finite number"
    if not finite:
        return f"{name[:80]!r} is {value}; a metric is one finite number: {DIVERGED}"
    return None


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")
