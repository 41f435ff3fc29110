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

from propeller.errors import StartError, UnavailableError
from propeller.store.sqlite import LoopConnection

WRITE_WAIT_S = 10.0
"""How long a writer waits for another one, in this process or another, in seconds, unless told otherwise."""

_URL_FORMS = "write a file's path, sqlite:///path or postgresql://user@host/name"


class DatabaseBusyError(UnavailableError):
    """A transaction could not begin: another one is open for too long."""


class Database:
    """Connections to a service's own database.

    SQLite runs in WAL mode with ``synchronous=FULL``: a transaction that committed survives a power loss. It has
    one writer at a time: keep transactions short, and open none inside another. Readers wait for no one.
    """

    def __init__(self, url: str, *, write_wait_s: float = WRITE_WAIT_S) -> None:
        """Open nothing yet.

        Args:
            url: as SQLAlchemy's (``sqlite:///path``, ``postgresql://…``) or a file path.
            write_wait_s: how long a writer to SQLite waits for another one, in seconds.

        Raises:
            StartError: the URL is not one.
        """
        self._engine = _create_engine(url, write_wait_s)
        self._reader = self._engine.execution_options(**{_READ_ONLY: True})
        self._migrator = self._engine.execution_options(**{_MIGRATES: True})
        self._writer_lock, self._write_wait_s = asyncio.Lock(), write_wait_s

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
            DatabaseBusyError: another transaction of this process did not end in time.
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
            DatabaseBusyError: another transaction of this process did not end in time.
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
        """Lets in one writer of this process to SQLite at a time, as SQLite's own waiting is a poll in a thread."""
        if not self.is_sqlite:
            yield
            return
        try:
            async with asyncio.timeout(self._write_wait_s):
                await self._writer_lock.acquire()
        except TimeoutError:
            raise DatabaseBusyError(
                f"waited {self._write_wait_s:g} s for another transaction; is this one inside it?"
            ) from None
        try:
            yield
        finally:
            self._writer_lock.release()


_READ_ONLY, _MIGRATES = "propeller_read_only", "propeller_migrates"


def _create_engine(url: str, write_wait_s: float) -> AsyncEngine:
    try:
        parsed = make_url(url) if "://" in url else URL.create("sqlite", database=url)
    except (ArgumentError, ValueError):  # the URL itself stays out of the text: it may hold a password
        raise StartError(f"the database's URL cannot be read; {_URL_FORMS}") from None
    match parsed.get_backend_name():
        case "sqlite":
            return _create_sqlite_engine(parsed, write_wait_s)
        case "postgresql" | "postgres":
            try:
                return create_async_engine(parsed.set(drivername="postgresql+asyncpg"), pool_pre_ping=True)
            except ModuleNotFoundError:
                raise StartError("PostgreSQL needs the extra: pip install 'propeller[postgres]'") from None
        case other:
            raise StartError(f"{other} is not a database that is supported; {_URL_FORMS}")


def _create_sqlite_engine(url: URL, write_wait_s: float) -> AsyncEngine:
    path = url.database
    if not path or path == ":memory:":
        raise StartError(f"a database in memory would be lost at the end; {_URL_FORMS}")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot open the database {path}: {error.strerror}") from None
    file = str(Path(path).absolute())
    engine = create_async_engine(
        url.set(drivername="sqlite+aiosqlite", database=file),
        async_creator=lambda *_args, **_options: LoopConnection(file, write_wait_s),
    )
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions on its own: _begin_sqlite does
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the write lock at once, so that two writers wait for each other instead of failing half-way.
    options = connection.get_execution_options()
    if options.get(_MIGRATES):
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")  # has no effect inside a transaction
    connection.exec_driver_sql("BEGIN" if options.get(_READ_ONLY) else "BEGIN IMMEDIATE")
