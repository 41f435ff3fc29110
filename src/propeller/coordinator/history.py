"""The history of an experiment: every round, with every participant's metrics and every failure, as JSON and as CSV."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from propeller.coordinator.rounds import RoundRecord, format_unix_time

_COLUMNS = (
    "number",
    "attempt",
    "kind",
    "round_id",
    "state",
    "base_version",
    "model_version",
    "started_at",
    "ended_at",
    "proplet_id",
    "outcome",
    "num_samples",
    "steps",
    "size",
    "received_at",
    "reason",
)
_METRIC_PREFIX = "metrics."


def history_json(experiment_id: str, records: Iterable[RoundRecord]) -> dict[str, Any]:
    """The rounds in the order in which they were started."""
    return {"id": experiment_id, "rounds": [round_json(record) for record in records]}


def round_json(record: RoundRecord) -> dict[str, Any]:
    """A round in the history of its experiment."""
    started, ended = record.started_at, record.ended_at
    return {
        **_identity(record),
        "created_at": format_unix_time(record.created_at),
        "seconds": None if started is None or ended is None else round(ended - started, 6),
        "metrics": record.metrics,
        "num_samples": sum(update.num_samples for update in record.updates.values()),
        "participants": list(record.round.plan.participants),
        "updates": [update.to_json() for update in record.in_slot_order()],
        "failures": [
            {"proplet_id": name, "reason": reason} for name, reason in record.round.failures.items()
        ],
        "reason": record.round.reason,
        "report": dict(record.report),
        "timings": dict(record.timings),
    }


def history_csv(records: Sequence[RoundRecord]) -> str:
    """A line for each participant of each round; a column for each metric; a round without participants has one line."""
    names = sorted(
        {name for record in records for update in record.updates.values() for name in update.metrics}
    )
    text = io.StringIO()
    lines = csv.DictWriter(text, [*_COLUMNS, *(_METRIC_PREFIX + name for name in names)], lineterminator="\n")
    lines.writeheader()
    for record in records:
        lines.writerows(_lines(record))
    return text.getvalue()


def _lines(record: RoundRecord) -> Iterator[dict[str, Any]]:
    common = _identity(record)
    participants = record.round.plan.participants
    if not participants:
        yield {**common, "outcome": record.state.value, "reason": record.round.reason}
    for name in participants:
        update = record.updates.get(name)
        if update is not None:
            fields = update.to_json()
            metrics = {_METRIC_PREFIX + metric: value for metric, value in fields.pop("metrics").items()}
            yield {**common, "outcome": "update", **fields, **metrics}
        else:
            failure = record.round.failures.get(name)
            outcome = "missing" if failure is None else "failure"
            yield {**common, "proplet_id": name, "outcome": outcome, "reason": failure}


def _identity(record: RoundRecord) -> dict[str, Any]:
    return {
        **record.numbers,
        "kind": record.kind,
        "round_id": record.round_id,
        "state": record.state.value,
        "base_version": record.round.plan.base_version,
        "model_version": record.round.model_version,
        "started_at": format_unix_time(record.started_at),
        "ended_at": format_unix_time(record.ended_at),
    }
