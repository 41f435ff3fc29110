"""The domain, channel and clients of a stack, made through the identity service's HTTP API."""

from collections.abc import Sequence
from typing import Any

from propeller.process.http import ServiceClient, ServiceError
from propeller.process.run import StartError
from propeller.stack.state import Secrets

DOMAIN, CHANNEL = "fl-demo", "fl"
SERVICE_NAMES = ("manager", "fl-coordinator", "proxy")


def device_names(proplets: int) -> list[str]:
    """The clients that are proplets."""
    return [f"proplet-{number}" for number in range(1, proplets + 1)]


def client_names(proplets: int) -> list[str]:
    """The clients of a stack with so many proplets: the guide's six for three."""
    return [*SERVICE_NAMES, *device_names(proplets)]


class Provisioner:
    """Makes what is missing; what is there is kept."""

    def __init__(self, users: str, domains: str, channels: str, clients: str) -> None:
        """The four addresses of the identity service."""
        self._users, self._domains = ServiceClient("identity", users), ServiceClient("identity", domains)
        self._channels, self._clients = (
            ServiceClient("identity", channels),
            ServiceClient("identity", clients),
        )
        self._headers: dict[str, str] = {}

    async def ensure(self, secrets: Secrets, proplets: int) -> None:
        """Fill ``secrets`` with the ids and keys of the domain, the channel and every client.

        Raises:
            StartError: identity refuses; the text says what and why.
        """
        try:
            await self._login(secrets)
            secrets.domain_id = secrets.domain_id or await self._domain()
            secrets.channel_id = secrets.channel_id or await self._channel(secrets.domain_id)
            names = client_names(proplets)
            for name in names:
                if name not in secrets.clients:
                    secrets.clients[name] = await self._client(secrets.domain_id, name)
            # All of them, each time: a start that was cut off may have made clients and connected none.
            await self._connect(secrets, [secrets.clients[name]["id"] for name in names])
        except ServiceError as error:
            raise StartError(f"provisioning failed: {error}") from None

    async def aclose(self) -> None:
        """Close every connection."""
        for client in (self._users, self._domains, self._channels, self._clients):
            await client.aclose()

    async def _login(self, secrets: Secrets) -> None:
        body = {"username": secrets.admin_username, "password": secrets.admin_password}
        answer = await self._users.request("POST", "/users/tokens/issue", json=body)
        self._headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}

    async def _domain(self) -> str:
        return await self._made_or_found(
            self._domains, "/domains", {"name": DOMAIN, "route": DOMAIN}, "domains"
        )

    async def _channel(self, domain: str) -> str:
        body = {"name": CHANNEL, "status": "enabled"}
        return await self._made_or_found(self._channels, f"/{domain}/channels", body, "channels")

    async def _client(self, domain: str, name: str) -> dict[str, str]:
        body = {"name": name, "tags": ["propeller", DOMAIN], "status": "enabled"}
        path = f"/{domain}/clients"
        try:
            client = await self._post(self._clients, path, body)
        except ServiceError as error:
            if error.status != 409:
                raise
            # Made by a start that was cut off before its key was kept: nobody has that key.
            known = await self._found(self._clients, path, name, "clients")
            client = await self._post(self._clients, f"{path}/{known}/secret", {})
        return {"id": client["id"], "key": client["credentials"]["secret"]}

    async def _connect(self, secrets: Secrets, clients: Sequence[str]) -> None:
        body = {
            "client_ids": list(clients),
            "channel_ids": [secrets.channel_id],
            "types": ["publish", "subscribe"],
        }
        await self._post(self._channels, f"/{secrets.domain_id}/channels/connect", body)

    async def _made_or_found(self, service: ServiceClient, path: str, body: dict[str, Any], key: str) -> str:
        try:
            made = await self._post(service, path, body)
        except ServiceError as error:
            if error.status not in {400, 409}:
                raise
            return await self._found(service, path, body["name"], key)
        return str(made["id"])

    async def _found(self, service: ServiceClient, path: str, name: str, key: str) -> str:
        answer = await service.request("GET", path, params={"name": name}, headers=self._headers)
        for item in answer.json()[key]:
            if item.get("name") == name:
                return str(item["id"])
        raise StartError(f"identity has something named {name!r} that it does not list under {path}")

    async def _post(self, service: ServiceClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await service.request("POST", path, json=body, headers=self._headers, retry=False)
        made: dict[str, Any] = answer.json() if answer.content else {}
        return made
