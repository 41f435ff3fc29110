"""A federated round as a state machine: an event in, the new round and the effects out. No I/O, no clock.

    created → collecting → aggregating → completed | failed(reason)

Synchronous federated averaging with partial participation (McMahan et al. 2017, algorithm 1): the server waits for
``k_of_n`` updates of the participants, until a deadline, or until no update can come any more because every participant
whose update is missing has failed. A round of evaluation, and a wave of an asynchronous experiment, is the same, but
completes with what has come: nothing is aggregated. Who takes part may be known from the start, or be chosen after the round was created.

``step`` is the whole of it. Whoever calls it carries out the effects in their
order: ``Persist`` stands before what others may see, so that nothing is answered, aggregated or published that a crash
could take back. Events that have no meaning in a state change nothing, so each may come twice.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import assert_never

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


_LATE = "no update by the deadline"

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
        return tuple(name for name, reason in self.failures.items() if reason.startswith(_LATE))

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


def step(current: Round, event: Event) -> Transition:
    """The round after ``event``, and what to do about it."""
    match event:
        case RoundConfigured() | ParticipantsChosen() | ChoiceFailed():
            return _begin(current, event)
        case UpdateReceived() | ParticipantFailed():
            return _hear(current, (event,))
        case ParticipantsReported(reports):
            return _hear(current, reports)
        case DeadlinePassed(doing):
            return _close_at_deadline(current, doing)
        case AggregateStored() | AggregationFailed() | UpdatesLeftOut() | RoundCancelled():
            return _end(current, event)
        case RetryRequested():
            return _retry(current)
        case _:
            assert_never(event)


def admit(current: Round, proplet_id: str, base_version: int | None) -> Answer:
    """The verdict on an update as far as it does not depend on its tensors, which may be large.

    A sender whose update counts already is admitted: only the digest tells the same update from a different one.

    Args:
        current: the round.
        proplet_id: who sends it.
        base_version: the model version that it starts from; ``None`` for the round's own.
    """
    plan = current.plan
    if proplet_id not in plan.slots:
        return _not_a_participant(current, proplet_id)
    if proplet_id in current.accepted:
        return Answer(Verdict.ACCEPTED)
    if current.state is not RoundState.COLLECTING:
        return Answer(
            Verdict.LATE, f"late: round {plan.round_id} takes no more updates, it is {current.state}"
        )
    if base_version not in {None, plan.base_version}:
        return Answer(
            Verdict.STALE,
            f"base_model_uri: the update starts from version {base_version}, round {plan.round_id} from "
            f"version {plan.base_version}; train on that one",
        )
    return Answer(Verdict.ACCEPTED)


def resume(current: Round) -> tuple[Effect, ...]:
    """What is still to be done about a round that was read back after a crash: aggregating it again is harmless."""
    return (Aggregate(_aggregation_order(current)),) if current.state is RoundState.AGGREGATING else ()


def _begin(current: Round, event: RoundConfigured | ParticipantsChosen | ChoiceFailed) -> Transition:
    known_before = isinstance(event, RoundConfigured)
    if current.state is not RoundState.CREATED or current.plan.is_chosen is not known_before:
        return Transition(current)
    match event:
        case ChoiceFailed(reason):
            return _fail(current, reason)
        case ParticipantsChosen(participants, surplus):
            try:
                plan = current.plan.choose(participants, surplus)
            except ValueError as error:
                return _fail(current, f"the participants that were chosen do not do: {error}")
        case _:
            plan = current.plan
    return Transition(replace(current, plan=plan, state=RoundState.COLLECTING), (Persist(),))


def _fail(current: Round, reason: str) -> Transition:
    return Transition(replace(current, state=RoundState.FAILED, reason=reason), (Persist(),))


def _hear(current: Round, reports: Iterable[UpdateReceived | ParticipantFailed]) -> Transition:
    accepted, failures = dict(current.accepted), dict(current.failures)
    after = replace(current, accepted=accepted, failures=failures)
    answers: list[Answer] = []
    later: list[Effect] = []
    for report in reports:
        if isinstance(report, UpdateReceived):
            answer = _judge_update(after, report)
            if answer.verdict is Verdict.ACCEPTED:
                accepted[report.proplet_id] = report.digest
                failures.pop(report.proplet_id, None)
        else:
            answer = _judge_failure(after, report)
            if answer.verdict is Verdict.ACCEPTED:
                failures[report.proplet_id] = report.reason
        answers.append(answer)
        if answer.verdict is Verdict.ACCEPTED:
            decided = _close_if_decided(after)
            after = decided.round
            later += [effect for effect in decided.effects if not isinstance(effect, Persist)]
    if all(answer.verdict is not Verdict.ACCEPTED for answer in answers):
        return Transition(current, tuple(answers))
    return Transition(after, (Persist(), *answers, *later))


def _judge_update(current: Round, update: UpdateReceived) -> Answer:
    sender = update.proplet_id
    # Before lateness: whoever sends again because an answer was lost must hear that the update counts.
    if sender in current.accepted:
        if current.accepted[sender] == update.digest:
            return Answer(Verdict.REPEATED)
        reason = f"another update of {sender} already counts in round {current.plan.round_id}"
        return Answer(Verdict.DIFFERENT, reason)
    return admit(current, sender, update.base_version)


def _judge_failure(current: Round, failure: ParticipantFailed) -> Answer:
    sender, reason = failure.proplet_id, failure.reason
    if sender not in current.plan.slots:
        return _not_a_participant(current, sender)
    if current.state is not RoundState.COLLECTING:
        return Answer(Verdict.LATE, f"round {current.plan.round_id} is {current.state}")
    if sender in current.accepted or current.failures.get(sender) == reason:
        return Answer(Verdict.REPEATED)
    return Answer(Verdict.ACCEPTED)


def _not_a_participant(current: Round, sender: str) -> Answer:
    return Answer(Verdict.FOREIGN, f"{sender} is not a participant of round {current.plan.round_id}")


def _close_if_decided(after: Round) -> Transition:
    """The round collects on unless it needs no more updates, or can get no more."""
    count, plan = len(after.accepted), after.plan
    if plan.k_of_n is not None and count >= plan.k_of_n:
        return _finish(after)
    if not after.has_heard_from_all:
        return Transition(after)
    few = f", {count} of {plan.k_of_n} came and at least {plan.min_updates} needed" if count else ""
    return _close(after, f"no update can come any more{few}: {_describe_failures(after)}")


def _close_at_deadline(current: Round, doing: Mapping[str, str]) -> Transition:
    if current.state is not RoundState.COLLECTING:
        return Transition(current)
    count, plan = len(current.accepted), current.plan
    late = [name for name in current.unheard if name not in current.failures]
    failures = {**current.failures, **{name: _describe_late(doing.get(name)) for name in late}}
    reason = f"deadline: {count} of {plan.k_of_n} updates came in time, at least {plan.min_updates} needed"
    if late:
        reason = f"{reason}: {_count_late(late, doing, len(plan.participants))}"
    if current.failures:
        reason = f"{reason}; {_describe_failures(current)}"
    return _close(replace(current, failures=failures), reason)


def _describe_late(doing: str | None) -> str:
    known = "nothing was heard of it" if doing is None else f"it was still {doing}"
    return f"{_LATE}: {known}"


def _count_late(late: Iterable[str], doing: Mapping[str, str], participants: int) -> str:
    """How many were doing what; what most did comes first."""
    counts = Counter(doing.get(name) for name in late)
    return ", ".join(
        f"{count} of {participants} {_be(count, still=what is not None)} {what or 'not heard of'}"
        for what, count in counts.most_common()
    )


def _be(count: int, *, still: bool) -> str:
    return f"{'was' if count == 1 else 'were'}{' still' if still else ''}"


def _close(current: Round, reason: str) -> Transition:
    """End with what has come; ``reason`` is why the round fails if that is too little."""
    if len(current.accepted) >= current.plan.min_updates:
        return _finish(current)
    return _fail(current, reason)


def _describe_failures(current: Round) -> str:
    """How many participants failed, and the most frequent reason: there may be thousands of both."""
    names = current.plan.participants
    reasons = Counter(current.failures[name] for name in names if name in current.failures)
    [(first, _count)] = reasons.most_common(1)
    others = len(reasons) - 1
    more = f" (and {others} more reason{'s' if others > 1 else ''})" if others else ""
    return f"{len(current.failures)} of {len(names)} participants failed: {first}{more}"


def _end(
    current: Round, event: AggregateStored | AggregationFailed | UpdatesLeftOut | RoundCancelled
) -> Transition:
    if isinstance(event, RoundCancelled):
        return Transition(current) if current.state.is_over else _fail(current, event.reason)
    if current.state is not RoundState.AGGREGATING:
        return Transition(current)
    if isinstance(event, UpdatesLeftOut):
        return _leave_out(current, event.reasons)
    if isinstance(event, AggregationFailed):
        return _fail(current, event.reason)
    completed = replace(current, state=RoundState.COMPLETED, model_version=event.version)
    return Transition(completed, (Persist(), AnnounceVersion(event.version)))


def _leave_out(current: Round, reasons: Mapping[str, str]) -> Transition:
    """Aggregate the other updates, if they are enough."""
    left_out = {name: reason for name, reason in reasons.items() if name in current.accepted}
    if not left_out:
        return Transition(current)
    accepted = {name: digest for name, digest in current.accepted.items() if name not in left_out}
    after = replace(current, accepted=accepted, failures={**current.failures, **left_out})
    if len(accepted) < current.plan.min_updates:
        few = f"{len(accepted)} updates are left and at least {current.plan.min_updates} needed"
        return _fail(after, f"{few}: {_describe_failures(after)}")
    return _finish(after)


def _retry(current: Round) -> Transition:
    if current.state is not RoundState.FAILED or len(current.accepted) < current.plan.min_updates:
        return Transition(current)
    return _finish(replace(current, reason=None))


def _finish(current: Round) -> Transition:
    if current.plan.kind == "evaluate" or current.plan.is_wave:
        return Transition(replace(current, state=RoundState.COMPLETED), (Persist(),))
    after = replace(current, state=RoundState.AGGREGATING)
    return Transition(after, (Persist(), Aggregate(_aggregation_order(after))))


def _aggregation_order(current: Round) -> tuple[str, ...]:
    """Whose updates to aggregate: in the plan's order, so that the sum does not depend on who was faster."""
    return tuple(name for name in current.plan.participants if name in current.accepted)
