"""A PostgreSQL server's database; imported only where one is used, as it needs more of SQLAlchemy (6 MB of memory)."""

import contextlib
from collections.abc import AsyncIterator

from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine


class Postgresql:
    """Connections to one database of a server."""

    def __init__(self, url: URL) -> None:
        """Open nothing yet.

        Raises:
            ImportError: its driver is not installed.
        """
        self._engine = create_async_engine(url.set(drivername="postgresql+asyncpg"), pool_pre_ping=True)

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

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()
