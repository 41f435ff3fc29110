"""The tables as they were when migrations began; what older databases lack of them is added."""

from alembic import op
from sqlalchemy import (
    JSON,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

from propeller.store.migrations import create_missing

revision, down_revision = "0001", None

tables = MetaData()

Table(
    "users",
    tables,
    Column("id", String(36), primary_key=True),
    Column("username", String(128), nullable=False, unique=True),
    Column("password_hash", String(256), nullable=False),
    Column("role", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("epoch", Integer, nullable=False, default=0),
    Column("created_at", Float, nullable=False),
)

Table(
    "domains",
    tables,
    Column("id", String(36), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("route", String(128), nullable=False, unique=True),
    Column("status", String(16), nullable=False),
    Column("created_by", String(36), nullable=False),
    Column("created_at", Float, nullable=False),
)

Table(
    "clients",
    tables,
    Column("id", String(128), primary_key=True),
    Column("domain_id", ForeignKey("domains.id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("key_hash", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("tags", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("access_changed_at", Float, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

Table(
    "channels",
    tables,
    Column("id", String(128), primary_key=True),
    Column("domain_id", ForeignKey("domains.id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

Table(
    "connections",
    tables,
    Column("client_id", ForeignKey("clients.id"), primary_key=True),
    Column("channel_id", ForeignKey("channels.id"), primary_key=True),
    Column("type", String(16), primary_key=True),
)

Table(
    "mqtt_ids",
    tables,
    Column("mqtt_id", String(256), primary_key=True),
    Column("client_id", ForeignKey("clients.id"), nullable=False),
    Column("used_at", Float, nullable=False),
    Index("mqtt_ids_client", "client_id"),
)


def upgrade() -> None:
    """Create what is missing."""
    create_missing(op.get_bind(), tables)
