"""A service's SQL database: SQLite in a file by default, PostgreSQL by URL."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, TypeVarTuple, overload

from sqlalchemy import Connection, Executable, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from propeller.errors import StartError
from propeller.process.background import BackgroundTasks
from propeller.process.logs import get_logger
from propeller.store.integrity import look_through
from propeller.store.sqlite import SqliteFile

if TYPE_CHECKING:
    from sqlalchemy import CursorResult, ScalarResult
    from sqlalchemy.sql.selectable import TypedReturnsRows

    from propeller.store.postgresql import Postgresql

log = get_logger("store")

WRITE_WAIT_S = 10.0
"""How long a writer waits for another one, in this process or another, in seconds, unless told otherwise."""

_URL_FORMS = "write a file's path, sqlite:///path or postgresql://user@host/name"

_P = ParamSpec("_P")
_T = TypeVar("_T", bound=Any)
_Ts = TypeVarTuple("_Ts")


class DatabaseConnection(Protocol):
    """What a transaction or a read has for its statements: each method as SQLAlchemy's of the same name, all rows in memory."""

    @overload
    async def execute(
        self, statement: "TypedReturnsRows[*_Ts]", parameters: Any = None
    ) -> "CursorResult[*_Ts]": ...
    @overload
    async def execute(
        self, statement: Executable, parameters: Any = None
    ) -> "CursorResult[*tuple[Any, ...]]": ...
    @overload
    async def scalar(self, statement: "TypedReturnsRows[_T]", parameters: Any = None) -> _T | None: ...
    @overload
    async def scalar(self, statement: Executable, parameters: Any = None) -> Any: ...
    @overload
    async def scalars(
        self, statement: "TypedReturnsRows[_T]", parameters: Any = None
    ) -> "ScalarResult[_T]": ...
    @overload
    async def scalars(self, statement: Executable, parameters: Any = None) -> "ScalarResult[Any]": ...
    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> "CursorResult[Any]": ...
    async def run_sync(
        self, fn: Callable[Concatenate[Connection, _P], _T], *arg: _P.args, **kw: _P.kwargs
    ) -> _T: ...


MAX_CHECKED_BYTES = 256 * 1024 * 1024
"""A larger file is not read as a whole at the start, which takes seconds, but while it is used."""

RESTORE = "restore it from a backup (propeller restore), or move it away to begin anew"
"""What to do about a database that is damaged."""


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
        self._url = _parse(url)
        self._backend = _create_backend(self._url, write_wait_s)
        self._background = BackgroundTasks("store")
        self._damage: str | None = None

    @property
    def backend(self) -> "SqliteFile | Postgresql":
        """What it is kept in."""
        return self._backend

    @property
    def is_sqlite(self) -> bool:
        """Whether writers are serialised by the database itself."""
        return isinstance(self._backend, SqliteFile)

    def __str__(self) -> str:
        """Its URL without the password."""
        return self._url.render_as_string(hide_password=True)

    def transaction(self, *, durable: bool = True) -> AbstractAsyncContextManager[DatabaseConnection]:
        """One transaction: committed at the end of the block, rolled back if it raises.

        Args:
            durable: whether it must survive a power loss from the end of the block on, which waits for the disk. One
                that need not survives the end of the process all the same, and is never lost while a later one is not.

        Raises:
            DatabaseBusyError: another transaction of this process did not end in time.
        """
        return self._backend.transaction(durable=durable)

    def read(self) -> AbstractAsyncContextManager[DatabaseConnection]:
        """A consistent view for queries alone: it neither waits for a writer nor holds one up."""
        return self._backend.read()

    @contextlib.asynccontextmanager
    async def migration(self, *, lock: int) -> AsyncIterator[DatabaseConnection]:
        """One transaction that may change tables; of all processes only one is in it, the others wait.

        SQLite looks at foreign keys at its end alone: to change a table is to drop it there and to make it anew, and rows that
        refer to it would be deleted with it.

        Args:
            lock: the number that PostgreSQL's advisory lock has; SQLite has one writer anyway.

        Raises:
            DatabaseBusyError: another transaction of this process did not end in time.
            StartError: a row refers to one that is not there any more.
        """
        if not isinstance(self._backend, SqliteFile):
            async with self._backend.migration(lock=lock) as connection:
                yield connection
            return
        async with self._backend.migration() as connection:
            yield connection
            found = (await connection.exec_driver_sql("PRAGMA foreign_key_check")).mappings().first()
            if found is not None:
                raise StartError(
                    f"{self}: a row of the table {found['table']} refers to one of {found['parent']} that is not there"
                )

    async def check(self) -> None:
        """See that a SQLite file is whole; PostgreSQL sees to its own. One of more than 256 MB is looked at while it is used: see ``health``.

        Raises:
            StartError: it is damaged; the text names it.
        """
        if not isinstance(self._backend, SqliteFile):
            return
        async with self._backend.read() as connection:
            size = await connection.scalar(
                text("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
            )
            if size > MAX_CHECKED_BYTES:
                self._background.spawn(self._check_while_used(self._backend.file))
                return
            found = await connection.scalar(text("PRAGMA quick_check(1)"))
        if found != "ok":
            raise StartError(
                f"the database {self} is damaged ({' '.join(str(found).split())[:200]}); {RESTORE}"
            )

    def health(self) -> dict[str, str]:
        """Of a service's ``/health``: what was found to be wrong with the file while it is used, as ``database``; else nothing."""
        return {} if self._damage is None else {"database": self._damage}

    async def _check_while_used(self, file: Path) -> None:
        found = await look_through(file)
        if found is not None:
            # Anyone may ask for a service's health, whom its folders are no concern of.
            self._damage = f"{file.name} is damaged ({found}); {RESTORE}"
            log.error("the database is damaged", database=str(self), reason=found, remedy=RESTORE)

    async def close(self) -> None:
        """Close every connection."""
        await self._background.close()
        await self._backend.close()


def _parse(url: str) -> URL:
    try:
        return make_url(url) if "://" in url else URL.create("sqlite", database=url)
    except (ArgumentError, ValueError):  # the URL itself stays out of the text: it may hold a password
        raise StartError(f"the database's URL cannot be read; {_URL_FORMS}") from None


def _create_backend(url: URL, write_wait_s: float) -> "SqliteFile | Postgresql":
    match url.get_backend_name():
        case "sqlite":
            return _create_sqlite_file(url.database, write_wait_s)
        case "postgresql" | "postgres":
            try:
                from propeller.store.postgresql import Postgresql

                return Postgresql(url)
            except ImportError:
                raise StartError("PostgreSQL needs the extra: pip install 'propeller[postgres]'") from None
        case other:
            raise StartError(f"{other} is not a database that is supported; {_URL_FORMS}")


def _create_sqlite_file(path: str | None, write_wait_s: float) -> SqliteFile:
    if not path or path == ":memory:":
        raise StartError(f"a database in memory would be lost at the end; {_URL_FORMS}")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot open the database {path}: {error.strerror}") from None
    return SqliteFile(Path(path).absolute(), write_wait_s)
