"""The identity service's tables, and what reading any of them shares: new ids, pages, how times are written."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    UniqueConstraint,
    false,
    func,
    select,
)

from propeller.errors import NotFoundError
from propeller.protocol.wire import format_time
from propeller.store.database import DatabaseConnection
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

# One for each time that somebody logged in, until it ends: its refresh token is the one with this id, and good once.
logins = Table(
    "logins",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("token_id", String(36), nullable=False),
    Column("expires_at", Float, nullable=False),
    Index("logins_user", "user_id"),
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
    # A deleted client stays as a row without a key, under a random name: its MQTT ids must not become someone else's.
    Column("name", String(128), nullable=False),
    Column("key_hash", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("tags", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    # When what the client may do changed last: connections that are older are cut.
    Column("access_changed_at", Float, nullable=False),
    # A proplet that speaks on the topics that absmach/propeller's share.
    Column("compat", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("domain_id", "name"),
)

# Keys that admins may read again, encrypted, where IDENTITY_KEYS_READABLE asks for it.
kept_keys = Table(
    "kept_keys",
    metadata,
    Column("client_id", ForeignKey("clients.id"), primary_key=True),
    Column("sealed", String(1024), nullable=False),
)

# Who may do what in a domain, beside its creator.
members = Table(
    "members",
    metadata,
    Column("domain_id", ForeignKey("domains.id"), primary_key=True),
    Column("user_id", ForeignKey("users.id"), primary_key=True),
    Column("role", String(16), nullable=False),
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

# By which a device joins, once: what is kept of its secret, and until when it is good and when it was used, in seconds since 1970.
join_tokens = Table(
    "join_tokens",
    metadata,
    Column("client_id", ForeignKey("clients.id"), primary_key=True),
    Column("channel_id", ForeignKey("channels.id"), nullable=False),
    Column("secret_hash", String(64), nullable=False, unique=True),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
)

mqtt_ids = Table(
    "mqtt_ids",
    metadata,
    Column("mqtt_id", String(256), primary_key=True),
    Column("client_id", ForeignKey("clients.id"), nullable=False),
    Column("used_at", Float, nullable=False),
    Index("mqtt_ids_client", "client_id"),
)

# Clients that have a session on the broker and are not connected, and since when, in seconds since 1970.
mqtt_absences = Table(
    "mqtt_absences",
    metadata,
    Column("mqtt_id", String(256), primary_key=True),
    Column("since", Float, nullable=False),
)


ENABLED, DISABLED, DELETED = "enabled", "disabled", "deleted"

MAX_ROWS_PER_PAGE = 1000


@dataclass(frozen=True)
class Page:
    """Which part of a list: ``limit`` records from ``offset`` on, of this name and status only if given."""

    offset: int = 0
    limit: int = 100
    name: str | None = None
    status: str | None = None


def new_id() -> str:
    """A random id (UUID 4)."""
    return str(uuid.uuid4())


def format_seconds(seconds: float) -> str:
    """A time in seconds since 1970 as messages have it."""
    return format_time(datetime.fromtimestamp(seconds, UTC))


async def fetch_row(
    connection: DatabaseConnection, table: Table, what: str, *where: ColumnElement[bool]
) -> Row[Any]:
    """The one row of a table; a deleted one is none.

    Raises:
        NotFoundError: there is none.
    """
    row = (await connection.execute(select(table).where(table.c.status != DELETED, *where))).one_or_none()
    if row is None:
        raise NotFoundError(f"{what} not found")
    return row


async def fetch_page(
    connection: DatabaseConnection, table: Table, page: Page, *where: ColumnElement[bool], name: str = "name"
) -> tuple[int, list[Row[Any]]]:
    """How many rows there are in all, and those of the page, oldest first."""
    conditions = [table.c.status != DELETED, *where]
    if page.name is not None:
        conditions.append(table.c[name] == page.name)
    if page.status is not None:
        conditions.append(table.c.status == page.status)
    total = (
        await connection.execute(select(func.count()).select_from(table).where(*conditions))
    ).scalar_one()
    rows = await connection.execute(
        select(table)
        .where(*conditions)
        .order_by(table.c.created_at, table.c.id)
        .offset(page.offset)
        .limit(page.limit)
    )
    return total, list(rows)


def list_answer(kind: str, page: Page, total: int, items: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer to a list request."""
    return {"offset": page.offset, "limit": page.limit, "total": total, kind: items}
