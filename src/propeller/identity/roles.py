"""The roles of clients, and what each may publish and subscribe to on the broker: all that ``RULES`` does not name is refused.

Rules are written as MQTT topic filters and handed to nats-server as NATS subjects. There, ``/`` is ``.``, ``+`` is
``*`` (always a whole level), ``#`` is ``>`` (without the parent level, which ``x/#`` includes in MQTT), and a dot
inside a level is ``//``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from propeller.protocol.roles import PEOPLE, Role
from propeller.protocol.topics import PROPLET_SAYS, UPDATES_FILTER, Channel, Kind

_NAMES = (
    (re.compile(r"manager(-.*)?"), Role.MANAGER),
    (re.compile(r"(fl-)?coordinator(-.*)?"), Role.COORDINATOR),
    (re.compile(r"proxy(-.*)?"), Role.PROXY),
    (re.compile(r"proplet(-.*)?"), Role.PROPLET),
    (re.compile(r"operator(-.*)?"), Role.OPERATOR),
    (re.compile(r"viewer(-.*)?"), Role.VIEWER),
)

CLIENT_ROLES = tuple(role for role in Role if role is not Role.ADMIN)
"""What a client can be: ``operator`` and ``viewer`` are for scripts, which log in with an id and a key; an admin is a person."""

COMPAT_TAG = "compat"

NOTHING: dict[str, Any] = {"deny": [">"]}
"""The permissions of a client without rights: an empty list would allow everything."""


class Actor(StrEnum):
    """Who acts on the broker: a role, and of proplets which of the two kinds."""

    MANAGER = "manager"
    COORDINATOR = "coordinator"
    PROXY = "proxy"
    PROPLET = "proplet"
    COMPAT = "compat proplet"
    DEVICE = "device"


class Whose(StrEnum):
    """Whose topics an actor may use, of those that name a client."""

    OWN = "own"
    ANY = "any"


ID, ANYTHING = "{id}", "+"
"""In a rule's topic: the level that names a client, and a level that nothing depends on."""


@dataclass(frozen=True)
class Rule:
    """Who may use a topic.

    Attributes:
        topic: below the channel's prefix; one level may be ``ID``.
        publish: who may publish to it; where a level is ``ID``, on whose topics.
        subscribe: who may subscribe to it, likewise.
        outside: whether the same topic without a channel's prefix is used too, by whoever may use it in some channel.
    """

    topic: str
    publish: Mapping[Actor, Whose]
    subscribe: Mapping[Actor, Whose]
    outside: bool = False


def _rule(
    topic: str, publish: Iterable[Actor | tuple[Actor, Whose]] = (),
    subscribe: Iterable[Actor | tuple[Actor, Whose]] = (), *, outside: bool = False,
) -> Rule:  # fmt: skip
    """A rule in which an actor that stands alone may use every topic."""
    spoken, heard = (
        dict(one if isinstance(one, tuple) else (one, Whose.ANY) for one in actors)
        for actors in (publish, subscribe)
    )
    return Rule(topic, spoken, heard, outside)


_MANAGER, _COORDINATOR, _PROXY = Actor.MANAGER, Actor.COORDINATOR, Actor.PROXY
_PROPLET, _COMPAT, _DEVICE = Actor.PROPLET, Actor.COMPAT, Actor.DEVICE
_OWN_PROPLET, _OWN_COMPAT, _OWN_MANAGER = (
    (_PROPLET, Whose.OWN), (_COMPAT, Whose.OWN), (_MANAGER, Whose.OWN),
)  # fmt: skip

