"""A SQLite file for the event loop: what is quick runs at once, a commit that waits for the disk runs in a thread.

A statement takes some microseconds, as its pages are in memory; to hand it to a thread takes several times as long (decision 0150).
So SQLAlchemy's synchronous connections are used, and kept from one block to the next: one that writes, some that read.
"""

import asyncio
import contextlib
import itertools
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from sqlalchemy import Connection, Engine, NullPool, create_engine
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ResourceClosedError

from propeller.errors import UnavailableError
from propeller.store.disk_thread import DiskThread

_MAX_IDLE_READERS = 4
_MAX_NOT_DURABLE = 100
"""How many transactions in a row may leave it to a later one to wait for the disk and to write the log into the file."""

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.001, 0.05
_PRIMARY_CODE = 0xFF
"""Of an extended result code (sqlite.org/rescode.html)."""

# A reader's view is of its first query, which may find the file locked (by a process that recovers it, or is the last to close it):
# it is asked for here, so that no statement of a block has to be repeated.
_BEGIN_READ = ("BEGIN", "PRAGMA schema_version")
# IMMEDIATE takes the write lock at once, so that two writers wait for each other instead of failing half-way.
_BEGIN_WRITE = ("BEGIN IMMEDIATE",)
_BEGIN_MIGRATION = ("PRAGMA foreign_keys=OFF", *_BEGIN_WRITE)  # has no effect inside a transaction
_DURABLE = ("PRAGMA synchronous=FULL", "PRAGMA wal_autocheckpoint=1000")
_NOT_DURABLE = ("PRAGMA synchronous=NORMAL", "PRAGMA wal_autocheckpoint=0")  # a checkpoint waits for the disk

_P = ParamSpec("_P")
_T = TypeVar("_T", bound=Any)


class DatabaseBusyError(UnavailableError):
    """A transaction could not begin: another one is open for too long."""


class SqliteConnection:
    """What a block has of a kept connection. A query holds up the event loop for as long as it takes: ask for a page of rows."""

    def __init__(self, core: Connection) -> None:
        """For one block: see ``close``."""
        self._core: Connection | None = core
        self.ran_functions = False

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """As SQLAlchemy's; all rows are in memory."""
        return self._open_core.execute(statement, parameters)

    async def scalar(self, statement: Any, parameters: Any = None) -> Any:
        """As SQLAlchemy's."""
        return self._open_core.scalar(statement, parameters)

    async def scalars(self, statement: Any, parameters: Any = None) -> Any:
        """As SQLAlchemy's; all rows are in memory."""
        return self._open_core.scalars(statement, parameters)

    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> Any:
        """As SQLAlchemy's; all rows are in memory."""
        return self._open_core.exec_driver_sql(statement, parameters)

    async def run_sync(
        self, fn: Callable[Concatenate[Connection, _P], _T], *arg: _P.args, **kw: _P.kwargs
    ) -> _T:
        """Call a function with the synchronous connection."""
        self.ran_functions = True
        return fn(self._open_core, *arg, **kw)

    def close(self) -> None:
        """From now on nothing can be executed with it: the connection is another block's."""
        self._core = None

    @property
    def _open_core(self) -> Connection:
        if self._core is None:
            raise ResourceClosedError("the block that this connection was for has ended")
        return self._core


