"""Every MQTT topic, built and parsed here alone.

``m/{domain}/c/{channel}`` is the channel prefix. The topics are those of absmach/propeller, which all proplets share,
and the directed topics that this project adds: they carry messages to one proplet or from one, and name it, so that
the broker's permissions can.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from propeller.protocol.ids import InvalidIdError, check_id

ROUND_START = "fl/rounds/start"
ROUND_NEXT = "fl/rounds/next"
ROUND_STOP = "fl/rounds/stop"
"""Round topics that are also used without the channel prefix."""

UPDATES_FILTER = "fl/rounds/+/updates/+"

EVERYONE = "+"
"""In the place of a proplet's id: a filter for all of them."""


class Kind(StrEnum):
    """What a topic carries; the value is the topic after the channel prefix, ids left out."""

    PROPLET_CREATE = "control/proplet/create"
    PROPLET_ALIVE = "control/proplet/alive"
    PROPLET_RESULTS = "control/proplet/results"
    PROPLET_METRICS = "control/proplet/metrics"
    TASK_METRICS = "control/proplet/task_metrics"
    TASK_STAGE = "control/proplet/task_stage"
    START = "control/manager/start"
    STOP = "control/manager/stop"
    REGISTRY_REQUEST = "registry/proplet"
    REGISTRY_CHUNK = "registry/server"
    REGISTRY_ANSWER = "registry/answers"
    ROUND_START = ROUND_START
    ROUND_NEXT = ROUND_NEXT
    ROUND_STOP = ROUND_STOP
    UPDATE = "fl/rounds/updates"


PROPLET_SAYS = (
    Kind.PROPLET_CREATE,
    Kind.PROPLET_ALIVE,
    Kind.PROPLET_RESULTS,
    Kind.PROPLET_METRICS,
    Kind.TASK_METRICS,
    Kind.TASK_STAGE,
)
"""What a proplet says to the manager."""

_DIGEST = re.compile(r"sha256-[0-9a-f]{64}")
_FROM_PROPLET = "control/proplet"
_SAID = frozenset(kind.value for kind in PROPLET_SAYS)
_SHARED = frozenset(kind.value for kind in Kind) - {Kind.UPDATE.value, Kind.REGISTRY_ANSWER.value}


@dataclass(frozen=True)
class Topic:
    """A parsed topic.

    Attributes:
        kind: what it carries.
        channel: the channel it is in, ``None`` for the topics outside of every channel.
        target: of a topic to one proplet its id, of a program's chunks the digest (``sha256:…``).
        round_id: of an update.
        proplet_id: its sender, if the topic names one: of an update, and of what a directed proplet says.
    """

    kind: Kind
    channel: "Channel | None" = None
    target: str | None = None
    round_id: str | None = None
    proplet_id: str | None = None


@dataclass(frozen=True)
class Channel:
    """A channel of a domain, and the topics in it.

    Raises:
        InvalidIdError: an id would change the meaning of a topic.
    """

    domain_id: str
    channel_id: str

    def __post_init__(self) -> None:
        """Check both ids."""
        check_id(self.domain_id)
        check_id(self.channel_id)

    @property
    def prefix(self) -> str:
        """``m/{domain}/c/{channel}``."""
        return f"m/{self.domain_id}/c/{self.channel_id}"

    def topic(self, kind: Kind) -> str:
        """The topic of ``kind`` that everyone on the channel shares."""
        return f"{self.prefix}/{kind}"

    def start(self, proplet_id: str) -> str:
        """The topic of starts for one proplet."""
        return f"{self.topic(Kind.START)}/{check_id(proplet_id)}"

    def stop(self, proplet_id: str) -> str:
        """The topic of stops for one proplet."""
        return f"{self.topic(Kind.STOP)}/{check_id(proplet_id)}"

    def said(self, kind: Kind, proplet_id: str) -> str:
        """The topic on which one client says what others say on the shared topic of ``kind``; ``+`` for a filter of all."""
        sender = proplet_id if proplet_id == EVERYONE else check_id(proplet_id)
        if kind is Kind.REGISTRY_REQUEST:
            return f"{self.topic(kind)}/{sender}"
        return f"{self.prefix}/{_FROM_PROPLET}/{sender}/{kind.removeprefix(f'{_FROM_PROPLET}/')}"

    def answers(self, proplet_id: str) -> str:
        """The topic of the proxy's answers to one proplet: what a reference resolves to, or why it cannot be fetched."""
        return f"{self.topic(Kind.REGISTRY_ANSWER)}/{check_id(proplet_id)}"

    def chunks(self, digest: str) -> str:
        """The topic of one program's chunks, for all who asked for it; ``sha256:abc…`` is written ``sha256-abc…``."""
        if _DIGEST.fullmatch(digest.replace(":", "-", 1)) is None:
            raise InvalidIdError(f"{digest[:80]!r} is not a digest: use sha256: and 64 hexadecimal digits")
        return f"{self.topic(Kind.REGISTRY_CHUNK)}/{check_id(digest.replace(':', '-'))}"

    def update(self, round_id: str, proplet_id: str) -> str:
        """The topic in the channel of an update that could not be sent over HTTP."""
        return f"{self.prefix}/{update_topic(round_id, proplet_id)}"


