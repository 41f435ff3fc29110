"""A federated round as a state machine: an event in, the new round and the effects out. No I/O, no clock.

    created → collecting → aggregating → completed | failed(reason)

Synchronous federated averaging with partial participation (McMahan et al. 2017, algorithm 1): the server waits for
``k_of_n`` updates of the participants, or until a deadline. ``step`` is the whole of it. Whoever calls it carries out
the effects in their order: ``Persist`` stands before what others may see, so that nothing is answered, aggregated or
published that a crash could take back. Events that have no meaning in a state change nothing, so each may come twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, assert_never


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
    """What becomes of an update."""

    ACCEPTED = "accepted"
    REPEATED = "repeated"
    """The update that already counts, again: fine, and nothing changes."""
    FOREIGN = "foreign"
    DIFFERENT = "different"
    STALE = "stale"
    LATE = "late"

    @property
    def is_good(self) -> bool:
        """Whether the sender's update counts."""
        return self in {Verdict.ACCEPTED, Verdict.REPEATED}


@dataclass(frozen=True)
class Plan:
    """What a round was asked to be.

    Attributes:
        round_id: its id.
        participants: who may send an update, in the order in which updates are aggregated.
        base_version: the model version that updates start from.
        k_of_n: how many updates close the round.
        min_updates: how many are enough at the deadline.

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
    """

    plan: Plan
    state: State = State.CREATED
    counted: Mapping[str, str] = field(default_factory=dict)
    model_version: int | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``from_json`` reads them back."""
        plan = {
            name: getattr(self.plan, name) for name in ("round_id", "base_version", "k_of_n", "min_updates")
        }
        return {
            "plan": {**plan, "participants": list(self.plan.participants)},
            "state": self.state.value,
            "counted": dict(self.counted),
            "model_version": self.model_version,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Round":
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: it is not a round.
        """
        try:
            plan = Plan(**{**fields["plan"], "participants": tuple(fields["plan"]["participants"])})
            return cls(
                plan,
                State(fields["state"]),
                dict(fields["counted"]),
                fields["model_version"],
                fields["reason"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a round: {error}") from None


@dataclass(frozen=True)
class Configured:
    """The round is set up and may take updates."""


@dataclass(frozen=True)
class UpdateReceived:
    """An update came; ``digest`` is of what would be aggregated, ``base_version`` ``None`` for the round's own."""

    proplet_id: str
    digest: str
    base_version: int | None = None


@dataclass(frozen=True)
class DeadlinePassed:
    """The time to collect is over."""


@dataclass(frozen=True)
class Aggregated:
    """The aggregate is stored as this model version."""

    version: int


@dataclass(frozen=True)
class AggregationFailed:
    """The aggregate could not be made or stored, and trying again was given up."""

    reason: str


@dataclass(frozen=True)
class Retried:
    """Someone asks to aggregate a failed round's updates after all."""


Event = Configured | UpdateReceived | DeadlinePassed | Aggregated | AggregationFailed | Retried


@dataclass(frozen=True)
class Persist:
    """Make the new round durable before going on."""


@dataclass(frozen=True)
class Answer:
    """Tell the sender of an update what became of it, and why."""

    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class Aggregate:
    """Aggregate the updates of these proplets, then report ``Aggregated`` or ``AggregationFailed``."""

    proplet_ids: tuple[str, ...]


@dataclass(frozen=True)
class PublishNext:
    """Tell everyone that there is a new model version."""

    version: int


Effect = Persist | Answer | Aggregate | PublishNext


@dataclass(frozen=True)
class Step:
    """What an event led to: the round after it, and what to do, in order."""

    round: Round
    effects: tuple[Effect, ...] = ()


def step(current: Round, event: Event) -> Step:
    """The round after ``event``, and what to do about it."""
    match event:
        case Configured():
            return _open(current)
        case UpdateReceived():
            return _take(current, event)
        case DeadlinePassed():
            return _close_at_deadline(current)
        case Aggregated() | AggregationFailed():
            return _end(current, event)
        case Retried():
            return _retry(current)
        case _:
            assert_never(event)


def resume(current: Round) -> tuple[Effect, ...]:
    """What is still to be done about a round that was read back after a crash: aggregating it again is harmless."""
    return (Aggregate(_order(current)),) if current.state is State.AGGREGATING else ()


def _open(current: Round) -> Step:
    if current.state is not State.CREATED:
        return Step(current)
    return Step(replace(current, state=State.COLLECTING), (Persist(),))


def _take(current: Round, update: UpdateReceived) -> Step:
    plan = current.plan
    verdict, reason = _judge(current, update)
    if verdict is not Verdict.ACCEPTED:
        return Step(current, (Answer(verdict, reason),))
    after = replace(current, counted={**current.counted, update.proplet_id: update.digest})
    if len(after.counted) < plan.k_of_n:
        return Step(after, (Persist(), Answer(Verdict.ACCEPTED)))
    return _aggregate(after, Answer(Verdict.ACCEPTED))


def _judge(current: Round, update: UpdateReceived) -> tuple[Verdict, str]:
    plan, sender = current.plan, update.proplet_id
    if sender not in plan.participants:
        return Verdict.FOREIGN, f"{sender} is not a participant of round {plan.round_id}"
    if sender in current.counted:
        # Before lateness: whoever sends again because an answer was lost must hear that the update counts.
        if current.counted[sender] == update.digest:
            return Verdict.REPEATED, ""
        return Verdict.DIFFERENT, f"another update of {sender} already counts in round {plan.round_id}"
    if current.state is not State.COLLECTING:
        return Verdict.LATE, f"late: round {plan.round_id} takes no more updates, it is {current.state}"
    if update.base_version not in {None, plan.base_version}:
        return Verdict.STALE, (
            f"base_model_uri: the update starts from version {update.base_version}, round {plan.round_id} from "
            f"version {plan.base_version}; train on that one"
        )
    return Verdict.ACCEPTED, ""


def _close_at_deadline(current: Round) -> Step:
    if current.state is not State.COLLECTING:
        return Step(current)
    count, least = len(current.counted), current.plan.min_updates
    if count >= least:
        return _aggregate(current)
    reason = f"deadline: {count} of {current.plan.k_of_n} updates came in time, at least {least} needed"
    return Step(replace(current, state=State.FAILED, reason=reason), (Persist(),))


def _end(current: Round, event: Aggregated | AggregationFailed) -> Step:
    if current.state is not State.AGGREGATING:
        return Step(current)
    if isinstance(event, AggregationFailed):
        return Step(replace(current, state=State.FAILED, reason=event.reason), (Persist(),))
    done = replace(current, state=State.COMPLETED, model_version=event.version)
    return Step(done, (Persist(), PublishNext(event.version)))


def _retry(current: Round) -> Step:
    if current.state is not State.FAILED or len(current.counted) < current.plan.min_updates:
        return Step(current)
    return _aggregate(replace(current, reason=None))


def _aggregate(current: Round, *answers: Answer) -> Step:
    after = replace(current, state=State.AGGREGATING)
    return Step(after, (Persist(), *answers, Aggregate(_order(after))))


def _order(current: Round) -> tuple[str, ...]:
    """Whose updates to aggregate: in the plan's order, so that the sum does not depend on who was faster."""
    return tuple(name for name in current.plan.participants if name in current.counted)
