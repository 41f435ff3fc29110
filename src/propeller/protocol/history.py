"""The history of an experiment as a table: a row for each participant of each round, from the rounds as they are told in JSON."""

from collections.abc import Iterator, Mapping
from typing import Any

ROUND_FIELDS = (
    "number",
    "attempt",
    "kind",
    "round_id",
    "state",
    "base_version",
    "model_version",
    "started_at",
    "ended_at",
    "seconds",
)
"""Which round it is, and what became of it."""

PARTICIPANT_FIELDS = (
    "proplet_id",
    "name",
    "outcome",
    "num_samples",
    "counted_samples",
    "steps",
    "corrected",
    "size",
    "bytes",
    "uncompressed_bytes",
    "compression",
    "compression_error",
    "received_at",
    "reason",
)
"""Of a participant: who it is, what became of its part, its update beside the metrics, or why there is none."""

METRIC_PREFIX, MEAN_PREFIX = "metrics.", "mean."
"""Before the name of a metric: of the participant, and of the round."""


def rows_of(told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a round, in the order of its participants; one that had none has one row.

    A row has all of ``ROUND_FIELDS`` and ``PARTICIPANT_FIELDS``, ``None`` where there is nothing to tell, and those metrics that there
    are. ``outcome`` is ``update``, ``failure``, ``running``, or ``missing``: neither came; without participants the round's state, and
    ``reason`` the round's.

    Args:
        told: a round in ``rounds`` of ``GET /experiments/{id}/history``.
    """
    round_fields = {name: told.get(name) for name in ROUND_FIELDS}
    means = {MEAN_PREFIX + name: value for name, value in (told.get("metrics") or {}).items()}
    updates = {one["proplet_id"]: one for one in told.get("updates") or ()}
    failures = {one["proplet_id"]: one for one in told.get("failures") or ()}
    names = told.get("names") or {}
    without = "running" if told.get("state") == "collecting" else "missing"
    participants = dict.fromkeys([*(told.get("participants") or ()), *updates, *failures])
    if not participants:
        nobody = dict.fromkeys(PARTICIPANT_FIELDS) | {
            "outcome": told.get("state"),
            "reason": told.get("reason"),
        }
        yield {**round_fields, **nobody, **means}
    for proplet_id in participants:
        outcome = "update" if proplet_id in updates else "failure" if proplet_id in failures else without
        one = updates.get(proplet_id) or failures.get(proplet_id) or {}
        yield {
            **round_fields,
            **{name: one.get(name) for name in PARTICIPANT_FIELDS},
            "proplet_id": proplet_id,
            "name": names.get(proplet_id),
            "outcome": outcome,
            **{METRIC_PREFIX + name: value for name, value in (one.get("metrics") or {}).items()},
            **means,
        }