def update_topic(round_id: str, proplet_id: str) -> str:
    """The topic outside of every channel of an update that could not be sent over HTTP, as absmach/propeller has it."""
    return f"fl/rounds/{check_id(round_id)}/updates/{check_id(proplet_id)}"


def parse_topic(topic: str) -> Topic | None:
    """Parse a topic; ``None`` if it is not one of these or has an invalid id."""
    try:
        channel, rest = _split(topic)
        return _parse_rest(channel, rest)
    except InvalidIdError:
        return None


def _split(topic: str) -> tuple[Channel | None, str]:
    parts = topic.split("/", 4)
    if len(parts) == 5 and parts[0] == "m" and parts[2] == "c":
        return Channel(parts[1], parts[3]), parts[4]
    return None, topic


def _parse_rest(channel: Channel | None, rest: str) -> Topic | None:
    match rest.split("/"):
        case ["fl", "rounds", "start" | "next" | "stop"]:
            return Topic(Kind(rest), channel)
        case ["fl", "rounds", round_id, "updates", proplet_id]:
            return Topic(Kind.UPDATE, channel, round_id=check_id(round_id), proplet_id=check_id(proplet_id))
    return _parse_in_channel(channel, rest) if channel else None


def _parse_in_channel(channel: Channel, rest: str) -> Topic | None:
    """A topic that stands in channels only."""
    match rest.split("/"):
        case ["control", "manager", "start" | "stop" as verb, target]:
            return Topic(Kind(f"control/manager/{verb}"), channel, target=check_id(target))
        case ["control", "proplet", proplet_id, verb] if f"{_FROM_PROPLET}/{verb}" in _SAID:
            return Topic(Kind(f"{_FROM_PROPLET}/{verb}"), channel, proplet_id=check_id(proplet_id))
        case ["registry", "proplet", proplet_id]:
            return Topic(Kind.REGISTRY_REQUEST, channel, proplet_id=check_id(proplet_id))
        case ["registry", "answers", target]:
            return Topic(Kind.REGISTRY_ANSWER, channel, target=check_id(target))
        case ["registry", "server", digest] if _DIGEST.fullmatch(digest):
            return Topic(Kind.REGISTRY_CHUNK, channel, target=digest.replace("-", ":", 1))
    return Topic(Kind(rest), channel) if rest in _SHARED else None


@dataclass(frozen=True)
class PropletTopics:
    """Where one proplet speaks and listens.

    Attributes:
        channel: its channel.
        proplet_id: its client id.
        compat: whether it speaks on the topics that absmach/propeller's proplets share, for a manager or a proxy of theirs; it then
            listens there too.
    """

    channel: Channel
    proplet_id: str
    compat: bool = False

    def says(self, kind: Kind) -> str:
        """Where it says something."""
        return self.channel.topic(kind) if self.compat else self.channel.said(kind, self.proplet_id)

    @property
    def starts(self) -> tuple[str, ...]:
        """Where it is told to start tasks."""
        return (self.channel.start(self.proplet_id), *self._shared(Kind.START))

    @property
    def stops(self) -> tuple[str, ...]:
        """Where it is told to stop tasks."""
        return (self.channel.stop(self.proplet_id), *self._shared(Kind.STOP))

    def _shared(self, kind: Kind) -> tuple[str, ...]:
        return (self.channel.topic(kind),) if self.compat else ()
