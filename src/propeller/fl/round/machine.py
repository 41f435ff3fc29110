"""What an event makes of a round."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import assert_never

from propeller.fl.round.events import (
    Aggregate,
    AggregateStored,
    AggregationFailed,
    AnnounceVersion,
    Answer,
    ChoiceFailed,
    DeadlinePassed,
    Effect,
    Event,
    ParticipantFailed,
    ParticipantsChosen,
    ParticipantsReported,
    Persist,
    RetryRequested,
    RoundCancelled,
    RoundConfigured,
    Transition,
    UpdateReceived,
    UpdatesLeftOut,
)
from propeller.fl.round.state import LATE, Round, RoundState, Verdict


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
    return f"{LATE}: {known}"


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
