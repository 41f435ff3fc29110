"""What the guide's demo needs, made in an identity that runs in this process: a domain, a channel, its clients."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from propeller.errors import ConflictError
from propeller.identity.channels import PUBLISH, SUBSCRIBE
from propeller.identity.clients import NewClient
from propeller.identity.service import Identity
from propeller.identity.tables import Page
from propeller.web.auth import Principal

DOMAIN, CHANNEL = "fl-demo", "fl"
SERVICES = ("manager", "fl-coordinator", "proxy")
PROPLETS = ("proplet-1", "proplet-2", "proplet-3")


@dataclass(frozen=True)
class ClientKey:
    """A client's id and key; the key is the caller's to keep."""

    id: str
    key: str = field(repr=False)


@dataclass(frozen=True)
class Provisioned:
    """The ids of what there is, and each client's key by the client's name."""

    domain_id: str
    channel_id: str
    clients: Mapping[str, ClientKey]


async def provision(identity: Identity) -> Provisioned:
    """Make the guide's domain, channel and clients; a domain or a channel that is there is kept.

    Raises:
        ConflictError: a client exists already.
    """
    domain_id = await _domain(identity)
    channel_id = await _channel(identity, domain_id)
    clients = {name: await _client(identity, domain_id, name) for name in (*SERVICES, *PROPLETS)}
    await identity.channels.connect(
        domain_id, [client.id for client in clients.values()], [channel_id], [PUBLISH, SUBSCRIBE]
    )
    return Provisioned(domain_id, channel_id, clients)


async def _domain(identity: Identity) -> str:
    everyone = Principal("user", role="admin")
    try:
        made = await identity.domains.create(DOMAIN, DOMAIN, "")
    except ConflictError:
        found = await identity.domains.list(Page(name=DOMAIN), everyone)
        made = next(domain for domain in found["domains"] if domain["route"] == DOMAIN)
    return str(made["id"])


async def _channel(identity: Identity, domain_id: str) -> str:
    try:
        made = await identity.channels.create(domain_id, CHANNEL)
    except ConflictError:
        made = (await identity.channels.list(domain_id, Page(name=CHANNEL)))["channels"][0]
    return str(made["id"])


async def _client(identity: Identity, domain_id: str, name: str) -> ClientKey:
    made = await identity.clients.create(domain_id, NewClient(name, tags=["propeller", DOMAIN]))
    return ClientKey(made["id"], made["credentials"]["secret"])
