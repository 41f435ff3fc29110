"""The fields of an experiment's history: of each round, and of each participant's update in it."""

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
)
"""Which round it is, and what became of it."""

UPDATE_FIELDS = (
    "proplet_id",
    "num_samples",
    "steps",
    "size",
    "bytes",
    "uncompressed_bytes",
    "compression",
    "compression_error",
    "received_at",
)
"""Of an update, beside its metrics."""

METRIC_PREFIX = "metrics."
"""Before the name of a participant's metric in tables."""
