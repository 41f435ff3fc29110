"""The domain, channel and clients of a stack, made through the identity service's HTTP API."""

from collections.abc import Mapping, Sequence
from typing import Any

from propeller.errors import StartError
from propeller.process.http import ServiceClient, ServiceError, basic_authorization
from propeller.stack.services import CLIENT_NAMES, OPERATOR
from propeller.stack.state_folder import Secrets

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
        self.headers: dict[str, str] = {}
        """What a call carries, once ``login`` has been done."""

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
        self.headers = {"Authorization": f"Bearer {token}"}

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
            answer = await self._services["clients"].request("GET", path, headers=self.headers)
        except ServiceError as error:
            if error.status == 404:
                return None
            raise
        found: Record = answer.json()
        return found

    async def make_client(self, domain_id: str, name: str) -> dict[str, str]:
        """The ``id`` and ``key`` of a new client."""
        body = {"name": name, "status": "enabled"}
        return _pair(await self._post("clients", f"/{domain_id}/clients", body))

    async def new_key(self, domain_id: str, client_id: str) -> dict[str, str]:
        """The ``id`` and a new ``key`` of a client; the old key is good for nothing from now on."""
        return _pair(await self._post("clients", f"/{domain_id}/clients/{client_id}/secret", {}))

    async def set_compat(self, domain_id: str, client_id: str) -> None:
        """Let a proplet speak on the topics that absmach/propeller's share, instead of its own."""
        path = f"/{domain_id}/clients/{client_id}"
        await self._services["clients"].request("PATCH", path, json={"compat": True}, headers=self.headers)

    async def tag_devices(self, domain_id: str, tags: Mapping[str, Sequence[str]]) -> None:
        """See that devices have these tags and no others, by their ids."""
        path = f"/{domain_id}/devices"
        answer = await self._services["clients"].request("GET", path, headers=self.headers)
        for device in answer.json()["devices"]:
            wanted = list(tags.get(device["id"], device["tags"]))
            if device["tags"] != wanted:
                await self._services["clients"].request(
                    "PATCH", f"{path}/{device['id']}", json={"tags": wanted}, headers=self.headers
                )

    async def accepts(self, client_id: str, key: str) -> bool:
        """Whether an id and key are those of a client that may connect."""
        body = {"authorization": basic_authorization(client_id, key)}
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
            answer = await self._services[service].request("GET", path, params=params, headers=self.headers)
            page = answer.json()
            found += page[key]
            if not page[key] or len(found) >= page["total"]:
                return found

    async def _post(self, service: str, path: str, body: Record) -> Record:
        answer = await self._services[service].request(
            "POST", path, json=body, headers=self.headers, retry=False
        )
        made: Record = answer.json()
        return made


def _first(records: list[Record], key: str, value: str) -> Record | None:
    return next((record for record in records if record.get(key) == value), None)


def _pair(client: Record) -> dict[str, str]:
    return {"id": client["id"], "key": client["credentials"]["secret"]}


DOMAIN, CHANNEL = "fl-demo", "fl"


def device_names(proplets: int) -> list[str]:
    """The clients that are proplets."""
    return [f"proplet-{number}" for number in range(1, proplets + 1)]


def client_names(proplets: int) -> list[str]:
    """The clients of a stack with so many proplets: the guide's six for three, and the operator's."""
    return [*CLIENT_NAMES, OPERATOR, *device_names(proplets)]


class Provisioner:
    """Makes what is missing; what is there is kept."""

    def __init__(self, users: str, domains: str, channels: str, clients: str) -> None:
        """The four addresses of the identity service."""
        self._api = IdentityApi(users, domains, channels, clients)

    async def ensure(
        self, secrets: Secrets, proplets: int, tags: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Fill ``secrets`` with the ids and keys of the domain, the channel and every client.

        Args:
            secrets: what is known, and is filled.
            proplets: how many devices the stack runs.
            tags: theirs, by their names; they have no others at identity.

        Raises:
            StartError: identity refuses; the text says what and why.
        """
        try:
            await self._api.login(secrets.admin_username, secrets.admin_password)
            secrets.domain_id = (await find_or_make_domain(self._api))["id"]
            secrets.channel_id = (await find_or_make_channel(self._api, secrets.domain_id))["id"]
            names = client_names(proplets)
            for name in names:
                known = secrets.clients.get(name)
                if known is None or not await self._api.accepts(known["id"], known["key"]):
                    secrets.clients[name] = await self._client(secrets.domain_id, name)
            # All of them, each time: a start that was cut off may have made clients and connected none.
            ids = [secrets.clients[name]["id"] for name in names]
            await self._api.connect(secrets.domain_id, secrets.channel_id, ids)
            tags = tags or {}
            own = {secrets.clients[name]["id"]: tags.get(name, ()) for name in device_names(proplets)}
            await self._api.tag_devices(secrets.domain_id, own)
        except ServiceError as error:
            raise StartError(f"provisioning failed: {error}") from None

    async def aclose(self) -> None:
        """Close every connection."""
        await self._api.aclose()

    async def _client(self, domain_id: str, name: str) -> dict[str, str]:
        """A client whose key is known: a new one, or the one there is with a new key.

        That one was made by a start that was cut off before its key was kept, or its key was revoked since.
        """
        found = await self._api.client(domain_id, name)
        if found is None:
            return await self._api.make_client(domain_id, name)
        return await self._api.new_key(domain_id, found["id"])


async def find_or_make_domain(api: IdentityApi) -> Record:
    """The guide's domain.

    Raises:
        ServiceError: identity refuses, or has it without showing it to this user (409).
    """
    return await api.domain(DOMAIN) or await api.make_domain(DOMAIN)


async def find_or_make_channel(api: IdentityApi, domain_id: str) -> Record:
    """The guide's channel in a domain.

    Raises:
        ServiceError: identity refuses.
    """
    return await api.channel(domain_id, CHANNEL) or await api.make_channel(domain_id, CHANNEL)
