"""The coordinator's tables. Times are Unix seconds; ``NULL`` is not yet, or not known."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

from propeller.store.migrations import Schema

tables = MetaData()

SCHEMA = Schema("coordinator", tables, "propeller.coordinator.migrations")

experiments = Table(
    "experiments",
    tables,
    Column("id", String(128), primary_key=True),
    Column("spec", JSON, nullable=False),  # as it was asked for
    Column("state", String(16), nullable=False, index=True),
    Column("settled", Boolean, nullable=False, index=True),  # over, and nothing is left to be done about it
    Column("program", String(512), nullable=False),  # by digest, once it is known
    Column("strategy", JSON, nullable=False),  # with its program by digest, if it is one
    Column("progress", JSON, nullable=False),  # what fl.experiment needs to go on
    Column("created_at", Double, nullable=False, index=True),
    Column("started_at", Double),
    Column("ended_at", Double),
)

experiment_events = Table(
    "experiment_events",
    tables,
    Column("experiment_id", String(128), ForeignKey(experiments.c.id), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(32), nullable=False),
    Column("at", Double, nullable=False),
    Column("data", JSON, nullable=False),
)

rounds = Table(
    "rounds",
    tables,
    Column("round_id", String(128), primary_key=True),
    Column("experiment", JSON, nullable=False),  # what was asked for: an Experiment, or a RoundStart
    Column("shapes", JSON, nullable=False),
    Column("base_version", BigInteger, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("model_version", BigInteger),
    Column("reason", Text),
    Column("created_at", Double, nullable=False, index=True),
    Column("deadline", Double, nullable=False),
    Column("closed_at", Double),
    Column("ended_at", Double, index=True),
    Column("timings", JSON, nullable=False),
    Column("announced", Boolean, nullable=False),
    # Of the rounds of experiments alone:
    Column("experiment_id", String(128), ForeignKey(experiments.c.id), index=True),
    Column("number", Integer),
    Column("attempt", Integer),
    Column("kind", String(16)),
    Column("participants", JSON),  # once they are chosen
    Column("k_of_n", Integer),
    Column("started_at", Double),  # when they were
    Column("strategy", JSON),
    Column("report", JSON),  # what the strategy says about it
)

updates = Table(
    "updates",
    tables,
    Column("round_id", String(128), ForeignKey(rounds.c.round_id), primary_key=True),
    Column("proplet_id", String(128), primary_key=True),
    Column("digest", String(64), nullable=False, index=True),
    Column("num_samples", BigInteger, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("steps", BigInteger),
    Column("kind", String(16)),  # weights, or their difference to the base model
    Column("received_bytes", BigInteger),  # as it came
    Column("uncompressed_bytes", BigInteger),
    Column("compression", String(64)),
    Column("compression_error", Double),
    Column("corrected", Boolean),  # whether its program says that it did its part of the strategy
    Column("metrics_left_out", JSON(none_as_null=True)),  # what those were that are no numbers
)

# No foreign key: the round that merges an update of a wave has it too, so that a digest may be in ``updates`` twice.
update_documents = Table(
    "update_documents",
    tables,
    Column("digest", String(64), primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

failures = Table(
    "failures",
    tables,
    Column("round_id", String(128), ForeignKey(rounds.c.round_id), primary_key=True),
    Column("proplet_id", String(128), primary_key=True),
    Column("reason", Text, nullable=False),
)
