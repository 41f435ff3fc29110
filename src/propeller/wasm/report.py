"""What a task's process says about its end. It ran foreign code: nothing in it is trusted."""

import json
import math
from typing import Any


def read_report(result: bytes | bytearray) -> dict[str, Any]:
    """A process's report; a broken one is none at all."""
    try:
        report = json.loads(result)
    except (ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}


def figure(report: dict[str, Any], name: str) -> float | None:
    """A finite number of 0 or more in a report; None: it has none."""
    value = report.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        return None
    return float(value) if math.isfinite(value) else None
