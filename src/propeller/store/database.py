"""A service's SQL database: SQLite in a file by default, PostgreSQL by URL."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from propeller.errors import UnavailableError
from propeller.process.run import StartError

WRITE_WAIT_S = 10.0
"""How long a writer waits for another, in this process or in another one, in seconds."""

_URL_FORMS = "write a file's path, sqlite:///path or postgresql://user@host/name"


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
        self._reader = self._engine.execution_options(**{_READ_ONLY: True})
        self._migrator = self._engine.execution_options(**{_MIGRATES: True})
        self._writer = asyncio.Lock()

    @property
    def is_sqlite(self) -> bool:
        """Whether writers are serialised by the database itself."""
        return self._engine.dialect.name == "sqlite"

    def __str__(self) -> str:
        """Its URL without the password."""
        return self._engine.url.render_as_string(hide_password=True)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed at the end of the block, rolled back if it raises.

        Raises:
            DatabaseBusyError: another transaction of this process did not end in ``WRITE_WAIT_S``.
        """
        async with self._one_writer(), self._engine.begin() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A consistent view for queries alone: it neither waits for a writer nor holds one up."""
        async with self._reader.begin() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def migration(self, *, lock: int) -> AsyncIterator[AsyncConnection]:
        """One transaction that may change tables; of all processes only one is in it, the others wait.

        SQLite looks at foreign keys at its end alone: to change a table is to drop it there and to make it anew, and rows that
        refer to it would be deleted with it.

        Args:
            lock: the number that PostgreSQL's advisory lock has; SQLite has one writer anyway.

        Raises:
            DatabaseBusyError: another transaction of this process did not end in ``WRITE_WAIT_S``.
            StartError: a row refers to one that is not there any more.
        """
        try:
            async with self._one_writer(), self._migrator.begin() as connection:
                if not self.is_sqlite:
                    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
                yield connection
                if self.is_sqlite:
                    await self._check_foreign_keys(connection)
        finally:
            if self.is_sqlite:
                await self._engine.dispose()  # the next connection checks foreign keys again

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    async def _check_foreign_keys(self, connection: AsyncConnection) -> None:
        found = (await connection.exec_driver_sql("PRAGMA foreign_key_check")).mappings().first()
        if found is not None:
            raise StartError(
                f"{self}: a row of the table {found['table']} refers to one of {found['parent']} that is not there"
            )

    @contextlib.asynccontextmanager
    async def _one_writer(self) -> AsyncIterator[None]:
        """Lets this process's writers to SQLite in one by one, as SQLite's own waiting is a poll in a thread."""
        if not self.is_sqlite:
            yield
            return
        try:
            async with asyncio.timeout(WRITE_WAIT_S):
                await self._writer.acquire()
        except TimeoutError:
            raise DatabaseBusyError(
                f"waited {WRITE_WAIT_S:g} s for another transaction; is this one inside it?"
            ) from None
        try:
            yield
        finally:
            self._writer.release()


_READ_ONLY, _MIGRATES = "propeller_read_only", "propeller_migrates"


def _engine(url: str) -> AsyncEngine:
    try:
        parsed = make_url(url) if "://" in url else URL.create("sqlite", database=url)
    except (ArgumentError, ValueError):  # the URL itself stays out of the text: it may hold a password
        raise StartError(f"the database's URL cannot be read; {_URL_FORMS}") from None
    match parsed.get_backend_name():
        case "sqlite":
            return _sqlite(parsed)
        case "postgresql" | "postgres":
            try:
                return create_async_engine(parsed.set(drivername="postgresql+asyncpg"), pool_pre_ping=True)
            except ModuleNotFoundError:
                raise StartError("PostgreSQL needs the extra: pip install 'propeller[postgres]'") from None
        case other:
            raise StartError(f"{other} is not a database that is supported; {_URL_FORMS}")


def _sqlite(url: URL) -> AsyncEngine:
    path = url.database
    if not path or path == ":memory:":
        raise StartError(f"a database in memory would be lost at the end; {_URL_FORMS}")
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
    wait_ms = int(WRITE_WAIT_S * 1000)
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
    options = connection.get_execution_options()
    if options.get(_MIGRATES):
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")  # has no effect inside a transaction
    connection.exec_driver_sql("BEGIN" if options.get(_READ_ONLY) else "BEGIN IMMEDIATE")