RULES = (
    *(_rule(f"control/proplet/{ID}/{kind.rpartition('/')[2]}", [_OWN_PROPLET]) for kind in PROPLET_SAYS),
    *(_rule(kind, [_COMPAT]) for kind in PROPLET_SAYS),
    _rule(f"control/manager/start/{ID}", [_MANAGER], [_OWN_PROPLET, _OWN_COMPAT]),
    _rule(f"control/manager/stop/{ID}", [_MANAGER], [_OWN_PROPLET, _OWN_COMPAT]),
    _rule(Kind.START, [_MANAGER], [_COMPAT]),
    _rule(Kind.STOP, [_MANAGER], [_COMPAT]),
    _rule(f"registry/proplet/{ID}", [_OWN_PROPLET, _OWN_MANAGER], [_PROXY]),
    _rule(Kind.REGISTRY_REQUEST, [_COMPAT], [_PROXY]),
    _rule(f"registry/answers/{ID}", [_PROXY], [_OWN_PROPLET, _OWN_COMPAT]),
    _rule(f"registry/server/{ANYTHING}", [_PROXY], [_PROPLET, _COMPAT]),
    _rule(Kind.REGISTRY_CHUNK, [_PROXY], [_COMPAT]),
    _rule(Kind.ROUND_START, [_MANAGER, _COORDINATOR], [_MANAGER], outside=True),
    _rule(Kind.ROUND_STOP, [_COORDINATOR], [_MANAGER], outside=True),
    _rule(Kind.ROUND_NEXT, [_COORDINATOR], [_MANAGER, _PROPLET, _COMPAT], outside=True),
    _rule(
        f"{UPDATES_FILTER.removesuffix(ANYTHING)}{ID}",
        [_OWN_PROPLET, _OWN_COMPAT],
        [_COORDINATOR],
        outside=True,
    ),
    _rule("data/#", [_DEVICE], [_DEVICE]),
    _rule("#", [], [_MANAGER]),
)
"""Who may do what on the broker; docs/security.md shows the same table, and a test tries every cell of it."""


def role_of(name: str, role: str | None, metadata: dict[str, Any], tags: Iterable[str]) -> Role:
    """The role of a new client: as given, by ``metadata.role`` or a tag ``role:…``, else by its name.

    The names are the guide's: ``manager``, ``fl-coordinator``, ``proxy``, ``proplet``, each also followed by ``-`` and
    more (``proplet-1``). Whatever else it is called, it is a device.

    Raises:
        ValueError: the role that was given is not one.
    """
    given = role or metadata.get("role") or next((tag[5:] for tag in tags if tag.startswith("role:")), None)
    if given is not None:
        if given not in CLIENT_ROLES:
            raise ValueError(f"role: {given!r} is not one of {', '.join(CLIENT_ROLES)}")
        return Role(given)
    return next((found for pattern, found in _NAMES if pattern.fullmatch(name)), Role.DEVICE)


def compat_of(role: Role, compat: bool | None, metadata: dict[str, Any], tags: Iterable[str]) -> bool:
    """Whether a new client is a compat proplet: as given, by ``metadata.compat`` or by a tag ``compat``.

    Raises:
        ValueError: it is none of a proplet's role.
    """
    wanted = compat if compat is not None else metadata.get("compat", COMPAT_TAG in tags)
    if type(wanted) is not bool:
        raise ValueError("metadata.compat: must be true or false")
    if wanted and role is not Role.PROPLET:
        raise ValueError(f"compat: only proplets can be, this client is a {role}")
    return wanted


@dataclass(frozen=True)
class Grant:
    """A connection of a client to a channel: which, and what it allows."""

    channel: Channel
    publish: bool
    subscribe: bool


def permissions(
    client_id: str, role: Role, grants: Iterable[Grant], *, compat: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a client may publish and subscribe to, as the ``pub`` and ``sub`` of a NATS user's claims.

    ``compat`` is for proplets that speak on the topics that absmach/propeller's share.
    """
    if role in PEOPLE:  # they use the HTTP APIs
        return NOTHING, NOTHING
    actor = Actor.COMPAT if compat else Actor(role.value)
    publish: list[str] = []
    subscribe: list[str] = []
    for grant in grants:
        for rule in RULES:
            if grant.publish:
                publish += _filters(rule, rule.publish.get(actor), client_id, grant.channel)
            if grant.subscribe:
                subscribe += _filters(rule, rule.subscribe.get(actor), client_id, grant.channel)
    return _allow(publish), _allow(subscribe)


def _filters(rule: Rule, whose: Whose | None, client_id: str, channel: Channel) -> list[str]:
    """The topic filters of a rule for a client that may use it, in a channel and beside it."""
    if whose is None:
        return []
    topic = rule.topic.replace(ID, client_id if whose is Whose.OWN else ANYTHING)
    return [f"{channel.prefix}/{topic}", *([topic] if rule.outside else [])]


def _allow(filters: Iterable[str]) -> dict[str, Any]:
    allowed = sorted({subject for topic in filters for subject in subjects(topic)})
    return {"allow": allowed} if allowed else NOTHING


def subjects(topic_filter: str) -> list[str]:
    """The NATS subjects that an MQTT topic filter stands for: one, or two for ``x/#``."""
    levels = [{"+": "*", "#": ">"}.get(level, level.replace(".", "//")) for level in topic_filter.split("/")]
    whole = ".".join(levels)
    return [".".join(levels[:-1]), whole] if levels[-1] == ">" else [whole]
