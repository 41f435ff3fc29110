"""A round at a moment, and what it was asked to be."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

from propeller.protocol.selection import RoundKind


class RoundState(StrEnum):
    """Where a round is."""

    CREATED = "created"
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in {RoundState.COMPLETED, RoundState.FAILED}


LATE = "no update by the deadline"
"""How the reason of a participant begins that was late."""

_PROGRAM_ERROR = re.compile(r"the program (?:exited with code \d+|aborted \(wasm trap: unreachable\)): \S")
"""A program that ended by itself, as by a panic, and said why: not one that was not fetched or compiled, went over a limit, or was killed."""


class Verdict(StrEnum):
    """What becomes of an update, or of the report of a failure."""

    ACCEPTED = "accepted"
    REPEATED = "repeated"
    """What is known already, again: fine, and nothing changes."""
    FOREIGN = "foreign"
    """Its sender is not a participant."""
    DIFFERENT = "different"
    """Another update of its sender counts already."""
    STALE = "stale"
    """It starts from another model version than the round."""
    LATE = "late"
    """The round does not collect (any more)."""

    @property
    def is_positive(self) -> bool:
        """Whether what was sent counts."""
        return self in {Verdict.ACCEPTED, Verdict.REPEATED}


@dataclass(frozen=True)
class RoundPlan:
    """What a round was asked to be.

    Attributes:
        round_id: its id.
        participants: who may send an update, in the order in which updates are aggregated; empty: not chosen yet.
        base_version: the model version that updates start from.
        k_of_n: how many updates close the round; ``None``, where the participants are not chosen yet, for all of
            them but the surplus.
        min_updates: how many are enough at the deadline, or when no more can come.
        kind: whether they train or evaluate.
        is_wave: whether the round makes no version of its updates: another one does (``fl.experiment``).

    Raises:
        ValueError: not ``1 <= min_updates <= k_of_n <= len(participants)``, or a participant is named twice.
    """

    round_id: str
    participants: tuple[str, ...]
    base_version: int
    k_of_n: int | None
    min_updates: int = 1
    kind: RoundKind = "train"
    is_wave: bool = False

    def __post_init__(self) -> None:
        """Check that the round can close."""
        if len(set(self.participants)) != len(self.participants):
            raise ValueError("participants: one is named twice")
        quorum, count = self.k_of_n, len(self.participants)
        if self.participants and quorum is None:
            raise ValueError("k_of_n: participants are known, so their quorum must be")
        if self.min_updates < 1 or (
            quorum is not None and not self.min_updates <= quorum <= (count or quorum)
        ):
            raise ValueError(
                f"need 1 <= min_updates <= k_of_n <= participants, got {self.min_updates}, {quorum} and {count}"
            )

    @property
    def is_chosen(self) -> bool:
        """Whether it is known who takes part."""
        return bool(self.participants)

    @cached_property
    def slots(self) -> Mapping[str, int]:
        """The place of each participant among them, from 0."""
        return {name: slot for slot, name in enumerate(self.participants)}

    def choose(self, participants: tuple[str, ...], surplus: int) -> "RoundPlan":
        """The plan with its participants.

        Raises:
            ValueError: with them the round could not close.
        """
        if not participants:
            raise ValueError("no participants were chosen")
        quorum = len(participants) - surplus if self.k_of_n is None else self.k_of_n
        return replace(self, participants=participants, k_of_n=quorum)


@dataclass(frozen=True)
class Round:
    """A round at a moment.

    Attributes:
        plan: how it was configured.
        state: where it is.
        accepted: the updates that count, in order of arrival: proplet id → digest of the update's content.
        model_version: of the stored aggregate, when a round of training is completed.
        reason: why it failed, when failed.
        failures: participants of whom no update is expected, or none came by the deadline, and why; none of their updates counts.
    """

    plan: RoundPlan
    state: RoundState = RoundState.CREATED
    accepted: Mapping[str, str] = field(default_factory=dict)
    model_version: int | None = None
    reason: str | None = None
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_heard_from_all(self) -> bool:
        """Whether no update can come any more: every participant's counts, or the participant has failed."""
        return len(self.accepted) + len(self.failures) == len(self.plan.participants)

    @property
    def late(self) -> tuple[str, ...]:
        """The participants of whom nothing that counts had come by the deadline."""
        return tuple(name for name, reason in self.failures.items() if reason.startswith(LATE))

    @property
    def program_error(self) -> str | None:
        """The error with which the program ended at every participant, if it is one and the same."""
        reasons = set(self.failures.values())
        if len(reasons) != 1 or len(self.failures) != len(self.plan.participants):
            return None
        [reason] = reasons
        return reason if _PROGRAM_ERROR.match(reason) else None

    @property
    def unheard(self) -> tuple[str, ...]:
        """The participants of whom no update counts, because they failed or were late."""
        return tuple(name for name in self.plan.participants if name not in self.accepted)
