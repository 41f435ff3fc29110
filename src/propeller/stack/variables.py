"""The variables of an ``.env`` file by which the guide's services know who they are and where they work."""

from collections.abc import Iterable, Mapping
from typing import Any

from propeller.stack.services import SERVICES

_PREFIXES = {spec.client: spec.prefix for spec in SERVICES if spec.client}

GUIDE_CLIENTS = ("manager", "proplet-1", "proplet-2", "proplet-3", "fl-coordinator", "proxy")
"""The clients of the guide, by the names that identity knows them by."""

DOMAIN_VARIABLES = ("MANAGER_DOMAIN_ID", "PROPLET_DOMAIN_ID", "PROXY_DOMAIN_ID")
CHANNEL_VARIABLES = ("MANAGER_CHANNEL_ID", "PROPLET_CHANNEL_ID", "PROXY_CHANNEL_ID")

GUIDE_PROPLETS = ("proplet-1", "proplet-2", "proplet-3")

READERS = " ".join(
    container
    for spec in SERVICES
    for container in (("proplet", *GUIDE_PROPLETS[1:]) if spec.is_device else (spec.container_name,))
    if spec.is_device or spec.client or spec.reads_proplets
)
"""The containers of deploy/compose.yaml that read them."""

_ID_LENGTH = len("3fe95a65-74f1-4ede-bf20-ef565f04cecb")


def shown_id(value: str) -> str:
    """An id, or the beginning of what stands in its place: it may be a key."""
    return value if len(value) <= _ID_LENGTH else f"{value[:8]}…"


def prefix_of(client: str) -> str:
    """What a client's variables begin with: ``MANAGER``, ``PROPLET`` for ``proplet-1``, ``PROPLET_2`` for the next."""
    return _PREFIXES.get(client) or client.upper().replace("-", "_").removesuffix("_1")


def id_variable(client: str) -> str:
    """The variable that holds a client's id."""
    return f"{prefix_of(client)}_CLIENT_ID"


def key_variable(client: str) -> str:
    """The variable that holds a client's key."""
    return f"{prefix_of(client)}_CLIENT_KEY"


def client_variables(names: Iterable[str]) -> list[str]:
    """The variables of some clients, ids and keys in turn."""
    return [variable(name) for name in names for variable in (id_variable, key_variable)]


GUIDE_VARIABLES = (*DOMAIN_VARIABLES, *CHANNEL_VARIABLES, *client_variables(GUIDE_CLIENTS))
"""All eighteen."""


def env_values(domain_id: str, channel_id: str, clients: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The variables with their values; ``clients`` holds ``id`` and ``key`` of each client by its name."""
    values = dict.fromkeys(DOMAIN_VARIABLES, domain_id) | dict.fromkeys(CHANNEL_VARIABLES, channel_id)
    for name, client in clients.items():
        values |= {id_variable(name): client["id"], key_variable(name): client["key"]}
    return values
