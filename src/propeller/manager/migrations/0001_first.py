"""The tables as they were when migrations began; what older databases lack of them is added."""

from alembic import op
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

from propeller.store.migrations import create_missing

revision, down_revision = "0001", None

tables = MetaData()

# An auto-incremented key that is 64 bits wide on PostgreSQL and SQLite's own row id.
_Sequence = BigInteger().with_variant(Integer, "sqlite")
_Json = JSON(none_as_null=True)

Table(
    "proplets",
    tables,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("id", String(128), nullable=False, unique=True),
    Column("name", String(128), nullable=False),
    Column("namespace", Text, nullable=False),
    Column("metadata", _Json),
    Column("created_at", BigInteger, nullable=False),
    Column("heartbeats", _Json, nullable=False),
    Column("offline", Boolean, nullable=False),
)

Table(
    "tasks",
    tables,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("id", String(128), nullable=False, unique=True),
    Column("spec", _Json, nullable=False),
    Column("file_preview", Text),
    Column("state", Integer, nullable=False),
    Column("proplet_id", String(128)),
    Column("round_id", String(128), index=True),
    Column("results", _Json),
    Column("error", Text),
    Column("usage", _Json),
    Column("ended_by", String(16)),
    Column("stopping_on", String(128)),
    Column("start_time", BigInteger),
    Column("finish_time", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger),
    Index("tasks_by_state", "state", "proplet_id"),
)

Table(
    "task_files",
    tables,
    Column("task_id", String(128), ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

Table(
    "proplet_metrics",
    tables,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("owner", String(128), nullable=False),
    Column("sample", _Json, nullable=False),
    Index("proplet_metrics_by_owner", "owner", "seq"),
)

Table(
    "task_metrics",
    tables,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("owner", String(128), nullable=False),
    Column("sample", _Json, nullable=False),
    Index("task_metrics_by_owner", "owner", "seq"),
)

Table(
    "rounds",
    tables,
    Column("round_id", String(128), primary_key=True),
    Column("experiment", _Json, nullable=False),
    Column("skipped", _Json, nullable=False),
    Column("deadline", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)


def upgrade() -> None:
    """Create what is missing."""
    create_missing(op.get_bind(), tables)
