"""Domains: each with its own clients and channels, managed by the user who made it and by admins."""

import time
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.exc import IntegrityError

from propeller.errors import ConflictError, PropellerError, RefusedError
from propeller.identity.access import AccessChanges
from propeller.identity.tables import (
    ENABLED,
    Page,
    clients,
    domains,
    fetch_page,
    fetch_row,
    format_seconds,
    list_answer,
    new_id,
)
from propeller.identity.users import ADMIN
from propeller.protocol.roles import Role
from propeller.store.database import Database
from propeller.web.auth import Principal


class Domains:
    """The domains."""

    def __init__(self, database: Database, changes: AccessChanges) -> None:
        self._database, self._changes = database, changes

    async def create(
        self, name: str, route: str, created_by: str, *, domain_id: str | None = None
    ) -> dict[str, Any]:
        """A new domain; ``domain_id`` is for one that is known already.

        Raises:
            ConflictError: there is one with that route.
        """
        row = {
            "id": domain_id or new_id(),
            "name": name,
            "route": route,
            "status": ENABLED,
            "created_by": created_by,
            "created_at": time.time(),
        }
        try:
            async with self._database.transaction() as connection:
                await connection.execute(domains.insert().values(row))
        except IntegrityError:
            raise ConflictError(f"a domain with the route {route!r} exists") from None
        return await self.get(str(row["id"]))

    async def get(self, domain_id: str) -> dict[str, Any]:
        """One domain.

        Raises:
            NotFoundError: there is none.
        """
        async with self._database.read() as connection:
            return _describe(await fetch_row(connection, domains, "domain", domains.c.id == domain_id))

    async def list(self, page: Page, user: Principal) -> dict[str, Any]:
        """A page of the domains that a user may manage."""
        own = [] if user.role == ADMIN else [domains.c.created_by == user.id]
        async with self._database.read() as connection:
            total, rows = await fetch_page(connection, domains, page, *own)
        return list_answer("domains", page, total, [_describe(row) for row in rows])

    async def check(self, domain_id: str, user: Principal) -> None:
        """See that a user may manage a domain.

        Raises:
            NotFoundError: there is no such domain.
            RefusedError: it is another user's.
        """
        domain = await self.get(domain_id)
        if user.role != ADMIN and domain["created_by"] != user.id:
            raise RefusedError("only the user who made the domain, or an admin, may manage it")

    async def member(self, domain_id: str, user: Principal) -> Principal:
        """A user with the role that they have in a domain.

        Raises:
            RefusedError: they have none.
        """
        try:
            await self.check(domain_id, user)
        except PropellerError:
            raise RefusedError(f"user {user.id} is not a member of this domain") from None
        return Principal("user", user.id, Role.ADMIN, domain_id)

    async def set_status(self, domain_id: str, status: str) -> dict[str, Any]:
        """Enable or disable a domain; in a disabled one no client may connect.

        Raises:
            NotFoundError: there is none.
        """
        async with self._changes.change() as change:
            await fetch_row(change.connection, domains, "domain", domains.c.id == domain_id)
            await change.connection.execute(
                update(domains).where(domains.c.id == domain_id).values(status=status)
            )
            members = await change.connection.execute(
                select(clients.c.id).where(clients.c.domain_id == domain_id)
            )
            change.revoked.update(row.id for row in members)
        return await self.get(domain_id)


def _describe(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "route": row.route,
        "status": row.status,
        "created_by": row.created_by,
        "created_at": format_seconds(row.created_at),
    }
