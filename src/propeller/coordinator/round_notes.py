"""What hinders no round and should be known: programs that leave out their part of a strategy, metrics that are no numbers."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from propeller.coordinator.rounds import RoundRecord
from propeller.protocol.rounds import RoundStart

_WEIGHTS = ("mu", "lambda")
"""What devices are told that a program has to add to its gradients, if it is above 0."""

_REMEDY = "in Python have it call ctx.correct; in other languages see FL_STRATEGY in docs/programs.md"


_MOST_NAMED = 3
"""The most devices and metrics that one note names."""


def notes_of(record: RoundRecord) -> Iterator[str]:
    """What is told of a round that is over, for a person."""
    left_out = _explain_left_out_metrics(record)
    if left_out is not None:
        yield left_out
    # Once: what a program does it does in each round.
    uncorrected = _explain_left_out_terms(record) if record.numbers.get("number") == 1 else None
    if uncorrected is not None:
        yield uncorrected


def _explain_left_out_metrics(record: RoundRecord) -> str | None:
    """Which metrics of which devices are no numbers; ``None``: all of them are numbers."""
    devices: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for update in record.updates.values():
        for metric in (update.metrics_left_out or {}).items():
            devices[metric].append(record.names.get(update.proplet_id, update.proplet_id))
    if not devices:
        return None
    told = [
        f"{metric!r} is {kind} ({_some(sorted(names), 'devices')})"
        for (metric, kind), names in sorted(devices.items())
    ]
    return f"metrics: {_some(told, 'metrics')}: left out; a metric is one finite number"


def _some(texts: list[str], nouns: str) -> str:
    more = len(texts) - _MOST_NAMED
    return ", ".join(texts[:_MOST_NAMED]) + (f" and {more} more {nouns}" if more > 0 else "")


def _explain_left_out_terms(record: RoundRecord) -> str | None:
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
