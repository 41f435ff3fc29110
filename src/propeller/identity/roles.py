"""The roles of clients, and what each may publish and subscribe to on the broker.

Rules are written as MQTT topic filters and handed to nats-server as NATS subjects. There, ``/`` is ``.``, ``+`` is
``*`` (always a whole level), ``#`` is ``>`` (without the parent level, which ``x/#`` includes in MQTT), and a dot
inside a level is ``//``.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from propeller.protocol.topics import ROUND_NEXT, ROUND_START, ROUND_STOP, UPDATES_FILTER, Channel, Kind


class Role(StrEnum):
    """The role of a client."""

    MANAGER = "manager"
    COORDINATOR = "coordinator"
    PROXY = "proxy"
    PROPLET = "proplet"
    DEVICE = "device"


_NAMES = (
    (re.compile(r"manager(-.*)?"), Role.MANAGER),
    (re.compile(r"(fl-)?coordinator(-.*)?"), Role.COORDINATOR),
    (re.compile(r"proxy(-.*)?"), Role.PROXY),
    (re.compile(r"proplet(-.*)?"), Role.PROPLET),
)

NOTHING: dict[str, Any] = {"deny": [">"]}
"""The permissions of a client without rights: an empty list would allow everything."""

DATA = "data"
"""The level of a channel that is left to devices."""


def role_of(name: str, role: str | None, metadata: dict[str, Any], tags: Iterable[str]) -> Role:
    """The role of a new client: as given, by ``metadata.role`` or a tag ``role:…``, else by its name.

    The names are the guide's: ``manager``, ``fl-coordinator``, ``proxy``, ``proplet``, each also followed by ``-`` and
    more (``proplet-1``). Whatever else it is called, it is a device.

    Raises:
        ValueError: the role that was given is not one.
    """
    given = role or metadata.get("role") or next((tag[5:] for tag in tags if tag.startswith("role:")), None)
    if given is not None:
        try:
            return Role(given)
        except ValueError:
            raise ValueError(f"role: {given!r} is not one of {', '.join(Role)}") from None
    return next((found for pattern, found in _NAMES if pattern.fullmatch(name)), Role.DEVICE)


@dataclass(frozen=True)
class Grant:
    """A connection of a client to a channel: which, and what it allows."""

    channel: Channel
    publish: bool
    subscribe: bool


def permissions(client_id: str, role: Role, grants: Iterable[Grant]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a client may publish and subscribe to, as the ``pub`` and ``sub`` of a NATS user's claims.

    Topics without a channel prefix belong to whoever may use the same ones in some channel.
    """
    publish: list[str] = []
    subscribe: list[str] = []
    for grant in grants:
        publishes, subscribes = _filters(client_id, role, grant.channel)
        if grant.publish:
            publish += publishes
        if grant.subscribe:
            subscribe += subscribes
    return _allow(publish), _allow(subscribe)


def _filters(client_id: str, role: Role, channel: Channel) -> tuple[list[str], list[str]]:
    """The topic filters that a role may publish to and subscribe to in a channel, and beside it."""
    rounds = [ROUND_START, ROUND_NEXT, ROUND_STOP]
    updates = [UPDATES_FILTER, f"{channel.prefix}/{UPDATES_FILTER}"]
    match role:
        case Role.MANAGER:
            everything = f"{channel.prefix}/#"
            return [everything, *rounds], [everything, *rounds, UPDATES_FILTER]
        case Role.COORDINATOR:
            own = (Kind.ROUND_START, Kind.ROUND_NEXT, Kind.ROUND_STOP)
            return [*rounds, *(channel.topic(kind) for kind in own)], updates
        case Role.PROXY:
            chunks = channel.topic(Kind.REGISTRY_CHUNK)
            return [chunks, f"{chunks}/+"], [channel.topic(Kind.REGISTRY_REQUEST)]
        case Role.PROPLET:
            return _proplet_publishes(client_id, channel), _proplet_subscribes(client_id, channel)
        case Role.DEVICE:
            data = f"{channel.prefix}/{DATA}/#"
            return [data], [data]


def _proplet_publishes(client_id: str, channel: Channel) -> list[str]:
    # Who sends on the shared topics is in the payload alone; absmach/propeller's proplets know no others.
    shared = (
        Kind.PROPLET_CREATE,
        Kind.PROPLET_ALIVE,
        Kind.PROPLET_RESULTS,
        Kind.PROPLET_METRICS,
        Kind.TASK_METRICS,
        Kind.REGISTRY_REQUEST,
    )
    update = UPDATES_FILTER.removesuffix("+") + client_id
    return [*(channel.topic(kind) for kind in shared), update, f"{channel.prefix}/{update}"]


def _proplet_subscribes(client_id: str, channel: Channel) -> list[str]:
    chunks = channel.topic(Kind.REGISTRY_CHUNK)
    return [
        channel.topic(Kind.START),
        channel.topic(Kind.STOP),
        channel.start(client_id),
        channel.stop(client_id),
        chunks,
        # Any program and any proplet's answer: a wildcard is a whole level, and programs are for every proplet anyway.
        f"{chunks}/+",
        channel.topic(Kind.ROUND_NEXT),
        ROUND_NEXT,
    ]


def _allow(filters: Iterable[str]) -> dict[str, Any]:
    allowed = sorted({subject for topic in filters for subject in subjects(topic)})
    return {"allow": allowed} if allowed else NOTHING


def subjects(topic_filter: str) -> list[str]:
    """The NATS subjects that an MQTT topic filter stands for: one, or two for ``x/#``."""
    levels = [{"+": "*", "#": ">"}.get(level, level.replace(".", "//")) for level in topic_filter.split("/")]
    whole = ".".join(levels)
    return [".".join(levels[:-1]), whole] if levels[-1] == ">" else [whole]
