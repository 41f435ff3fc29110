"""The domain, channel and clients of a stack, made through the identity service's HTTP API."""

from propeller.process.http import ServiceError
from propeller.process.run import StartError
from propeller.stack.identity_api import IdentityApi, Record
from propeller.stack.services import CLIENT_NAMES
from propeller.stack.state_folder import Secrets

DOMAIN, CHANNEL = "fl-demo", "fl"


def device_names(proplets: int) -> list[str]:
    """The clients that are proplets."""
    return [f"proplet-{number}" for number in range(1, proplets + 1)]


def client_names(proplets: int) -> list[str]:
    """The clients of a stack with so many proplets: the guide's six for three."""
    return [*CLIENT_NAMES, *device_names(proplets)]


class Provisioner:
    """Makes what is missing; what is there is kept."""

    def __init__(self, users: str, domains: str, channels: str, clients: str) -> None:
        """The four addresses of the identity service."""
        self._api = IdentityApi(users, domains, channels, clients)

    async def ensure(self, secrets: Secrets, proplets: int) -> None:
        """Fill ``secrets`` with the ids and keys of the domain, the channel and every client.

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
