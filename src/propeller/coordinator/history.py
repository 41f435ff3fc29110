"""The history of an experiment: every round, with every participant's metrics and every failure, as JSON and as CSV."""

import csv
import io
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import Any

from propeller.coordinator.rounds import RoundRecord, format_unix_time
from propeller.coordinator.transfer import total_of
from propeller.protocol.history import MEAN_PREFIX, METRIC_PREFIX, PARTICIPANT_FIELDS, ROUND_FIELDS, rows_of


async def history_json(
    experiment_id: str, rounds: AsyncIterable[Sequence[RoundRecord]]
) -> AsyncIterator[str]:
    """The rounds in the order in which they were started, as a document in pieces."""
    yield f'{{"id":{json.dumps(experiment_id)},"rounds":['
    separator = ""
    async for records in rounds:
        for record in records:
            text = json.dumps(round_json(record), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            yield separator + text
            separator = ","
    yield "]}"


def round_json(record: RoundRecord) -> dict[str, Any]:
    """A round in the history of its experiment."""
    started, ended = record.started_at, record.ended_at
    return {
        **record.numbers,
        "kind": "wave" if record.round.plan.is_wave else record.kind,
        "round_id": record.round_id,
        "state": record.state.value,
        "base_version": record.round.plan.base_version,
        "model_version": record.round.model_version,
        "started_at": format_unix_time(started),
        "ended_at": format_unix_time(ended),
        "created_at": format_unix_time(record.created_at),
        "seconds": None if started is None or ended is None else round(ended - started, 6),
        "metrics": record.metrics,
        "num_samples": sum(update.num_samples for update in record.updates.values()),
        **total_of(update.transfer for update in record.updates.values()),
        "participants": list(record.round.plan.participants),
        "names": dict(record.names),
        "updates": record.updates_json(record.in_slot_order()),
        "failures": [
            {**record.device(name), "reason": reason} for name, reason in record.round.failures.items()
        ],
        "reason": record.round.reason,
        "report": dict(record.report),
        "timings": dict(record.timings),
    }


async def history_csv(read_rounds: Callable[[], AsyncIterable[Sequence[RoundRecord]]]) -> AsyncIterator[str]:
    """The rows of each round, as ``rows_of`` has them; a column for each metric of participants, and for its mean.

    The rounds are read twice: the first line names the metrics of all of them.
    """
    names: set[str] = set()
    async for records in read_rounds():
        names.update(*(update.metrics for record in records for update in record.updates.values()))
    metrics = [prefix + name for prefix in (METRIC_PREFIX, MEAN_PREFIX) for name in sorted(names)]
    columns = [*ROUND_FIELDS, *PARTICIPANT_FIELDS, *metrics]
    text = io.StringIO()
    # Metrics that are new since the first reading are left out: the experiment may go on meanwhile.
    lines = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    lines.writeheader()
    async for records in read_rounds():
        for record in records:
            lines.writerows(rows_of(round_json(record)))
        yield text.getvalue()
        text.seek(0)
        text.truncate()
    yield text.getvalue()
