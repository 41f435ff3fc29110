"""What lists and records of every kind share: new ids, pages, how times are written."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Table, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from propeller.errors import NotFoundError
from propeller.protocol.wire import format_time

ENABLED, DISABLED, DELETED = "enabled", "disabled", "deleted"

MOST_PER_PAGE = 1000


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


def iso(seconds: float) -> str:
    """A time in seconds since 1970 as messages have it."""
    return format_time(datetime.fromtimestamp(seconds, UTC))


async def fetch(
    connection: AsyncConnection, table: Table, what: str, *where: ColumnElement[bool]
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
    connection: AsyncConnection, table: Table, page: Page, *where: ColumnElement[bool], name: str = "name"
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


def listed(kind: str, page: Page, total: int, items: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer to a list request."""
    return {"offset": page.offset, "limit": page.limit, "total": total, kind: items}
