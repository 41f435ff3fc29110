"""What a metric is: one rule and one text for programs, proplets and the coordinator."""

import math
from typing import Any

_KINDS: dict[type, str] = {bool: "true or false", str: "text", dict: "an object", list: "a list"}


def metric_fault(name: str, value: Any) -> str | None:
    """Why a value is no metric, for a person; ``None`` if it is one: a finite number.

    Args:
        name: the metric's name, as the program gave it.
        value: a plain Python value, as JSON has them.
    """
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return f"{name[:80]!r} is {_kind(value)}; a metric is one finite number"
    try:
        finite = math.isfinite(value)
    except OverflowError:
        return f"{name[:80]!r} is beyond the range of float64; a metric is one finite number"
    if not finite:
        return (
            f"{name[:80]!r} is {value}; a metric is one finite number: training diverged, "
            "or something was divided by zero"
        )
    return None


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")