class SqliteFile:
    """The connections to one file, for one event loop at a time.

    A block that is cancelled while its commit is in the thread ends when that has been done there: nobody has the connection
    before.

    Attributes:
        file: where it is.
    """

    def __init__(self, file: Path, write_wait_s: float) -> None:
        """Open nothing yet; ``write_wait_s`` is how long to wait for a writer, of this process or another, in seconds."""
        self.file, self._wait_s = file, write_wait_s
        self._engine = create_engine("sqlite://", creator=self._connect, poolclass=NullPool)
        self._turn = _Turn()
        self._writer: _Kept | None = None
        self._idle: list[_Kept] = []
        self._thread = DiskThread()

    @contextlib.asynccontextmanager
    async def transaction(self, *, durable: bool = True) -> AsyncIterator[SqliteConnection]:
        """See ``Database.transaction``."""
        await self._turn.take(self._wait_s)
        try:
            kept, self._writer = self._writer, None
            kept = await self._take(kept)
            connection = SqliteConnection(kept.core)
            try:
                durable = kept.is_to_be_durable(wanted=durable)
                if durable == kept.is_durable:
                    await self._begin(kept, *_BEGIN_WRITE)
                else:
                    kept.is_durable = None  # until it is known
                    await self._begin(kept, *(_DURABLE if durable else _NOT_DURABLE), *_BEGIN_WRITE)
                    kept.is_durable = durable
                yield connection
                if durable and (connection.ran_functions or kept.has_changed_rows):
                    await self._thread.run(kept.core.commit)
                else:
                    kept.core.commit()
            except BaseException as error:
                await self._undo(kept, error)
                raise
            finally:
                connection.close()
                if kept.is_clean:
                    self._writer = kept
        finally:
            self._turn.give()

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[SqliteConnection]:
        """See ``Database.read``."""
        kept = await self._take(self._idle.pop() if self._idle else None)
        connection = SqliteConnection(kept.core)
        try:
            await self._begin(kept, *_BEGIN_READ)
            yield connection
            kept.core.commit()
        except BaseException as error:
            await self._undo(kept, error)
            raise
        finally:
            connection.close()
            if kept.is_clean:
                self._idle.append(kept)
        if len(self._idle) > _MAX_IDLE_READERS:
            await self._thread.run(self._idle.pop(0).close)

    @contextlib.asynccontextmanager
    async def migration(self) -> AsyncIterator[SqliteConnection]:
        """See ``Database.migration``."""
        await self._turn.take(self._wait_s)
        try:
            kept = await self._take(None)
            connection = SqliteConnection(kept.core)
            try:
                await self._begin(kept, *_BEGIN_MIGRATION)
                yield connection
                await self._thread.run(kept.core.commit)
            finally:
                connection.close()
                # It checks no foreign keys, so that it serves no other block; what is not committed is rolled back.
                await self._thread.run(kept.close)
        finally:
            self._turn.give()

    async def close(self) -> None:
        """Close every connection that no block has."""
        unused = [*self._idle, *([self._writer] if self._writer else [])]
        self._idle, self._writer = [], None
        for kept in unused:
            await self._thread.run(kept.close)
        self._thread.close()

    async def _take(self, kept: "_Kept | None") -> "_Kept":
        """A connection to the file that is there now: the one given, or a new one."""
        if kept is not None:
            if kept.file_identity == _identify(self.file):
                return kept
            await self._thread.run(kept.close)
        # Here, as in the thread it would wait for a commit; only the first one may find something to write.
        return await self._wait_while_locked(lambda: _Kept(self._engine, self.file))

    async def _begin(self, kept: "_Kept", *statements: str) -> None:
        try:
            kept.begin(statements)
        except sqlite3.Error:

            def begin() -> None:
                kept.driver.rollback()
                for statement in statements:  # by SQLAlchemy, for its exceptions
                    kept.core.exec_driver_sql(statement)

            await self._wait_while_locked(begin)

    async def _wait_while_locked(self, attempt: Callable[[], _T]) -> _T:
        """Try for as long as a writer may take. SQLite's own waiting is such a loop too, but holds up a thread and cannot be cancelled."""
        deadline, pause_s = time.monotonic() + self._wait_s, _FIRST_PAUSE_S
        while True:
            try:
                return attempt()
            except OperationalError as error:
                code = getattr(error.orig, "sqlite_errorcode", 0)
                if code & _PRIMARY_CODE != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    async def _undo(self, kept: "_Kept", error: BaseException) -> None:
        """Roll back; a connection that may be the cause of the error is closed."""
        is_suspect = isinstance(error, DBAPIError) and not isinstance(error, IntegrityError)
        if is_suspect or not kept.roll_back():
            await self._thread.run(kept.close)

    def _connect(self) -> sqlite3.Connection:
        # Calls come from two threads, though never at the same time. Transactions are begun here, not by the driver.
        connection = sqlite3.connect(
            self.file, timeout=0, isolation_level=None, check_same_thread=False, factory=_BufferedConnection
        )
        try:
            for statement in ("PRAGMA journal_mode=WAL", "PRAGMA foreign_keys=ON", *_DURABLE):
                connection.execute(statement)
        except BaseException:
            connection.close()
            raise
        return connection


