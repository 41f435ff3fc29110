"""A federated round as a state machine: an event in, the new round and the effects out. No I/O, no clock.

    created → collecting → aggregating → completed | failed(reason)

Synchronous federated averaging with partial participation (McMahan et al. 2017, algorithm 1): the server waits for
``k_of_n`` updates of the participants, until a deadline, or until no update can come any more as every participant
whose update is missing has failed. ``step`` is the whole of it. Whoever calls it carries out the effects in their
order: ``Persist`` stands before what others may see, so that nothing is answered, aggregated or published that a crash
could take back. Events that have no meaning in a state change nothing, so each may come twice.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import assert_never

from propeller.fl.round_state import Round, State, Verdict


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
class ParticipantFailed:
    """No update is to be expected of a participant; one that comes all the same counts."""

    proplet_id: str
    reason: str


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


Event = (
    Configured
    | UpdateReceived
    | ParticipantFailed
    | DeadlinePassed
    | Aggregated
    | AggregationFailed
    | Retried
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
        case ParticipantFailed():
            return _give_up(current, event)
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
    verdict, reason = _judge(current, update)
    if verdict is not Verdict.ACCEPTED:
        return Step(current, (Answer(verdict, reason),))
    sender = update.proplet_id
    return _go_on(
        replace(
            current,
            counted={**current.counted, sender: update.digest},
            failures={name: why for name, why in current.failures.items() if name != sender},
        )
    )


def _judge(current: Round, update: UpdateReceived) -> tuple[Verdict, str]:
    plan, sender = current.plan, update.proplet_id
    if sender not in plan.participants:
        return Verdict.FOREIGN, _foreign(current, sender)
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


def _give_up(current: Round, failure: ParticipantFailed) -> Step:
    sender, reason = failure.proplet_id, failure.reason
    if sender not in current.plan.participants:
        return Step(current, (Answer(Verdict.FOREIGN, _foreign(current, sender)),))
    if current.state is not State.COLLECTING:
        return Step(current, (Answer(Verdict.LATE, f"round {current.plan.round_id} is {current.state}"),))
    if sender in current.counted or current.failures.get(sender) == reason:
        return Step(current, (Answer(Verdict.REPEATED),))
    return _go_on(replace(current, failures={**current.failures, sender: reason}))


def _foreign(current: Round, sender: str) -> str:
    return f"{sender} is not a participant of round {current.plan.round_id}"


def _go_on(after: Round) -> Step:
    """Accept what came; the round collects on unless it needs no more updates, or can get no more."""
    accepted = Answer(Verdict.ACCEPTED)
    count, plan = len(after.counted), after.plan
    if count >= plan.k_of_n:
        return _aggregate(after, accepted)
    if not after.is_settled:
        return Step(after, (Persist(), accepted))
    few = f", {count} of {plan.k_of_n} came and at least {plan.min_updates} needed" if count else ""
    return _close(after, f"no update can come any more{few}: {_failed(after)}", accepted)


def _close_at_deadline(current: Round) -> Step:
    if current.state is not State.COLLECTING:
        return Step(current)
    count, plan = len(current.counted), current.plan
    reason = f"deadline: {count} of {plan.k_of_n} updates came in time, at least {plan.min_updates} needed"
    return _close(current, f"{reason}; {_failed(current)}" if current.failures else reason)


def _close(current: Round, reason: str, *answers: Answer) -> Step:
    """End with what has come; ``reason`` is why the round fails if that is too little."""
    if len(current.counted) >= current.plan.min_updates:
        return _aggregate(current, *answers)
    return Step(replace(current, state=State.FAILED, reason=reason), (Persist(), *answers))


def _failed(current: Round) -> str:
    """How many participants failed and the most frequent reason: there may be thousands of both."""
    names = current.plan.participants
    reasons = Counter(current.failures[name] for name in names if name in current.failures)
    [(first, _count)] = reasons.most_common(1)
    others = len(reasons) - 1
    more = f" (and {others} more reason{'s' if others > 1 else ''})" if others else ""
    return f"{len(current.failures)} of {len(names)} participants failed: {first}{more}"


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
