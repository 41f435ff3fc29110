"""What every client may do, in memory: logins and the broker's questions are answered without a query.

The identity service is the only writer of its database, so memory follows each change (``changes.py``).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from propeller.identity.keys import key_matches
from propeller.identity.roles import Grant, Role, permissions
from propeller.identity.tables import channels, clients, connections, domains
from propeller.protocol.topics import Channel

_CHUNK = 1000
"""Ids asked for in one query: databases limit the number of parameters."""


@dataclass(frozen=True)
class Access:
    """What one client may do.

    Attributes:
        client_id: its id, which is its user name on the broker.
        role: what it is.
        key_hash: of its key, empty if it has none any more.
        enabled: whether it and its domain are.
        publish: the ``pub`` of its NATS claims.
        subscribe: the ``sub`` of its NATS claims.
        changed_at: when any of this changed last, in seconds since 1970.
    """

    client_id: str
    role: Role
    key_hash: str
    enabled: bool
    publish: dict[str, Any]
    subscribe: dict[str, Any]
    changed_at: float


class Directory:
    """Every client's access."""

    def __init__(self) -> None:
        self._access: dict[str, Access] = {}

    def get(self, client_id: str) -> Access | None:
        """A client's access, ``None`` if there is no such client."""
        return self._access.get(client_id)

    def authenticate(self, client_id: str, key: str) -> Access | None:
        """The access of an enabled client whose key this is."""
        access = self._access.get(client_id)
        if access is None or not access.enabled or not access.key_hash:
            return None
        return access if key_matches(key, access.key_hash) else None

    def put(self, changed: Iterable[Access]) -> None:
        """Take what has changed."""
        self._access.update((access.client_id, access) for access in changed)

    def __contains__(self, client_id: str) -> bool:
        return client_id in self._access


async def read_access(connection: AsyncConnection, client_ids: Collection[str] | None = None) -> list[Access]:
    """Read the access of some clients, or of all of them, from the database."""
    if client_ids is None:
        every = await connection.execute(select(clients.c.id))
        client_ids = [row.id for row in every]
    found: list[Access] = []
    ids = iter(client_ids)
    while chunk := list(islice(ids, _CHUNK)):
        found += await _read_chunk(connection, chunk)
    return found


async def _read_chunk(connection: AsyncConnection, client_ids: list[str]) -> list[Access]:
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


def _access(row: Row[Any], types: dict[Channel, set[str]]) -> Access:
    grants = [Grant(channel, "publish" in found, "subscribe" in found) for channel, found in types.items()]
    publish, subscribe = permissions(row.id, Role(row.role), grants)
    enabled = row.status == "enabled" and row.domain_status == "enabled"
    return Access(row.id, Role(row.role), row.key_hash, enabled, publish, subscribe, row.access_changed_at)
