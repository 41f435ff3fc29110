"""What provisioning asks of the identity service, as a user who may manage a domain."""

import base64
from typing import Any

from propeller.process.http import ServiceClient, ServiceError

TAGS = ("propeller", "fl-demo")

Record = dict[str, Any]
"""A domain, channel or client as identity answers it: ``id``, ``name``, ``status`` and more."""


class IdentityApi:
    """Calls to the identity service; ``login`` comes before the rest.

    Every method raises ``ServiceError`` where identity refuses or does not answer.
    """

    def __init__(
        self, users: str, domains: str, channels: str, clients: str, *, timeout: float = 30.0
    ) -> None:
        """The service's four addresses, which may be one; ``timeout`` in seconds a try."""
        urls = {"users": users, "domains": domains, "channels": channels, "clients": clients}
        self._services = {name: ServiceClient("identity", url, timeout=timeout) for name, url in urls.items()}
        self._headers: dict[str, str] = {}

    async def aclose(self) -> None:
        """Close every connection."""
        for service in self._services.values():
            await service.aclose()

    async def login(self, username: str, password: str) -> None:
        """Make the calls that follow in the name of this user."""
        body = {"username": username, "password": password}
        answer = await self._services["users"].request("POST", "/users/tokens/issue", json=body)
        try:
            token = answer.json()["access_token"]
        except (ValueError, TypeError, LookupError):
            raise ServiceError(
                "identity", answer.status_code, "there is no access_token in its answer"
            ) from None
        self._headers = {"Authorization": f"Bearer {token}"}

    async def domain(self, route: str) -> Record | None:
        """The domain with this route, else the one with this name."""
        every = await self._listed("domains", "/domains", "domains")
        return _first(every, "route", route) or _first(every, "name", route)

    async def make_domain(self, route: str) -> Record:
        """A new domain."""
        return await self._post("domains", "/domains", {"name": route, "route": route})

    async def channel(self, domain_id: str, name: str) -> Record | None:
        """The channel of this name in a domain."""
        return _first(
            await self._listed("channels", f"/{domain_id}/channels", "channels", name), "name", name
        )

    async def make_channel(self, domain_id: str, name: str) -> Record:
        """A new channel."""
        return await self._post("channels", f"/{domain_id}/channels", {"name": name, "status": "enabled"})

    async def client(self, domain_id: str, name: str) -> Record | None:
        """The client of this name in a domain; its key is not shown."""
        return _first(await self._listed("clients", f"/{domain_id}/clients", "clients", name), "name", name)

    async def client_by_id(self, domain_id: str, client_id: str) -> Record | None:
        """The client with this id in a domain; its key is not shown."""
        path = f"/{domain_id}/clients/{client_id}"
        try:
            answer = await self._services["clients"].request("GET", path, headers=self._headers)
        except ServiceError as error:
            if error.status == 404:
                return None
            raise
        found: Record = answer.json()
        return found

    async def make_client(self, domain_id: str, name: str) -> dict[str, str]:
        """The ``id`` and ``key`` of a new client."""
        body = {"name": name, "tags": TAGS, "status": "enabled"}
        return _pair(await self._post("clients", f"/{domain_id}/clients", body))

    async def new_key(self, domain_id: str, client_id: str) -> dict[str, str]:
        """The ``id`` and a new ``key`` of a client; the old key is good for nothing from now on."""
        return _pair(await self._post("clients", f"/{domain_id}/clients/{client_id}/secret", {}))

    async def accepts(self, client_id: str, key: str) -> bool:
        """Whether an id and key are those of a client that may connect."""
        basic = base64.b64encode(f"{client_id}:{key}".encode()).decode()
        body = {"authorization": f"Basic {basic}"}
        try:
            await self._services["users"].request("POST", "/auth/verify", json=body)
        except ServiceError as error:
            if error.status in {400, 401}:  # 400: no client's id or key can be written like that
                return False
            raise
        return True

    async def connect(self, domain_id: str, channel_id: str, client_ids: list[str]) -> None:
        """Let clients publish and subscribe on a channel; those that may already keep it."""
        body = {"client_ids": client_ids, "channel_ids": [channel_id], "types": ["publish", "subscribe"]}
        await self._post("channels", f"/{domain_id}/channels/connect", body)

    async def _listed(self, service: str, path: str, key: str, name: str | None = None) -> list[Record]:
        """Every record of a list, page by page; those of one name only if it is given."""
        found: list[Record] = []
        while True:
            params = {"offset": len(found), "limit": 1000} | ({} if name is None else {"name": name})
            answer = await self._services[service].request("GET", path, params=params, headers=self._headers)
            page = answer.json()
            found += page[key]
            if not page[key] or len(found) >= page["total"]:
                return found

    async def _post(self, service: str, path: str, body: Record) -> Record:
        answer = await self._services[service].request(
            "POST", path, json=body, headers=self._headers, retry=False
        )
        made: Record = answer.json()
        return made


def _first(records: list[Record], key: str, value: str) -> Record | None:
    return next((record for record in records if record.get(key) == value), None)


def _pair(client: Record) -> dict[str, str]:
    return {"id": client["id"], "key": client["credentials"]["secret"]}
