"""The people who may use a stack, and as what."""

from typing import Any

from propeller.errors import InvalidError, NotFoundError
from propeller.sdk.addresses import Login
from propeller.sdk.connection import Connection
from propeller.sdk.transport import Blocking, blocking

ROLES = ("viewer", "operator", "admin")

_PAGE = 1000


class AsyncUsers:
    """The users of a stack's domain: ``viewer``, ``operator`` or ``admin``. Only an admin may change them.

    The operator's key of ``stack.json`` is no user's: of a stack on this machine its first user does this.
    """

    def __init__(self, connection: Connection) -> None:
        """Use the identity service of ``connection``."""
        self._connection = connection.as_user(_first_user(connection))

    async def add(self, username: str, password: str, role: str) -> dict[str, Any]:
        """A new user with a role in this domain.

        Raises:
            ConflictError: there is one of that name.
            InvalidError: the password is too short, or the role is not one.
        """
        _check_role(role)
        made = await self._ask("POST", "/users", json={"username": username, "password": password})
        await self._put(made["id"], role)
        return {"username": username, "id": made["id"], "status": made["status"], "role": role}

    async def set_role(self, username: str, role: str | None) -> None:
        """Give a user another role in this domain; ``None`` for none any more.

        Raises:
            NotFoundError: there is no such user.
            InvalidError: the role is not one.
        """
        if role is not None:
            _check_role(role)
        user_id = (await self._find(username))["id"]
        if role is not None:
            await self._put(user_id, role)
            return
        path = f"/domains/{(await self._domain())['id']}/members/{user_id}"
        await self._connection.send("DELETE", "identity", path)

    async def enable(self, username: str, *, enabled: bool = True) -> None:
        """Let a user log in, or not any more: a disabled user's tokens are good for nothing at once.

        Raises:
            NotFoundError: there is no such user.
        """
        switch = "enable" if enabled else "disable"
        await self._ask("POST", f"/users/{(await self._find(username))['id']}/{switch}")

    async def change_password(self, password: str) -> None:
        """Give the calling user another password; every login of theirs ends, and this client goes on with the new one.

        Raises:
            InvalidError: it is too short; or nobody is logged in: the first user's is the stack's own.
        """
        login = self._connection.login
        if login is None or self._connection.stack.get("admin"):
            raise InvalidError(
                "a user changes their own password, with --url and --user (in Python url= and user=); that of a stack's first user "
                "is IDENTITY_ADMIN_PASSWORD"
            )
        secrets = {"old_secret": login.password, "new_secret": password}
        await self._connection.send("PATCH", "identity", "/users/secret", json=secrets)
        login.password = password

    async def _put(self, user_id: str, role: str) -> None:
        path = f"/domains/{(await self._domain())['id']}/members/{user_id}"
        await self._ask("PUT", path, json={"role": role})

    async def _find(self, username: str) -> dict[str, Any]:
        for one in await self._pages("/users", "users"):
            if one["credentials"]["username"] == username:
                return one
        raise NotFoundError(f"there is no user {username!r}")

    async def _domain(self) -> dict[str, Any]:
        """The stack's domain: of one elsewhere the only one that the user has."""
        known = self._connection.stack.get("domain_id")
        every = await self._pages("/domains", "domains")
        found = [one for one in every if known in (None, one["id"])]
        if len(found) != 1:
            names = ", ".join(one["route"] for one in found) or "none"
            raise NotFoundError(f"which domain is meant is not clear: there are {names}")
        return found[0]

    async def _pages(self, path: str, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = await self._ask("GET", path, params={"offset": len(found), "limit": _PAGE})
            found += page[kind]
            if not page[kind] or len(found) >= page["total"]:
                return found

    async def _ask(self, method: str, path: str, **options: Any) -> Any:
        return await self._connection.ask(method, "identity", path, **options)

    async def list(self) -> list[dict[str, Any]]:
        """Every user: ``username``, ``id``, ``status``, and ``role`` in this domain, ``None`` without one.

        Raises:
            PropellerError: the caller may not see them.
        """
        domain = await self._domain()
        members = (await self._ask("GET", f"/domains/{domain['id']}/members"))["members"]
        roles = {one["user_id"]: one["role"] for one in members}
        return [
            {
                "username": one["credentials"]["username"],
                "id": one["id"],
                "status": one["status"],
                "role": "admin"
                if one["role"] == "admin" or one["id"] == domain["created_by"]
                else roles.get(one["id"]),
            }
            for one in await self._pages("/users", "users")
        ]


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise InvalidError(f"role: {role!r} is not one of {', '.join(ROLES)}")


def _first_user(connection: Connection) -> Login | None:
    admin = connection.stack.get("admin")
    return Login(connection.urls["identity"], admin["username"], admin["password"]) if admin else None


class Users(Blocking[AsyncUsers]):
    """The users of a stack's domain; the methods are described at ``AsyncUsers``."""

    list = blocking(AsyncUsers.list)
    add = blocking(AsyncUsers.add)
    set_role = blocking(AsyncUsers.set_role)
    enable = blocking(AsyncUsers.enable)
    change_password = blocking(AsyncUsers.change_password)
