"""The tables as they were when migrations began; what older databases lack of them is added."""

from alembic import op
from sqlalchemy import JSON, BigInteger, Boolean, Column, Double, ForeignKey, MetaData, String, Table, Text

from propeller.store.migrations import create_missing

revision, down_revision = "0001", None

tables = MetaData()

Table(
    "rounds",
    tables,
    Column("round_id", String(128), primary_key=True),
    Column("experiment", JSON, nullable=False),
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
)

Table(
    "updates",
    tables,
    Column("round_id", String(128), ForeignKey("rounds.round_id"), primary_key=True),
    Column("proplet_id", String(128), primary_key=True),
    Column("digest", String(64), nullable=False, index=True),
    Column("num_samples", BigInteger, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("received_at", Double, nullable=False),
)

Table(
    "failures",
    tables,
    Column("round_id", String(128), ForeignKey("rounds.round_id"), primary_key=True),
    Column("proplet_id", String(128), primary_key=True),
    Column("reason", Text, nullable=False),
)


def upgrade() -> None:
    """Create what is missing."""
    create_missing(op.get_bind(), tables)
