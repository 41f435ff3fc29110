"""Every MQTT topic, built and parsed here alone.

``m/{domain}/c/{channel}`` is the channel prefix. The topics are those of absmach/propeller and the directed topics
that this project adds: they carry messages to one proplet, so that access rules can name it.
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


class Kind(StrEnum):
    """What a topic carries; the value is the topic after the channel prefix, ids left out."""

    PROPLET_CREATE = "control/proplet/create"
    PROPLET_ALIVE = "control/proplet/alive"
    PROPLET_RESULTS = "control/proplet/results"
    PROPLET_METRICS = "control/proplet/metrics"
    TASK_METRICS = "control/proplet/task_metrics"
    START = "control/manager/start"
    STOP = "control/manager/stop"
    REGISTRY_REQUEST = "registry/proplet"
    REGISTRY_CHUNK = "registry/server"
    ROUND_START = ROUND_START
    ROUND_NEXT = ROUND_NEXT
    ROUND_STOP = ROUND_STOP
    UPDATE = "fl/rounds/updates"


_DIGEST = re.compile(r"sha256-[0-9a-f]{64}")
_SHARED = frozenset(kind.value for kind in Kind) - {Kind.UPDATE.value}


@dataclass(frozen=True)
class Topic:
    """A parsed topic.

    Attributes:
        kind: what it carries.
        channel: the channel it is in, ``None`` for the topics outside of every channel.
        target: of a directed topic the proplet id or, for chunks, the digest (``sha256:…``) or proplet id.
        round_id: of an update.
        proplet_id: of an update, its sender.
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

    def answers(self, proplet_id: str) -> str:
        """The topic of the proxy's answers to one proplet: what a reference resolves to, or why it cannot be fetched."""
        return f"{self.topic(Kind.REGISTRY_CHUNK)}/{check_id(proplet_id)}"

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
        case ["control", "manager", "start" | "stop" as verb, target]:
            kind = Kind.START if verb == "start" else Kind.STOP
            return Topic(kind, channel, target=check_id(target)) if channel else None
        case ["registry", "server", target]:
            check_id(target)
            if _DIGEST.fullmatch(target):
                target = target.replace("-", ":", 1)
            return Topic(Kind.REGISTRY_CHUNK, channel, target=target) if channel else None
        case _:
            return Topic(Kind(rest), channel) if channel and rest in _SHARED else None
