"""What is told of programs that leave out their part of a strategy: nothing fails then, and it is plain averaging."""

from collections.abc import Mapping
from typing import Any

from propeller.coordinator.rounds import RoundRecord
from propeller.protocol.rounds import RoundStart

_WEIGHTS = ("mu", "lambda")
"""What devices are told that a program has to add to its gradients, if it is above 0."""

_REMEDY = "in Python have it call ctx.correct; in other languages see FL_STRATEGY in docs/programs.md"


def explain_left_out(record: RoundRecord) -> str | None:
    """Which devices of a round trained without what the strategy adds to gradients, or do not say; ``None``: there are none."""
    request = record.request
    told = request.strategy if isinstance(request, RoundStart) else None
    if record.kind != "train" or not record.updates or told is None or not _asks(told):
        return None
    name = told.get("name", "the strategy")
    said = [update.corrected for update in record.updates.values()]
    left_out, silent = said.count(False), said.count(None)
    if left_out:
        return (
            f"strategy: the program of {left_out} of {len(said)} devices left out what {name} adds to gradients, and trained as "
            f"for fedavg: {_REMEDY}"
        )
    if silent:
        return (
            f"strategy: the program of {silent} of {len(said)} devices does not say whether it adds what {name} needs to its "
            f"gradients; if it does not, this is fedavg: {_REMEDY}"
        )
    return None


def _asks(told: Mapping[str, Any]) -> bool:
    return bool(told.get("control")) or any(told.get(name, 0) > 0 for name in _WEIGHTS)
