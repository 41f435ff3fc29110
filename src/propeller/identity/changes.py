"""Changes of access: one at a time, written, then taken into memory, then old connections cut."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from propeller.identity.directory import Directory, read_access
from propeller.identity.tables import clients
from propeller.store.database import Database

_CHUNK = 1000


class Cutter(Protocol):
    """Who can end the connections of clients (``broker_link.BrokerLink``)."""

    async def cut(self, client_ids: Collection[str]) -> None:
        """End connections that are older than their client's access."""

    def cut_soon(self, client_ids: Collection[str]) -> None:
        """The same, without waiting for it."""


@dataclass
class Change:
    """A change while it is made.

    Attributes:
        connection: its transaction.
        added: clients that are new.
        granted: clients that may do more: they get it when they connect again, so they are made to.
        revoked: clients that may do less: the change ends when their connections have.
    """

    connection: AsyncConnection
    added: set[str] = field(default_factory=set)
    granted: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)


class Changes:
    """Makes changes of access."""

    def __init__(self, database: Database, directory: Directory, cutter: Cutter) -> None:
        self._database, self._directory, self._cutter = database, directory, cutter
        self._lock = asyncio.Lock()

    async def load(self) -> None:
        """Take everyone's access into memory."""
        async with self._database.read() as connection:
            self._directory.put(await read_access(connection))

    @contextlib.asynccontextmanager
    async def change(self) -> AsyncIterator[Change]:
        """A transaction for the block; name in it whose access it changes."""
        async with self._lock:
            async with self._database.transaction() as connection:
                change = Change(connection)
                yield change
                cut = change.granted | change.revoked
                await _note(connection, cut)
                read = await read_access(connection, cut | change.added)
            # Now, not when it was written: a connection that was let in meanwhile had the old access.
            now = time.time()
            self._directory.put(
                replace(access, changed_at=now) if access.client_id in cut else access for access in read
            )
        if change.revoked:
            await self._cutter.cut(change.revoked)
        if change.granted - change.revoked:
            self._cutter.cut_soon(change.granted - change.revoked)


async def _note(connection: AsyncConnection, client_ids: Collection[str]) -> None:
    ids, now = iter(client_ids), time.time()
    while chunk := list(islice(ids, _CHUNK)):
        await connection.execute(update(clients).where(clients.c.id.in_(chunk)).values(access_changed_at=now))
