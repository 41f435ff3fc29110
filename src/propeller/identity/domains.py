"""Domains: each with its own clients, channels and members, managed by the user who made it and by its admins."""

import time
from typing import Any

from sqlalchemy import Row, delete, or_, select, update
from sqlalchemy.exc import IntegrityError

from propeller.errors import ConflictError, NotFoundError, RefusedError
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
    members,
    new_id,
    users,
)
from propeller.identity.users import ADMIN
from propeller.protocol.roles import CONTROL, Role
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
        """A page of the domains that a user made or is a member of; of an admin all."""
        joined = select(members.c.domain_id).where(members.c.user_id == user.id)
        own = [] if user.role == ADMIN else [or_(domains.c.created_by == user.id, domains.c.id.in_(joined))]
        async with self._database.read() as connection:
            total, rows = await fetch_page(connection, domains, page, *own)
        return list_answer("domains", page, total, [_describe(row) for row in rows])

    async def check(self, domain_id: str, user: Principal) -> None:
        """See that a user may manage a domain.

        Raises:
            NotFoundError: there is no such domain.
            RefusedError: it is another user's.
        """
        if await self._role(domain_id, user) != Role.ADMIN:
            raise RefusedError("only the user who made the domain, or one of its admins, may manage it")

    async def check_operator(self, domain_id: str, user: Principal) -> None:
        """See that a user may add devices to a domain, and remove them: its operators may, too.

        Raises:
            NotFoundError: there is no such domain.
            RefusedError: the user is neither an operator nor an admin of it.
        """
        if await self._role(domain_id, user) not in CONTROL:
            raise RefusedError(
                "only an operator or an admin of the domain may add, change and remove devices"
            )

    async def member(self, domain_id: str, user: Principal) -> Principal:
        """A user with the role that they have in a domain.

        Raises:
            RefusedError: they have none.
        """
        try:
            role = await self._role(domain_id, user)
        except NotFoundError:
            role = None
        if role is None:
            raise RefusedError(f"user {user.id} is not a member of this domain")
        return Principal("user", user.id, role, domain_id, user.name)

    async def _role(self, domain_id: str, user: Principal) -> str | None:
        async with self._database.read() as connection:
            domain = await fetch_row(connection, domains, "domain", domains.c.id == domain_id)
            if user.role == ADMIN or domain.created_by == user.id:
                return Role.ADMIN
            found = await connection.execute(select(members.c.role).where(*_is_member(domain_id, user.id)))
            return found.scalar_one_or_none()

    async def members(self, domain_id: str) -> dict[str, Any]:
        """Who is a member of a domain, and as what, by name."""
        async with self._database.read() as connection:
            found = await connection.execute(
                select(users.c.username, members)
                .join(users)
                .where(members.c.domain_id == domain_id)
                .order_by(users.c.username)
            )
            every = [{"user_id": one.user_id, "username": one.username, "role": one.role} for one in found]
        return {"members": every}

    async def put_member(self, domain_id: str, user_id: str, role: str) -> None:
        """Make a user a member of a domain, or give one another role.

        Raises:
            NotFoundError: there is no such user or domain.
        """
        async with self._database.transaction() as connection:
            await fetch_row(connection, domains, "domain", domains.c.id == domain_id)
            await fetch_row(connection, users, "user", users.c.id == user_id)
            await connection.execute(delete(members).where(*_is_member(domain_id, user_id)))
            await connection.execute(members.insert().values(domain_id=domain_id, user_id=user_id, role=role))

    async def remove_member(self, domain_id: str, user_id: str) -> None:
        """Have a user be a member no more.

        Raises:
            NotFoundError: it is none.
        """
        async with self._database.transaction() as connection:
            gone = await connection.execute(delete(members).where(*_is_member(domain_id, user_id)))
        if gone.rowcount == 0:
            raise NotFoundError("member not found")

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


def _is_member(domain_id: str, user_id: str) -> tuple[Any, Any]:
    return members.c.domain_id == domain_id, members.c.user_id == user_id


def _describe(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "route": row.route,
        "status": row.status,
        "created_by": row.created_by,
        "created_at": format_seconds(row.created_at),
    }
