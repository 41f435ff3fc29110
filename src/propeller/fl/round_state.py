"""What a round is at a moment: its plan, its state, and what has come of its participants. ``round`` says how it moves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """Where a round is."""

    CREATED = "created"
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in {State.COMPLETED, State.FAILED}


class Verdict(StrEnum):
    """What becomes of an update, or of the report of a failure."""

    ACCEPTED = "accepted"
    REPEATED = "repeated"
    """What already counts or is known, again: fine, and nothing changes."""
    FOREIGN = "foreign"
    DIFFERENT = "different"
    STALE = "stale"
    LATE = "late"

    @property
    def is_good(self) -> bool:
        """Whether what was sent counts."""
        return self in {Verdict.ACCEPTED, Verdict.REPEATED}


@dataclass(frozen=True)
class Plan:
    """What a round was asked to be.

    Attributes:
        round_id: its id.
        participants: who may send an update, in the order in which updates are aggregated.
        base_version: the model version that updates start from.
        k_of_n: how many updates close the round.
        min_updates: how many are enough at the deadline, or when no more can come.

    Raises:
        ValueError: not ``1 <= min_updates <= k_of_n <= len(participants)``, or a participant is named twice.
    """

    round_id: str
    participants: tuple[str, ...]
    base_version: int
    k_of_n: int
    min_updates: int = 1

    def __post_init__(self) -> None:
        """Check that the round can close."""
        if len(set(self.participants)) != len(self.participants):
            raise ValueError("participants: one is named twice")
        if not 1 <= self.min_updates <= self.k_of_n <= len(self.participants):
            raise ValueError(
                f"need 1 <= min_updates <= k_of_n <= participants, got {self.min_updates}, {self.k_of_n} and "
                f"{len(self.participants)}"
            )


@dataclass(frozen=True)
class Round:
    """A round now.

    Attributes:
        plan: what it was asked to be.
        state: where it is.
        counted: the updates that count, in order of arrival: proplet id → digest of the update's content.
        model_version: of the stored aggregate, when completed.
        reason: why it failed, when failed.
        failures: participants of whom no update is to be expected, and why; none of them counts.
    """

    plan: Plan
    state: State = State.CREATED
    counted: Mapping[str, str] = field(default_factory=dict)
    model_version: int | None = None
    reason: str | None = None
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_settled(self) -> bool:
        """Whether no update can come any more: every participant's counts, or is not to be expected."""
        return len(self.counted) + len(self.failures) == len(self.plan.participants)
