"""The manager's tables. Times are microseconds since 1970, as SQLite keeps no time zone; ``NULL`` is never."""

from datetime import UTC, datetime, timedelta

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

from propeller.store.migrations import Schema

metadata = MetaData()
SCHEMA = Schema("manager", metadata, "propeller.manager.migrations")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# An auto-incremented key that is 64 bits wide on PostgreSQL and SQLite's own row id.
_Sequence = BigInteger().with_variant(Integer, "sqlite")
_Json = JSON(none_as_null=True)


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_micros(micros: int) -> datetime:
    """The moment, in UTC."""
    return _EPOCH + timedelta(microseconds=micros)


proplets = Table(
    "proplets",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("id", String(128), nullable=False, unique=True),
    Column("name", String(128), nullable=False),
    Column("namespace", Text, nullable=False),
    Column("metadata", _Json),
    Column("created_at", BigInteger, nullable=False),
    Column("heartbeats", _Json, nullable=False),  # the newest last, microseconds
    Column("offline", Boolean, nullable=False),
)

named_clients = (
    Table(  # the proplets of the channel as identity named them last, whether they have registered or not
        "named_clients",
        metadata,
        Column("id", String(128), primary_key=True),
        Column("name", String(128), nullable=False),
        Column("tags", _Json, nullable=False),
    )
)

tasks = Table(
    "tasks",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("id", String(128), nullable=False, unique=True),
    Column("spec", _Json, nullable=False),  # what the client may set, see task.TaskSpec
    Column("file_preview", Text),  # of the uploaded program, for answers
    Column("state", Integer, nullable=False),
    Column("proplet_id", String(128)),  # where it runs or ran
    Column("round_id", String(128), index=True),
    Column("results", _Json),
    Column("error", Text),
    Column("usage", _Json),
    Column("ended_by", String(16)),
    Column("stopping_on", String(128)),  # the proplet that has yet to report the run that was stopped
    Column("start_time", BigInteger),
    Column("finish_time", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger),
    Column("parent_id", String(128), index=True),  # of a part, the task for every proplet that it is of
    Index("tasks_by_state", "state", "proplet_id"),
)

task_files = Table(
    "task_files",
    metadata,
    Column("task_id", String(128), ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

proplet_metrics = Table(
    "proplet_metrics",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("owner", String(128), nullable=False),
    Column("sample", _Json, nullable=False),
    Index("proplet_metrics_by_owner", "owner", "seq"),
)

task_metrics = Table(
    "task_metrics",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("owner", String(128), nullable=False),
    Column("sample", _Json, nullable=False),
    Index("task_metrics_by_owner", "owner", "seq"),
)

rounds = Table(
    "rounds",
    metadata,
    Column("round_id", String(128), primary_key=True),
    Column("experiment", _Json, nullable=False),
    Column("skipped", _Json, nullable=False),  # [{"proplet_id", "reason"}]
    Column("deadline", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

waiting_rounds = Table(  # of experiments, whose participants are not chosen yet
    "waiting_rounds",
    metadata,
    Column("round_id", String(128), primary_key=True),
    Column("start", _Json, nullable=False),
    Column("since", BigInteger, nullable=False),
)