class _Kept:
    """An open connection that serves one block after another."""

    def __init__(self, engine: Engine, file: Path) -> None:
        self.core = engine.connect()
        self.driver = cast(sqlite3.Connection, self.core.connection.driver_connection)
        self.file_identity = _identify(file)
        self.is_durable: bool | None = True
        self._not_durable = 0
        self._changes = 0

    @property
    def is_clean(self) -> bool:
        """Whether it is open and in no transaction."""
        return not (
            self.core.closed
            or self.core.invalidated
            or self.core.get_transaction()
            or self.driver.in_transaction
        )

    @property
    def has_changed_rows(self) -> bool:
        """Whether statements since the beginning of the transaction did."""
        return self.driver.total_changes != self._changes

    def begin(self, statements: Iterable[str]) -> None:
        """Begin a transaction with these statements: by the driver, as that is cheaper by half."""
        self.core.begin()
        self._changes = self.driver.total_changes
        for statement in statements:
            self.driver.execute(statement)

    def is_to_be_durable(self, *, wanted: bool) -> bool:
        """Whether the next transaction is: now and then one is that need not be."""
        self._not_durable = 0 if wanted or self._not_durable == _MAX_NOT_DURABLE else self._not_durable + 1
        return self._not_durable == 0

    def roll_back(self) -> bool:
        """Whether the connection is as if the transaction had never begun."""
        with contextlib.suppress(DBAPIError, sqlite3.Error):
            self.core.rollback()
            self.driver.rollback()  # what SQLAlchemy leaves of a commit that failed
        return self.is_clean

    def close(self) -> None:
        """Close it, for good."""
        self.core.close()


class _Turn:
    """Lets in one writer of this process at a time, as those who wait for SQLite poll."""

    def __init__(self) -> None:
        self._lock, self._waiting = asyncio.Lock(), 0
        self._loop: asyncio.AbstractEventLoop | None = None

    async def take(self, wait_s: float) -> None:
        """Wait until nobody has it.

        Raises:
            DatabaseBusyError: somebody has had it for too long.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # a lock belongs to one
            self._lock, self._loop, self._waiting = asyncio.Lock(), loop, 0
        if not self._waiting and not self._lock.locked():
            await self._lock.acquire()
            return
        self._waiting += 1
        try:
            async with asyncio.timeout(wait_s):
                await self._lock.acquire()
        except TimeoutError:
            raise DatabaseBusyError(
                f"waited {wait_s:g} s for another transaction; is this one inside it?"
            ) from None
        finally:
            self._waiting -= 1

    def give(self) -> None:
        """Let the next one in."""
        self._lock.release()


class _BufferedConnection(sqlite3.Connection):
    """Has no query open after it was executed: one that is open keeps the log from being written into the file."""

    def cursor(self, factory: Any = None) -> Any:
        """One of its own kind."""
        return super().cursor(factory or _BufferedCursor)


class _BufferedCursor(sqlite3.Cursor):
    _rows: Iterator[Any] = iter(())

    def execute(self, *args: Any) -> Self:
        super().execute(*args)
        self._rows = iter(super().fetchall() if self.description else ())
        return self

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        return list(itertools.islice(self._rows, self.arraysize if size is None else size))

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def __next__(self) -> Any:
        return next(self._rows)


def _identify(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
