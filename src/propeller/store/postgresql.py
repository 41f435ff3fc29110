"""A PostgreSQL server's database; imported only where one is used, as it needs more of SQLAlchemy (6 MB of memory)."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from sqlalchemy import NullPool, event, text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine


class Postgresql:
    """Connections to one database of a server.

    Attributes:
        admit: called with the driver's connection when one was opened, before it serves a block.
    """

    def __init__(self, url: URL) -> None:
        """Open nothing yet.

        Raises:
            ImportError: its driver is not installed.
        """
        self._url = url.set(drivername="postgresql+asyncpg")
        self._engine = create_async_engine(self._url, pool_pre_ping=True)
        self.admit: Callable[[Any], Awaitable[None]] | None = None
        event.listen(self._engine.sync_engine, "connect", self._on_connect)

    @contextlib.asynccontextmanager
    async def transaction(self, *, durable: bool = True) -> AsyncIterator[AsyncConnection]:
        """See ``Database.transaction``."""
        async with self._engine.begin() as connection:
            if not durable:
                await connection.exec_driver_sql("SET LOCAL synchronous_commit TO OFF")
            yield connection

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """See ``Database.read``."""
        async with self._engine.begin() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def migration(self, *, lock: int) -> AsyncIterator[AsyncConnection]:
        """See ``Database.migration``."""
        async with self._engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
            yield connection

    async def connect_alone(self, wait_s: float) -> AsyncConnection:
        """A connection of its own, which is nobody else's and ends when it is closed. Opening it takes ``wait_s`` at most."""
        engine = create_async_engine(self._url, poolclass=NullPool, connect_args={"timeout": wait_s})
        return await engine.connect()

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    def _on_connect(self, connection: Any, _record: object) -> None:
        if self.admit is None:
            return
        try:
            connection.run_async(self.admit)
        except BaseException:
            connection.terminate()
            raise
