"""The people who may use a stack, and as what."""

from typing import Any

from propeller.errors import InvalidError, NotFoundError
from propeller.sdk.connection import Connection
from propeller.sdk.domain import DomainRequests
from propeller.sdk.transport import Blocking, blocking

ROLES = ("viewer", "operator", "admin")


class AsyncUsers:
    """The users of a stack's domain: ``viewer``, ``operator`` or ``admin``. Only an admin may change them.

    The operator's key of ``stack.json`` is no user's: of a stack on this machine its first user does this.
    """

    def __init__(self, connection: Connection) -> None:
        """Use the identity service of ``connection``."""
        self._requests = DomainRequests(connection)
        self._connection = self._requests.connection

    def __repr__(self) -> str:
        """Shows where they are."""
        return f"<{type(self).__name__} of {self._connection.urls['identity']}>"

    async def add(self, username: str, password: str, role: str) -> dict[str, Any]:
        """A new user with a role in this domain.

        Raises:
            ConflictError: there is one of that name.
            InvalidError: the password is too short, or the role is not one.
        """
        _check_role(role)
        made = await self._requests.ask("POST", "/users", json={"username": username, "password": password})
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
        path = f"/domains/{(await self._requests.find())['id']}/members/{user_id}"
        await self._connection.send("DELETE", "identity", path)

    async def enable(self, username: str, *, enabled: bool = True) -> None:
        """Let a user log in, or not any more: a disabled user's tokens are good for nothing at once.

        Raises:
            NotFoundError: there is no such user.
        """
        switch = "enable" if enabled else "disable"
        await self._requests.ask("POST", f"/users/{(await self._find(username))['id']}/{switch}")

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
        path = f"/domains/{(await self._requests.find())['id']}/members/{user_id}"
        await self._requests.ask("PUT", path, json={"role": role})

    async def _find(self, username: str) -> dict[str, Any]:
        for one in await self._requests.pages("identity", "/users", "users"):
            if one["credentials"]["username"] == username:
                return one
        raise NotFoundError(f"there is no user {username!r}")

    async def list(self) -> list[dict[str, Any]]:
        """Every user: ``username``, ``id``, ``status``, and ``role`` in this domain, ``None`` without one.

        Raises:
            PropellerError: the caller may not see them.
        """
        domain = await self._requests.find()
        members = (await self._requests.ask("GET", f"/domains/{domain['id']}/members"))["members"]
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
            for one in await self._requests.pages("identity", "/users", "users")
        ]


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise InvalidError(f"role: {role!r} is not one of {', '.join(ROLES)}")


class Users(Blocking[AsyncUsers]):
    """The users of a stack's domain; the methods are described at ``AsyncUsers``."""

    list = blocking(AsyncUsers.list)
    add = blocking(AsyncUsers.add)
    set_role = blocking(AsyncUsers.set_role)
    enable = blocking(AsyncUsers.enable)
    change_password = blocking(AsyncUsers.change_password)
