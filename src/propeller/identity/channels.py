"""Channels, and which clients are connected to them."""

import time
from collections.abc import Sequence
from itertools import product
from typing import Any

from sqlalchemy import Row, delete, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from propeller.errors import ConflictError, NotFoundError
from propeller.identity.access import AccessChanges
from propeller.identity.tables import (
    DELETED,
    ENABLED,
    Page,
    channels,
    clients,
    connections,
    domains,
    fetch_page,
    fetch_row,
    format_seconds,
    list_answer,
    new_id,
)
from propeller.store.database import Database, DatabaseConnection

PUBLISH, SUBSCRIBE = "publish", "subscribe"


class Channels:
    """The channels of every domain."""

    def __init__(self, database: Database, changes: AccessChanges) -> None:
        self._database, self._changes = database, changes

    async def create(
        self, domain_id: str, name: str, status: str = ENABLED, *, channel_id: str | None = None
    ) -> dict[str, Any]:
        """A new channel; ``channel_id`` is for one that is known already.

        Raises:
            NotFoundError: there is no such domain.
            ConflictError: the domain has a channel of that name.
        """
        row = {
            "id": channel_id or new_id(),
            "domain_id": domain_id,
            "name": name,
            "status": status,
            "created_at": time.time(),
        }
        try:
            async with self._database.transaction() as connection:
                await fetch_row(connection, domains, "domain", domains.c.id == domain_id)
                await connection.execute(channels.insert().values(row))
        except IntegrityError:
            raise ConflictError(f"a channel named {name!r} exists in this domain") from None
        return await self.get(domain_id, str(row["id"]))

    async def get(self, domain_id: str, channel_id: str) -> dict[str, Any]:
        """One channel.

        Raises:
            NotFoundError: there is none in this domain.
        """
        async with self._database.read() as connection:
            return _describe(await _fetch(connection, domain_id, channel_id))

    async def list(self, domain_id: str, page: Page) -> dict[str, Any]:
        """A page of a domain's channels."""
        async with self._database.read() as connection:
            total, rows = await fetch_page(connection, channels, page, channels.c.domain_id == domain_id)
        return list_answer("channels", page, total, [_describe(row) for row in rows])

    async def set_status(self, domain_id: str, channel_id: str, status: str) -> dict[str, Any]:
        """Enable or disable a channel; in a disabled one nobody may publish or subscribe.

        Raises:
            NotFoundError: there is none.
        """
        await self._change(domain_id, channel_id, {"status": status})
        return await self.get(domain_id, channel_id)

    async def delete(self, domain_id: str, channel_id: str) -> None:
        """Delete a channel; its clients are cut, and have no rights in it any more.

        Raises:
            NotFoundError: there is none.
        """
        await self._change(domain_id, channel_id, {"status": DELETED, "name": channel_id})

    async def connect(
        self, domain_id: str, client_ids: Sequence[str], channel_ids: Sequence[str], types: Sequence[str]
    ) -> None:
        """Let each client publish or subscribe, or both, on each channel; what it may already is kept.

        Raises:
            NotFoundError: a client or a channel is not of this domain.
        """
        async with self._changes.change() as change:
            await _check(change.connection, domain_id, client_ids, channel_ids)
            wanted = set(product(client_ids, channel_ids, types))
            missing = wanted - await _connected(change.connection, client_ids, channel_ids)
            if missing:
                rows = [
                    {"client_id": client, "channel_id": channel, "type": kind}
                    for client, channel, kind in missing
                ]
                await change.connection.execute(connections.insert(), rows)
            change.granted.update(client for client, _channel, _kind in missing)

    async def disconnect(
        self, domain_id: str, client_ids: Sequence[str], channel_ids: Sequence[str], types: Sequence[str]
    ) -> None:
        """Withdraw what ``connect`` granted; the clients are cut from the broker.

        Raises:
            NotFoundError: a client or a channel is not of this domain.
        """
        async with self._changes.change() as change:
            await _check(change.connection, domain_id, client_ids, channel_ids)
            wanted = set(product(client_ids, channel_ids, types))
            found = wanted & await _connected(change.connection, client_ids, channel_ids)
            if found:
                key = tuple_(connections.c.client_id, connections.c.channel_id, connections.c.type)
                await change.connection.execute(delete(connections).where(key.in_(sorted(found))))
            change.revoked.update(client for client, _channel, _kind in found)

    async def _change(self, domain_id: str, channel_id: str, values: dict[str, Any]) -> None:
        async with self._changes.change() as change:
            await _fetch(change.connection, domain_id, channel_id)
            await change.connection.execute(
                update(channels).where(channels.c.id == channel_id).values(values)
            )
            members = await change.connection.execute(
                select(connections.c.client_id).where(connections.c.channel_id == channel_id)
            )
            change.revoked.update(row.client_id for row in members)


async def _fetch(connection: DatabaseConnection, domain_id: str, channel_id: str) -> Row[Any]:
    return await fetch_row(
        connection, channels, "channel", channels.c.domain_id == domain_id, channels.c.id == channel_id
    )


async def _check(
    connection: DatabaseConnection, domain_id: str, client_ids: Sequence[str], channel_ids: Sequence[str]
) -> None:
    for table, what, ids in ((clients, "client", client_ids), (channels, "channel", channel_ids)):
        found = await connection.execute(
            select(table.c.id).where(
                table.c.domain_id == domain_id, table.c.status != DELETED, table.c.id.in_(ids)
            )
        )
        if unknown := set(ids) - {row.id for row in found}:
            raise NotFoundError(f"{what}_ids: not in this domain: {', '.join(sorted(unknown))}")


async def _connected(
    connection: DatabaseConnection, client_ids: Sequence[str], channel_ids: Sequence[str]
) -> set[tuple[str, str, str]]:
    rows = await connection.execute(
        select(connections).where(
            connections.c.client_id.in_(client_ids), connections.c.channel_id.in_(channel_ids)
        )
    )
    return {(row.client_id, row.channel_id, row.type) for row in rows}


def _describe(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "domain_id": row.domain_id,
        "status": row.status,
        "created_at": format_seconds(row.created_at),
    }
