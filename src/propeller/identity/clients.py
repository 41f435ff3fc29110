"""Clients: devices and services, each with an id and a key."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, delete, update
from sqlalchemy.exc import IntegrityError

from propeller.errors import ConflictError, InvalidError
from propeller.identity.access import AccessChanges
from propeller.identity.credentials import hash_key, new_key
from propeller.identity.kept_keys import KeptKeys
from propeller.identity.roles import compat_of, role_of
from propeller.identity.tables import (
    DELETED,
    ENABLED,
    Page,
    clients,
    connections,
    domains,
    fetch_page,
    fetch_row,
    format_seconds,
    join_tokens,
    list_answer,
    new_id,
)
from propeller.protocol.roles import Role
from propeller.store.database import Database, DatabaseConnection

_NEW_KEY = "make a new one (POST /{domain_id}/clients/{id}/secret)"


@dataclass(frozen=True)
class NewClient:
    """A client to be created; where no role is given, ``roles.role_of`` finds it, and ``compat_of`` likewise."""

    name: str
    role: str | None = None
    tags: Sequence[str] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    status: str = ENABLED
    compat: bool | None = None


def new_row(domain_id: str, new: NewClient, *, client_id: str, key_hash: str) -> dict[str, Any]:
    """The row of a new client.

    Raises:
        InvalidError: the role is not one, or a client that is no proplet is to be ``compat``.
    """
    try:
        role = role_of(new.name, new.role, new.metadata, new.tags)
        compat = compat_of(role, new.compat, new.metadata, new.tags)
    except ValueError as error:
        raise InvalidError(str(error)) from None
    now = time.time()
    return {
        "id": client_id,
        "domain_id": domain_id,
        "name": new.name,
        "key_hash": key_hash,
        "role": role.value,
        "compat": compat,
        "tags": list(new.tags),
        "metadata": new.metadata,
        "status": new.status,
        "created_at": now,
        "access_changed_at": now,
    }


class Clients:
    """The clients of every domain. A key is shown once, in the answer that creates it, and only its hash is stored; unless keys are kept."""

    def __init__(self, database: Database, changes: AccessChanges, kept: KeptKeys) -> None:
        """``kept`` are the keys that may be read again."""
        self._database, self._changes, self._kept = database, changes, kept

    async def create(
        self, domain_id: str, new: NewClient, *, client_id: str | None = None, key: str | None = None
    ) -> dict[str, Any]:
        """A new client, with its key; ``client_id`` and ``key`` are for those that are known already.

        Raises:
            NotFoundError: there is no such domain.
            ConflictError: the domain has a client of that name.
            InvalidError: the role is not one, or a client that is no proplet is to be ``compat``.
        """
        key = key or new_key()
        row = new_row(domain_id, new, client_id=client_id or new_id(), key_hash=hash_key(key))
        try:
            async with self._changes.change() as change:
                await fetch_row(change.connection, domains, "domain", domains.c.id == domain_id)
                await change.connection.execute(clients.insert().values(row))
                await self._kept.keep(change.connection, str(row["id"]), key)
                change.added.add(str(row["id"]))
        except IntegrityError:
            shown = (
                "GET /{domain_id}/clients?name= shows its key, if it was kept"
                if self._kept.are_readable
                else f"its key is not shown again: if it is lost, {_NEW_KEY}"
            )
            raise ConflictError(f"a client named {new.name!r} exists in this domain; {shown}") from None
        return _with_key(await self.get(domain_id, str(row["id"])), key)

    async def get(self, domain_id: str, client_id: str) -> dict[str, Any]:
        """One client.

        Raises:
            NotFoundError: there is none in this domain.
        """
        async with self._database.read() as connection:
            row = await fetch_row(connection, clients, "client", *_is_client(domain_id, client_id))
        return _describe(row)

    async def list(self, domain_id: str, page: Page) -> dict[str, Any]:
        """A page of a domain's clients; of those of one name with their keys, where they are kept."""
        async with self._database.read() as connection:
            total, rows = await fetch_page(connection, clients, page, clients.c.domain_id == domain_id)
            shown = [_describe(row) for row in rows]
            if page.name is not None:
                shown = await _describe_with_keys(self._kept, connection, rows)
        return list_answer("clients", page, total, shown)

    async def get_with_key(self, domain_id: str, client_id: str) -> dict[str, Any]:
        """One client, with its key where that is kept.

        Raises:
            NotFoundError: there is none in this domain.
        """
        async with self._database.read() as connection:
            row = await fetch_row(connection, clients, "client", *_is_client(domain_id, client_id))
            [shown] = await _describe_with_keys(self._kept, connection, [row])
        return shown

    async def set_status(self, domain_id: str, client_id: str, status: str) -> dict[str, Any]:
        """Enable or disable a client; a disabled one is cut from the broker.

        Raises:
            NotFoundError: there is none.
        """
        await self._change(domain_id, client_id, {"status": status})
        return await self.get(domain_id, client_id)

    async def set_compat(self, domain_id: str, client_id: str, *, compat: bool) -> dict[str, Any]:
        """Let a proplet speak on shared topics instead of its own, or the other way round; it connects anew.

        Raises:
            NotFoundError: there is none.
            InvalidError: it is no proplet.
        """
        known = await self.get(domain_id, client_id)
        try:
            compat_of(Role(known["role"]), compat, {}, ())
        except ValueError as error:
            raise InvalidError(str(error)) from None
        if known["compat"] == compat:
            return known
        await self._change(domain_id, client_id, {"compat": compat})
        return await self.get(domain_id, client_id)

    async def delete(self, domain_id: str, client_id: str) -> None:
        """Delete a client and cut it from the broker; its name may be used again, its id never.

        Raises:
            NotFoundError: there is none.
        """
        # Nobody can have given another client that name, as they can its id, to keep this one from being deleted.
        await self._change(
            domain_id, client_id, {"status": DELETED, "name": new_id(), "key_hash": ""}, gone=True
        )

    async def rotate_key(self, domain_id: str, client_id: str) -> dict[str, Any]:
        """Give a client a new key, shown once; connections with the old one are cut.

        Raises:
            NotFoundError: there is none.
        """
        key = new_key()
        await self._change(domain_id, client_id, {"key_hash": hash_key(key)}, key=key)
        return _with_key(await self.get(domain_id, client_id), key)

    async def _change(
        self,
        domain_id: str,
        client_id: str,
        values: dict[str, Any],
        *,
        key: str | None = None,
        gone: bool = False,
    ) -> None:
        async with self._changes.change() as change:
            await fetch_row(change.connection, clients, "client", *_is_client(domain_id, client_id))
            await change.connection.execute(update(clients).where(clients.c.id == client_id).values(values))
            if key is not None:
                await self._kept.keep(change.connection, client_id, key)
            if gone:
                await self._kept.forget(change.connection, client_id)
                for table in (connections, join_tokens):
                    await change.connection.execute(delete(table).where(table.c.client_id == client_id))
            change.revoked.add(client_id)


def _is_client(domain_id: str, client_id: str) -> tuple[Any, Any]:
    return clients.c.domain_id == domain_id, clients.c.id == client_id


def _describe(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "domain_id": row.domain_id,
        "role": row.role,
        "compat": row.compat,
        "tags": row.tags,
        "metadata": row.metadata,
        "credentials": {"identity": row.id},
        "status": row.status,
        "created_at": format_seconds(row.created_at),
    }


async def _describe_with_keys(
    kept: KeptKeys, connection: DatabaseConnection, rows: Sequence[Row[Any]]
) -> list[dict[str, Any]]:
    keys = await kept.read(connection, rows)
    described = [
        _with_key(_describe(row), keys[row.id]) if row.id in keys else _describe(row) for row in rows
    ]
    if kept.are_readable:
        for one in described:
            if one["id"] not in keys:
                one["credentials"]["note"] = f"its key was not kept: {_NEW_KEY}"
    return described


def _with_key(shown: dict[str, Any], key: str) -> dict[str, Any]:
    return {**shown, "credentials": {**shown["credentials"], "secret": key}}
