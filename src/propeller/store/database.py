"""A service's SQL database: SQLite in a file by default, PostgreSQL by URL."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, MetaData, event, inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from propeller.errors import UnavailableError
from propeller.process.run import StartError

WAIT_S = 10.0
"""How long a writer waits for another, in this process or in another one, in seconds."""

_FORMS = "write a file's path, sqlite:///path or postgresql://user@host/name"


class DatabaseBusyError(UnavailableError):
    """A transaction could not begin: another one is open for too long."""


class Database:
    """Connections to a service's own database.

    SQLite runs in WAL mode with ``synchronous=FULL``: a transaction that committed survives a power loss. It has
    one writer at a time: keep transactions short, and open none inside another. Readers wait for no one.
    """

    def __init__(self, url: str) -> None:
        """``url`` as SQLAlchemy's (``sqlite:///path``, ``postgresql://…``) or a file path.

        Raises:
            StartError: the URL is not one.
        """
        self._engine = _engine(url)
        self._reader = self._engine.execution_options(**{_READ: True})
        self._writer = asyncio.Lock()

    @property
    def is_sqlite(self) -> bool:
        """Whether writers are serialised by the database itself."""
        return self._engine.dialect.name == "sqlite"

    async def create(self, tables: MetaData) -> None:
        """Create the tables that are missing, and in those that an earlier version made the columns that are.

        Raises:
            StartError: the database cannot be opened.
        """
        try:
            async with self.transaction() as connection:
                await connection.run_sync(tables.create_all)
                await connection.run_sync(_add_columns, tables)
        except (DBAPIError, OSError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            place = self._engine.url.render_as_string(hide_password=True)
            raise StartError(f"cannot open the database {place}: {reason}") from error

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed at the end of the block, rolled back if it raises.

        Raises:
            DatabaseBusyError: another transaction of this process did not end in ``WAIT_S``.
        """
        async with self._turn(), self._engine.begin() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A consistent view for queries alone: it neither waits for a writer nor holds one up."""
        async with self._reader.begin() as connection:
            yield connection

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Lets this process's writers to SQLite in one by one, as SQLite's own waiting is a poll in a thread."""
        if not self.is_sqlite:
            yield
            return
        try:
            async with asyncio.timeout(WAIT_S):
                await self._writer.acquire()
        except TimeoutError:
            raise DatabaseBusyError(
                f"waited {WAIT_S:g} s for another transaction; is this one inside it?"
            ) from None
        try:
            yield
        finally:
            self._writer.release()


def _add_columns(connection: Connection, tables: MetaData) -> None:
    """Add what tables have gained since the database was made: columns that may be NULL."""
    found = inspect(connection)
    names = connection.dialect.identifier_preparer
    for table in tables.sorted_tables:
        there = {column["name"] for column in found.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                made = f"{names.quote(column.name)} {column.type.compile(connection.dialect)}"
                connection.exec_driver_sql(f"ALTER TABLE {names.format_table(table)} ADD COLUMN {made}")


_READ = "propeller_read"


def _engine(url: str) -> AsyncEngine:
    try:
        parsed = make_url(url) if "://" in url else URL.create("sqlite", database=url)
    except (ArgumentError, ValueError):  # the URL itself stays out of the text: it may hold a password
        raise StartError(f"the database's URL cannot be read; {_FORMS}") from None
    match parsed.get_backend_name():
        case "sqlite":
            return _sqlite(parsed)
        case "postgresql" | "postgres":
            try:
                return create_async_engine(parsed.set(drivername="postgresql+asyncpg"), pool_pre_ping=True)
            except ModuleNotFoundError:
                raise StartError("PostgreSQL needs the extra: pip install 'propeller[postgres]'") from None
        case other:
            raise StartError(f"{other} is not a database that is supported; {_FORMS}")


def _sqlite(url: URL) -> AsyncEngine:
    path = url.database
    if not path or path == ":memory:":
        raise StartError(f"a database in memory would be lost at the end; {_FORMS}")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot open the database {path}: {error.strerror}") from None
    engine = create_async_engine(url.set(drivername="sqlite+aiosqlite", database=str(Path(path).absolute())))
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions on its own: _begin_sqlite does
    cursor = connection.cursor()
    wait_ms = int(WAIT_S * 1000)
    for pragma in (
        f"busy_timeout={wait_ms}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the write lock at once, so that two writers wait for each other instead of failing half-way.
    reads = connection.get_execution_options().get(_READ)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
