"""What of identity is about one domain: which it is, and its lists page by page."""

from typing import Any

from propeller.errors import NotFoundError
from propeller.sdk.addresses import Login
from propeller.sdk.connection import Connection

_PAGE = 1000


class DomainRequests:
    """Requests of identity about the stack's domain.

    The operator's key of ``stack.json`` is no user's: of a stack on this machine its first user asks.
    """

    def __init__(self, connection: Connection) -> None:
        """Use the identity service of ``connection``."""
        self.connection = connection.as_user(_first_user(connection))

    async def find(self) -> dict[str, Any]:
        """The stack's domain: of one elsewhere the only one that the user has.

        Raises:
            NotFoundError: there is none, or it is not clear which is meant.
        """
        known = self.connection.stack.get("domain_id")
        every = await self.pages("identity", "/domains", "domains")
        found = [one for one in every if known in (None, one["id"])]
        if len(found) != 1:
            names = ", ".join(one["route"] for one in found) or "none"
            raise NotFoundError(f"which domain is meant is not clear: there are {names}")
        return found[0]

    async def pages(self, service: str, path: str, kind: str) -> list[dict[str, Any]]:
        """All of a list that a service gives in pages."""
        found: list[dict[str, Any]] = []
        while True:
            params = {"offset": len(found), "limit": _PAGE}
            page = await self.connection.ask("GET", service, path, params=params)
            found += page[kind]
            if not page[kind] or len(found) >= page["total"]:
                return found

    async def ask(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of identity's answer; ``options`` are httpx's."""
        return await self.connection.ask(method, "identity", path, **options)


def _first_user(connection: Connection) -> Login | None:
    admin = connection.stack.get("admin")
    return Login(connection.urls["identity"], admin["username"], admin["password"]) if admin else None
