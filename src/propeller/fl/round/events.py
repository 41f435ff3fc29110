"""What happens to a round, and what is to be done about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from propeller.fl.round.state import Round, Verdict


@dataclass(frozen=True)
class RoundConfigured:
    """The round, whose participants are known, is set up and may collect updates."""


@dataclass(frozen=True)
class ParticipantsChosen:
    """Who takes part in a round that was created without participants; the first choice stays.

    The last ``surplus`` updates of theirs are not waited for.
    """

    participants: tuple[str, ...]
    surplus: int = 0


@dataclass(frozen=True)
class ChoiceFailed:
    """Nobody could be chosen, or too few."""

    reason: str


@dataclass(frozen=True)
class RoundCancelled:
    """The round is not wanted any more."""

    reason: str


@dataclass(frozen=True)
class UpdateReceived:
    """An update came; ``digest`` is of what would be aggregated, ``base_version`` ``None`` for the round's own."""

    proplet_id: str
    digest: str
    base_version: int | None = None


@dataclass(frozen=True)
class ParticipantFailed:
    """No update is expected of a participant; one that comes all the same counts."""

    proplet_id: str
    reason: str


@dataclass(frozen=True)
class ParticipantsReported:
    """Updates and failures that came one after the other: the same as each by itself, and of all but one without copies of the round.

    There is one answer for each, in their order.
    """

    reports: tuple[UpdateReceived | ParticipantFailed, ...]


@dataclass(frozen=True)
class DeadlinePassed:
    """The time to collect is over: whoever has not been heard of is late, which is their failure.

    Attributes:
        doing: what participants were last known to do, as "compiling the program"; of others nothing is known.
    """

    doing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AggregateStored:
    """The aggregate is stored as this model version."""

    version: int


@dataclass(frozen=True)
class AggregationFailed:
    """The aggregate could not be made or stored, and nobody tries any more."""

    reason: str


@dataclass(frozen=True)
class UpdatesLeftOut:
    """Nothing can be made of the updates together with those of these proplets, which do not count any more: the reason of each."""

    reasons: Mapping[str, str]


@dataclass(frozen=True)
class RetryRequested:
    """Someone asks to go on with the updates of a failed round after all."""


Event = (
    RoundConfigured
    | ParticipantsChosen
    | ChoiceFailed
    | RoundCancelled
    | UpdateReceived
    | ParticipantFailed
    | ParticipantsReported
    | DeadlinePassed
    | AggregateStored
    | AggregationFailed
    | UpdatesLeftOut
    | RetryRequested
)


@dataclass(frozen=True)
class Persist:
    """Make the new round durable before going on."""


@dataclass(frozen=True)
class Answer:
    """Tell the sender of an update or of a failure what became of it, and why."""

    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class Aggregate:
    """Aggregate the updates of these proplets, then report ``AggregateStored`` or ``AggregationFailed``."""

    proplet_ids: tuple[str, ...]


@dataclass(frozen=True)
class AnnounceVersion:
    """Tell everyone that there is a new model version."""

    version: int


Effect = Persist | Answer | Aggregate | AnnounceVersion


@dataclass(frozen=True)
class Transition:
    """What an event led to: the round after it, and what to do, in order."""

    round: Round
    effects: tuple[Effect, ...] = ()
