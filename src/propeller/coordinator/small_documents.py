"""The documents of small updates in the database: written in the transactions by which the updates count."""

import asyncio
from collections.abc import Iterable

import sqlalchemy as sa

from propeller.coordinator.store import Also, batches
from propeller.coordinator.tables import update_documents as _documents
from propeller.store.database import Database, DatabaseConnection

SMALL_BYTES = 64 * 1024
"""The largest document in the database, in bytes: up to here that is clearly faster than a file, at four times as much no more, as
SQLite writes each page twice (decision 0175)."""

_PAGE = 500
"""Digests of one query: it holds up the event loop while it runs."""

_REMOVED_AT_ONCE = 100
"""Documents of one transaction: it holds up the event loop for up to 20 ms, if they are of the largest size."""

# Statements of every round are made once. The first is in SQL, as both databases know it and SQLAlchemy has it for one of them at a time.
_INSERT = sa.text(
    "INSERT INTO update_documents (digest, content) VALUES (:digest, :content) ON CONFLICT DO NOTHING"
).bindparams(sa.bindparam("content", type_=sa.LargeBinary))
_CONTENT = sa.select(_documents.c.content).where(_documents.c.digest == sa.bindparam("wanted"))
_AMONG = sa.select(_documents.c.digest).where(_documents.c.digest.in_(sa.bindparam("wanted", expanding=True)))
_REMOVE = _documents.delete().where(_documents.c.digest.in_(sa.bindparam("removed", expanding=True)))


class SmallDocuments:
    """Documents by their digests."""

    def __init__(self, database: Database) -> None:
        """Use ``database``, which has the coordinator's tables."""
        self._database = database

    def writer(self, digest: str, content: bytes) -> Also:
        """What stores a document as part of a transaction; one that is there already stays."""

        async def write(connection: DatabaseConnection) -> None:
            await connection.execute(_INSERT, {"digest": digest, "content": content})

        return write

    async def get(self, digest: str) -> bytes | None:
        """A document; ``None`` if it is not here."""
        async with self._database.read() as connection:
            return await connection.scalar(_CONTENT, {"wanted": digest})

    async def among(self, digests: Iterable[str]) -> set[str]:
        """Those of these documents that are here."""
        found: set[str] = set()
        async with self._database.read() as connection:
            for some in batches(list(digests)):
                found |= set(await connection.scalars(_AMONG, {"wanted": some}))
        return found

    async def list(self) -> list[str]:
        """The digests of all documents."""
        ordered = sa.select(_documents.c.digest).order_by(_documents.c.digest).limit(_PAGE)
        found: list[str] = []
        query = ordered
        while True:
            async with self._database.read() as connection:
                page = (await connection.scalars(query)).all()
            found += page
            if len(page) < _PAGE:
                return found
            query = ordered.where(_documents.c.digest > page[-1])

    async def remove(self, digests: Iterable[str]) -> None:
        """Remove documents; those that are not here are fine. After a power loss they may be here again."""
        for some in batches(list(digests), _REMOVED_AT_ONCE):
            async with self._database.transaction(durable=False) as connection:
                await connection.execute(_REMOVE, {"removed": some})
            await asyncio.sleep(0)
