"""A service's SQL database: SQLite in a file by default, PostgreSQL by URL."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from propeller.process.run import StartError


class Database:
    """Connections to a service's own database.

    SQLite runs in WAL mode with ``synchronous=FULL``: a transaction that committed survives a power loss.
    """

    def __init__(self, url: str) -> None:
        """``url`` as SQLAlchemy's (``sqlite:///path``, ``postgresql://…``) or a file path.

        Raises:
            StartError: the URL is not one.
        """
        self._engine = _engine(url)

    @property
    def is_sqlite(self) -> bool:
        """Whether writers are serialised by the database itself."""
        return self._engine.dialect.name == "sqlite"

    async def create(self, tables: MetaData) -> None:
        """Create the tables that are missing."""
        async with self._engine.begin() as connection:
            await connection.run_sync(tables.create_all)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed at the end of the block, rolled back if it raises."""
        async with self._engine.begin() as connection:
            yield connection

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


def _engine(url: str) -> AsyncEngine:
    if "://" not in url:
        url = f"sqlite:///{Path(url).absolute()}"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StartError(f"{url!r} is not a database URL; write sqlite:///path or postgresql://…") from None
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_async_engine(parsed.set(drivername="sqlite+aiosqlite"))
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_immediate)
        return engine
    try:
        return create_async_engine(parsed.set(drivername="postgresql+asyncpg"), pool_pre_ping=True)
    except ModuleNotFoundError:
        raise StartError("PostgreSQL needs the extra: pip install 'propeller[postgres]'") from None


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not begin transactions on its own: BEGIN IMMEDIATE below takes the write lock at once, so that
    # two writers wait for each other instead of failing half-way.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
