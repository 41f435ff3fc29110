"""What the guide's demo needs, made in an identity that runs in this process: a domain, a channel, its clients."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from propeller.identity.channels import PUBLISH, SUBSCRIBE
from propeller.identity.clients import NewClient
from propeller.identity.records import Page
from propeller.identity.service import Identity
from propeller.web.auth import Principal
from propeller.web.errors import ConflictError, NotFoundError

DOMAIN, CHANNEL = "fl-demo", "fl"
SERVICES = ("manager", "fl-coordinator", "proxy")


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


async def provision(
    identity: Identity, *, proplets: int = 3, known: Mapping[str, ClientKey] | None = None
) -> Provisioned:
    """Make the guide's domain, channel and clients; what is there is kept.

    Args:
        identity: where to make them.
        proplets: how many clients ``proplet-1`` … to make.
        known: clients made before, by name. One that identity has forgotten is made again with the same id and key.

    Returns:
        Everything, the known and the new.

    Raises:
        ConflictError: a client exists whose key is not known: rotate its key or delete it.
    """
    domain_id = await _domain(identity)
    channel_id = await _channel(identity, domain_id)
    names = [*SERVICES, *(f"proplet-{number}" for number in range(1, proplets + 1))]
    clients = {name: await _client(identity, domain_id, name, (known or {}).get(name)) for name in names}
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


async def _client(identity: Identity, domain_id: str, name: str, known: ClientKey | None) -> ClientKey:
    if known is not None:
        try:
            await identity.clients.get(domain_id, known.id)
        except NotFoundError:
            if known.id in identity.directory:  # deleted by someone: its id is not used again
                known = None
        else:
            return known
    new = NewClient(name, tags=["propeller", DOMAIN])
    made = await identity.clients.create(
        domain_id, new, client_id=known.id if known else None, key=known.key if known else None
    )
    return ClientKey(made["id"], made["credentials"]["secret"])
