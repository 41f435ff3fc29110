"""What every client may do, in memory, and changes of that: written, then loaded into memory, then old connections are cut.

Logins and the broker's questions are answered without a query. The identity service is the only writer of its database, so
memory follows each change.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

from sqlalchemy import Row, select, update

from propeller.identity.credentials import key_matches
from propeller.identity.roles import Grant, permissions
from propeller.identity.tables import channels, clients, connections, domains
from propeller.protocol.roles import Role
from propeller.protocol.topics import Channel
from propeller.store.database import Database, DatabaseConnection

_IDS_PER_QUERY = 1000
"""Databases limit the number of parameters."""


@dataclass(frozen=True)
class ClientAccess:
    """What one client may do.

    Attributes:
        client_id: its id, which is its user name on the broker.
        domain_id: of the domain that it belongs to.
        role: what it is.
        key_hash: of its key, empty if it has none any more.
        enabled: whether it and its domain are.
        publish: the ``pub`` of its NATS claims.
        subscribe: the ``sub`` of its NATS claims.
        changed_at: when any of this changed last, in seconds since 1970.
        compat: whether it is a proplet that speaks on shared topics.
        channels: those in which it may publish or subscribe.
        name: what it is called, in its domain it alone.
        tags: those that it was given here.
    """

    client_id: str
    domain_id: str
    role: Role
    key_hash: str
    enabled: bool
    publish: dict[str, Any]
    subscribe: dict[str, Any]
    changed_at: float
    compat: bool = False
    channels: frozenset[Channel] = frozenset()
    name: str = ""
    tags: tuple[str, ...] = ()


class AccessDirectory:
    """Every client's access."""

    def __init__(self) -> None:
        self._access: dict[str, ClientAccess] = {}
        self._run, self._changes = secrets.token_hex(8), 0

    @property
    def version(self) -> str:
        """Another one after each change, and of each process."""
        return f"{self._run}-{self._changes}"

    def get(self, client_id: str) -> ClientAccess | None:
        """A client's access, ``None`` if there is no such client."""
        return self._access.get(client_id)

    def authenticate(self, client_id: str, key: str) -> ClientAccess | None:
        """The access of an enabled client whose key this is."""
        access = self._access.get(client_id)
        if access is None or not access.enabled or not access.key_hash:
            return None
        return access if key_matches(key, access.key_hash) else None

    def compat_proplets(self, channel: Channel) -> list[str]:
        """The ids of the enabled compat proplets in a channel, sorted."""
        return sorted(
            access.client_id
            for access in self._access.values()
            if access.compat and access.enabled and channel in access.channels
        )

    def proplets(self, channel: Channel) -> dict[str, ClientAccess]:
        """The proplets of a channel by their ids, disabled ones too: their names stay theirs."""
        return {
            access.client_id: access
            for access in self._access.values()
            if access.role is Role.PROPLET and channel in access.channels
        }

    def update(self, changed: Iterable[ClientAccess]) -> None:
        """Replace the access of these clients."""
        self._changes += 1
        self._access.update((access.client_id, access) for access in changed)

    def __contains__(self, client_id: str) -> bool:
        return client_id in self._access


async def read_access(
    connection: DatabaseConnection, client_ids: Collection[str] | None = None
) -> list[ClientAccess]:
    """Read the access of some clients, or of all of them, from the database."""
    if client_ids is None:
        every = await connection.execute(select(clients.c.id))
        client_ids = [row.id for row in every]
    found: list[ClientAccess] = []
    ids = iter(client_ids)
    while chunk := list(islice(ids, _IDS_PER_QUERY)):
        found += await _read_chunk(connection, chunk)
    return found


async def _read_chunk(connection: DatabaseConnection, client_ids: list[str]) -> list[ClientAccess]:
    rows = await connection.execute(
        select(clients, domains.c.status.label("domain_status"))
        .join(domains)
        .where(clients.c.id.in_(client_ids))
    )
    connected = await connection.execute(
        select(connections, channels.c.domain_id)
        .join(channels)
        .where(connections.c.client_id.in_(client_ids), channels.c.status == "enabled")
        .order_by(connections.c.channel_id)
    )
    types: dict[str, dict[Channel, set[str]]] = {}
    for row in connected:
        channel = Channel(row.domain_id, row.channel_id)
        types.setdefault(row.client_id, {}).setdefault(channel, set()).add(row.type)
    return [_access(row, types.get(row.id, {})) for row in rows]


def _access(row: Row[Any], types: dict[Channel, set[str]]) -> ClientAccess:
    grants = [Grant(channel, "publish" in found, "subscribe" in found) for channel, found in types.items()]
    publish, subscribe = permissions(row.id, Role(row.role), grants, compat=row.compat)
    enabled = row.status == "enabled" and row.domain_status == "enabled"
    return ClientAccess(
        row.id,
        row.domain_id,
        Role(row.role),
        row.key_hash,
        enabled,
        publish,
        subscribe,
        row.access_changed_at,
        row.compat,
        frozenset(types),
        row.name,
        tuple(row.tags),
    )


class ConnectionCutter(Protocol):
    """What can end the connections of clients (``broker_link.BrokerLink``)."""

    async def cut(self, client_ids: Collection[str]) -> None:
        """End connections that are older than their client's access."""

    def cut_soon(self, client_ids: Collection[str]) -> None:
        """The same, without waiting for it."""


@dataclass
class Change:
    """A change in progress.

    Attributes:
        connection: its transaction.
        added: clients that are new.
        granted: clients that may do more. Rights are given at connect, so they are made to reconnect.
        revoked: clients that may do less: the change ends when their connections have.
    """

    connection: DatabaseConnection
    added: set[str] = field(default_factory=set)
    granted: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)


class AccessChanges:
    """Makes changes of access."""

    def __init__(self, database: Database, directory: AccessDirectory, cutter: ConnectionCutter) -> None:
        self._database, self._directory, self._cutter = database, directory, cutter
        self._lock = asyncio.Lock()

    async def load(self) -> None:
        """Load everyone's access into memory."""
        async with self._database.read() as connection:
            self._directory.update(await read_access(connection))

    @contextlib.asynccontextmanager
    async def change(self) -> AsyncIterator[Change]:
        """A transaction for the block; name in it whose access it changes."""
        async with self._lock:
            async with self._database.transaction() as connection:
                change = Change(connection)
                yield change
                cut = change.granted | change.revoked
                await _record_change_time(connection, cut)
                read = await read_access(connection, cut | change.added)
            # Now, not when it was written: a connection that was let in meanwhile had the old access.
            now = time.time()
            self._directory.update(
                replace(access, changed_at=now) if access.client_id in cut else access for access in read
            )
        if change.revoked:
            await self._cutter.cut(change.revoked)
        if change.granted - change.revoked:
            self._cutter.cut_soon(change.granted - change.revoked)


async def _record_change_time(connection: DatabaseConnection, client_ids: Collection[str]) -> None:
    ids, now = iter(client_ids), time.time()
    while chunk := list(islice(ids, _IDS_PER_QUERY)):
        await connection.execute(update(clients).where(clients.c.id.in_(chunk)).values(access_changed_at=now))
