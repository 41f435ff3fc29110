"""What proplets are called, and their tags: as identity has it where one is asked, else as they say themselves.

Whoever has a device's key can have it say anything of itself, another device's name too. Identity knows each client by a name that
no other client of the domain has, and the tags that it was given there.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

MAX_NAME_CHARACTERS = 64
"""Of a name that a proplet says; identity's are taken whole."""

GIVEN_NAME = "given_name"
"""In a proplet's metadata, where identity is not asked: its name since it was renamed, until it says another one itself."""

_MAX_LISTED = 10

_ADJECTIVES = (
    "amber azure bold brave bright brisk calm clear clever cosy crisp daring eager early fair fast fine firm "
    "fond free fresh gentle glad golden grand green happy hardy honest jolly keen kind late light lively loyal "
    "lucky mellow merry mild modest neat noble patient plain proud quick quiet ready rapid robust sharp shiny "
    "silent simple steady still sunny swift tidy warm wise"
)
_NOUNS = (
    "acorn badger beacon birch brook canyon cedar cliff cloud comet coral crane creek delta dune eagle elm ember "
    "falcon fern field finch fjord forest fox garden glacier harbor hawk heron hill island jay lagoon lake larch "
    "maple marsh meadow moon moss mountain oak otter owl pebble pine plover pond prairie raven reef ridge river "
    "robin sparrow spruce summit tern valley willow wren"
)

Metadata = Mapping[str, Any] | None
"""What a proplet reported of itself, if it reported anything."""


@dataclass(frozen=True)
class Naming:
    """What a proplet is called, and by which tags it can be chosen."""

    name: str
    tags: tuple[str, ...] = ()


def own_naming(proplet_id: str, metadata: Metadata) -> Naming:
    """As a proplet says itself; one that says no name has a readable one such as ``calm-otter-41``, always the same for its id."""
    return Naming(_said_name(metadata) or _made_name(proplet_id), _said_tags(metadata))


@dataclass(frozen=True)
class NamedClients:
    """The proplets of a channel by their ids, as identity names them: no two have the same name."""

    clients: Mapping[str, Naming]

    @classmethod
    def read(cls, told: Any) -> Self:
        """What identity answers to ``GET /auth/names``.

        Raises:
            ValueError: it is something else.
        """
        try:
            named = {
                str(id_): Naming(str(one["name"]), tuple(map(str, one["tags"])))
                for id_, one in told["clients"].items()
            }
        except (TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"it cannot be read: {error!r}") from None
        return cls(named)

    def naming(self, proplet_id: str, metadata: Metadata) -> Naming:
        """What a proplet is called, and its tags: identity's, and of those that it says itself the ones that identity gives to nobody.

        A client that identity does not name has a name made from its id and no tags, whatever it says.
        """
        known = self.clients.get(proplet_id)
        if known is None:
            return Naming(_made_name(proplet_id))
        own = (tag for tag in _said_tags(metadata) if tag not in self._given_tags)
        return Naming(known.name, tuple(dict.fromkeys((*known.tags, *own))))

    def explain_doubts(self, proplet_id: str, metadata: Metadata) -> str | None:
        """What of that which a proplet says of itself is not taken, why, and the remedy; ``None``: nothing."""
        said, tags = _said_name(metadata), _said_tags(metadata)
        known = self.clients.get(proplet_id)
        if known is None:
            if said is None and not tags:
                return None
            return (
                f"it calls itself {said!r}, but identity has not named a proplet with this id in this channel: it is called by its id "
                "until identity does (connect the client to the channel; is identity there?)"
            )
        doubts = []
        if said is not None and said != known.name[:MAX_NAME_CHARACTERS]:
            other = self._ids.get(said)
            whose = "" if other is None else f", and {said!r} is {other}"
            doubts.append(
                f"it calls itself {said!r}; by identity it is {known.name!r}{whose}. Names are given there ('propeller device rename'), "
                "PROPLET_INSTANCE_ID gives none"
            )
        taken = [tag for tag in tags if tag in self._given_tags and tag not in known.tags]
        if taken:
            doubts.append(
                f"it says that it has the tags {', '.join(map(repr, taken[:_MAX_LISTED]))}, which identity gives to others: "
                "'propeller device tag' gives it them, PROPLET_TAGS does not"
            )
        return "; ".join(doubts) or None

    @cached_property
    def _ids(self) -> dict[str, str]:
        return {one.name: id_ for id_, one in self.clients.items()}

    @cached_property
    def _given_tags(self) -> frozenset[str]:
        return frozenset(tag for one in self.clients.values() for tag in one.tags)


def says_the_same(metadata: Metadata, before: Metadata) -> bool:
    """Whether a proplet says the same name and tags as before."""
    return _said_name(metadata) == _said_name(before) and _said_tags(metadata) == _said_tags(before)


def _said_name(metadata: Metadata) -> str | None:
    known = metadata or {}
    told = known.get(GIVEN_NAME, known.get("name"))
    if isinstance(told, str) and told.strip() and told.isprintable():
        return told.strip()[:MAX_NAME_CHARACTERS]
    return None


def _said_tags(metadata: Metadata) -> tuple[str, ...]:
    return tuple((metadata or {}).get("tags") or ())


def _made_name(proplet_id: str) -> str:
    digest = hashlib.sha256(proplet_id.encode()).digest()
    adjectives, nouns = _ADJECTIVES.split(), _NOUNS.split()
    adjective, noun = adjectives[digest[0] % len(adjectives)], nouns[digest[1] % len(nouns)]
    return f"{adjective}-{noun}-{digest[2] % 100}"
