"""The identity service's tables."""

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

from propeller.store.migrations import Schema

metadata = MetaData()
SCHEMA = Schema("identity", metadata, "propeller.identity.migrations")

users = Table(
    "users",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("username", String(128), nullable=False, unique=True),
    Column("password_hash", String(256), nullable=False),
    Column("role", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    # Raised by whatever ends the user's tokens: a new password, disabling.
    Column("epoch", Integer, nullable=False, default=0),
    Column("created_at", Float, nullable=False),
)

domains = Table(
    "domains",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("route", String(128), nullable=False, unique=True),
    Column("status", String(16), nullable=False),
    Column("created_by", String(36), nullable=False),
    Column("created_at", Float, nullable=False),
)

clients = Table(
    "clients",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("domain_id", ForeignKey("domains.id"), nullable=False),
    # A deleted client stays as a row without a key, named by its id: its MQTT ids must not become someone else's.
    Column("name", String(128), nullable=False),
    Column("key_hash", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("tags", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    # When what the client may do changed last: connections that are older are cut.
    Column("access_changed_at", Float, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

channels = Table(
    "channels",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("domain_id", ForeignKey("domains.id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("domain_id", "name"),
)

connections = Table(
    "connections",
    metadata,
    Column("client_id", ForeignKey("clients.id"), primary_key=True),
    Column("channel_id", ForeignKey("channels.id"), primary_key=True),
    Column("type", String(16), primary_key=True),
)

mqtt_ids = Table(
    "mqtt_ids",
    metadata,
    Column("mqtt_id", String(256), primary_key=True),
    Column("client_id", ForeignKey("clients.id"), nullable=False),
    Column("used_at", Float, nullable=False),
    Index("mqtt_ids_client", "client_id"),
)
