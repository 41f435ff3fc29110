"""The round as a state machine: each rule by example, and its invariants under any order of events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from propeller.fl.round import (
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
    Round,
    RoundCancelled,
    RoundConfigured,
    RoundPlan,
    RoundState,
    Transition,
    UpdateReceived,
    UpdatesLeftOut,
    Verdict,
    admit,
    resume,
    step,
)
from propeller.protocol.selection import RoundKind


def collecting(k: int = 2, least: int = 1) -> Round:
    return step(Round(RoundPlan("r-1", ("a", "b", "c"), 4, k, least)), RoundConfigured()).round


def after(current: Round, *events: Event) -> Transition:
    done = Transition(current)
    for event in events:
        done = step(done.round, event)
    return done


def verdict(done: Transition) -> Verdict:
    return next(effect.verdict for effect in done.effects if isinstance(effect, Answer))


@pytest.mark.parametrize(
    ("k", "least", "participants"),
    [
        (3, 1, ("a", "b")),
        (0, 0, ("a",)),
        (1, 2, ("a", "b")),
        (1, 2, ()),
        (None, 0, ()),
        (None, 1, ("a",)),
        (1, 1, ("a", "a")),
        (-1, -1, ("a",)),
    ],
)
def test_a_plan_that_can_never_close_is_refused(
    k: int | None, least: int, participants: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="participants"):
        RoundPlan("r-1", participants, 0, k, least)


def test_a_round_takes_no_update_before_it_is_configured() -> None:
    fresh = Round(RoundPlan("r-1", ("a",), 0, 1))
    assert verdict(step(fresh, UpdateReceived("a", "d"))) is Verdict.LATE
    assert step(fresh, DeadlinePassed()) == Transition(fresh)


def test_configuring_twice_changes_nothing() -> None:
    one = after(collecting(), UpdateReceived("a", "d")).round
    assert step(one, RoundConfigured()) == Transition(one)


def test_the_quorum_closes_a_round_and_says_so_only_after_it_is_durable() -> None:
    done = after(collecting(), UpdateReceived("c", "1"), UpdateReceived("a", "2"))
    assert done.round.state is RoundState.AGGREGATING
    # In the plan's order, not that of arrival.
    assert done.effects == (Persist(), Answer(Verdict.ACCEPTED), Aggregate(("a", "c")))


def test_the_same_update_again_is_fine_at_any_time_and_another_never() -> None:
    open_round = after(collecting(), UpdateReceived("a", "1")).round
    closed = after(open_round, UpdateReceived("b", "2")).round
    over = after(closed, AggregateStored(5)).round
    for current in (open_round, closed, over):
        again = step(current, UpdateReceived("a", "1", 4))
        assert again == Transition(current, (Answer(Verdict.REPEATED),))
        assert verdict(step(current, UpdateReceived("a", "other"))) is Verdict.DIFFERENT


def test_foreign_stale_and_late_updates_are_told_so() -> None:
    current = collecting()
    assert verdict(step(current, UpdateReceived("x", "1"))) is Verdict.FOREIGN
    assert verdict(step(current, UpdateReceived("a", "1", 3))) is Verdict.STALE
    assert verdict(step(current, UpdateReceived("a", "1", 4))) is Verdict.ACCEPTED
    closed = after(current, UpdateReceived("a", "1"), UpdateReceived("b", "2")).round
    late = step(closed, UpdateReceived("c", "3"))
    assert late.round is closed
    assert verdict(late) is Verdict.LATE


def test_an_update_is_admitted_or_not_before_it_is_read() -> None:
    current = after(collecting(), UpdateReceived("a", "1")).round
    closed = after(current, UpdateReceived("b", "2")).round
    assert admit(current, "b", None).verdict is admit(current, "b", 4).verdict is Verdict.ACCEPTED
    assert admit(current, "x", 4).verdict is Verdict.FOREIGN
    assert admit(current, "b", 3).verdict is Verdict.STALE
    assert admit(closed, "c", 4).verdict is Verdict.LATE
    # Whether this is the update that counts, only its digest tells.
    assert admit(closed, "a", 3).verdict is Verdict.ACCEPTED


def test_the_deadline_closes_with_what_has_come_or_fails() -> None:
    enough = after(collecting(3), UpdateReceived("b", "1"), DeadlinePassed())
    assert enough.effects == (Persist(), Aggregate(("b",)))
    for current in (collecting(3), after(collecting(3, least=2), UpdateReceived("b", "1")).round):
        failed = step(current, DeadlinePassed())
        assert failed.effects == (Persist(),)
        assert failed.round.state is RoundState.FAILED
        assert failed.round.reason is not None
        assert failed.round.reason.startswith("deadline")
    assert step(enough.round, DeadlinePassed()) == Transition(enough.round)


def test_a_round_whose_participants_have_all_failed_fails_at_once_and_says_why() -> None:
    current = after(
        collecting(), ParticipantFailed("b", "no image"), ParticipantFailed("a", "no image")
    ).round
    assert current.state is RoundState.COLLECTING
    done = step(current, ParticipantFailed("c", "bad lr"))
    assert done.effects == (Persist(), Answer(Verdict.ACCEPTED))
    assert done.round.state is RoundState.FAILED
    assert done.round.reason == (
        "no update can come any more: 3 of 3 participants failed: no image (and 1 more reason)"
    )
    same = step(current, ParticipantFailed("c", "no image")).round
    assert same.reason == "no update can come any more: 3 of 3 participants failed: no image"
    different = after(collecting(), *(ParticipantFailed(name, f"{name}!") for name in "cba")).round
    assert different.reason is not None
    assert different.reason.endswith("failed: a! (and 2 more reasons)")


@pytest.mark.parametrize(
    ("reasons", "is_one"),
    [
        (["the program exited with code 1: train.py:9: KeyError: 'x'"] * 3, True),
        (["the program exited with code 1: train.py:9: KeyError: 'x'"] * 2, False),
        (["the program exited with code 1: a"] * 2 + ["the program exited with code 1: b"], False),
        (["the program aborted (wasm trap: unreachable): panicked at src/main.rs:1:58: bad shape"] * 3, True),
        (["the program aborted (wasm trap: unreachable)"] * 3, False),
        (["the program exited with code 137"] * 3, False),
        (["wall_time_s: the program exited with code 1: slow"] * 3, False),
        (["no image"] * 3, False),
    ],
)
def test_an_error_of_the_program_is_told_from_others(reasons: list[str], is_one: bool) -> None:
    failures = (ParticipantFailed(name, reason) for name, reason in zip("abc", reasons, strict=False))
    current = after(collecting(), *failures).round
    assert current.program_error == (reasons[0] if is_one else None)


def test_what_has_come_is_aggregated_once_no_more_can_come() -> None:
    failures = (ParticipantFailed("b", "lost"), ParticipantFailed("c", "lost"))
    for events in ((UpdateReceived("a", "1"), *failures), (*failures, UpdateReceived("a", "1"))):
        done = after(collecting(3), *events)
        assert done.effects == (Persist(), Answer(Verdict.ACCEPTED), Aggregate(("a",)))
        few = after(collecting(3, least=2), *events)
        assert few.effects == (Persist(), Answer(Verdict.ACCEPTED))
        assert few.round.reason == (
            "no update can come any more, 1 of 3 came and at least 2 needed: 2 of 3 participants failed: lost"
        )


def test_an_update_undoes_the_failure_of_its_sender_and_not_the_other_way_round() -> None:
    current = after(collecting(3), ParticipantFailed("a", "lost"), ParticipantFailed("b", "x")).round
    back = step(current, UpdateReceived("a", "1")).round
    assert (dict(back.accepted), dict(back.failures)) == ({"a": "1"}, {"b": "x"})
    assert step(back, ParticipantFailed("a", "lost")) == Transition(back, (Answer(Verdict.REPEATED),))


def test_the_last_reason_of_a_failure_wins_and_the_same_again_changes_nothing() -> None:
    current = after(collecting(), ParticipantFailed("a", "lost"), ParticipantFailed("a", "no image")).round
    assert dict(current.failures) == {"a": "no image"}
    again = step(current, ParticipantFailed("a", "no image"))
    assert again == Transition(current, (Answer(Verdict.REPEATED),))


def test_failures_of_others_and_of_rounds_that_collect_no_more_change_nothing() -> None:
    current = collecting(1)
    assert verdict(step(current, ParticipantFailed("x", "lost"))) is Verdict.FOREIGN
    closed = step(current, UpdateReceived("a", "1")).round
    for state in (Round(current.plan), closed, step(closed, AggregateStored(1)).round):
        done = step(state, ParticipantFailed("b", "lost"))
        assert (done.round, verdict(done)) == (state, Verdict.LATE)


def test_the_deadline_names_the_failures_too() -> None:
    failed = after(collecting(), ParticipantFailed("a", "no image"), DeadlinePassed()).round
    assert failed.reason == (
        "deadline: 0 of 2 updates came in time, at least 1 needed: 2 of 3 were not heard of; "
        "1 of 3 participants failed: no image"
    )


def test_the_deadline_says_what_each_missing_participant_was_doing() -> None:
    compiling = dict.fromkeys("abc", "compiling the program")
    all_compile = step(collecting(), DeadlinePassed(compiling)).round
    assert all_compile.reason == (
        "deadline: 0 of 2 updates came in time, at least 1 needed: 3 of 3 were still compiling the program"
    )
    current = after(collecting(3, least=2), UpdateReceived("a", "1")).round
    mixed = step(current, DeadlinePassed({"a": "sending the result", "c": "running the program"})).round
    assert mixed.reason == (
        "deadline: 1 of 3 updates came in time, at least 2 needed: "
        "1 of 3 was not heard of, 1 of 3 was still running the program"
    )
    assert mixed.failures == {
        "b": "no update by the deadline: nothing was heard of it",
        "c": "no update by the deadline: it was still running the program",
    }


def test_who_is_late_has_failed_although_the_round_goes_on_without_them() -> None:
    current = after(collecting(3), UpdateReceived("b", "1"), ParticipantFailed("a", "no image")).round
    closed = step(current, DeadlinePassed({"c": "compiling the program"}))
    assert closed.round.state is RoundState.AGGREGATING
    assert closed.round.failures == {
        "a": "no image",
        "c": "no update by the deadline: it was still compiling the program",
    }
    assert verdict(step(closed.round, UpdateReceived("c", "2"))) is Verdict.LATE


def test_a_stored_aggregate_completes_and_is_published_once() -> None:
    closed = after(collecting(1), UpdateReceived("a", "1")).round
    done = step(closed, AggregateStored(9))
    assert done.effects == (Persist(), AnnounceVersion(9))
    assert (done.round.state, done.round.model_version) == (RoundState.COMPLETED, 9)
    for event in (
        AggregateStored(10),
        AggregationFailed("x"),
        DeadlinePassed(),
        RetryRequested(),
        RoundConfigured(),
    ):
        assert step(done.round, event) == Transition(done.round)


def test_a_failed_aggregation_says_why_and_can_be_retried() -> None:
    failed = after(collecting(1), UpdateReceived("a", "1"), AggregationFailed("no aggregator")).round
    assert (failed.state, failed.reason) == (RoundState.FAILED, "no aggregator")
    again = step(failed, RetryRequested())
    assert again.effects == (Persist(), Aggregate(("a",)))
    assert again.round.reason is None


def test_a_round_without_enough_updates_cannot_be_retried() -> None:
    failed = step(collecting(), DeadlinePassed()).round
    assert step(failed, RetryRequested()) == Transition(failed)


def test_only_an_open_aggregation_is_resumed_after_a_crash() -> None:
    current = collecting()
    assert resume(current) == ()
    closed = after(current, UpdateReceived("b", "1"), UpdateReceived("a", "2")).round
    assert resume(closed) == (Aggregate(("a", "b")),)
    assert resume(step(closed, AggregateStored(1)).round) == ()


def created(k: int | None = None, least: int = 1) -> Round:
    return Round(RoundPlan("r-1", (), 4, k, least))


def test_participants_are_chosen_later_and_the_first_choice_stays() -> None:
    fresh = created()
    assert verdict(step(fresh, UpdateReceived("a", "1"))) is Verdict.FOREIGN
    assert step(fresh, RoundConfigured()) == step(fresh, DeadlinePassed()) == Transition(fresh)
    done = step(fresh, ParticipantsChosen(("a", "b", "c"), surplus=1))
    assert done.effects == (Persist(),)
    assert (done.round.state, done.round.plan.participants, done.round.plan.k_of_n) == (
        RoundState.COLLECTING,
        ("a", "b", "c"),
        2,
    )
    for late in (ParticipantsChosen(("x",)), ChoiceFailed("nobody"), RoundConfigured()):
        assert step(done.round, late) == Transition(done.round)
    assert step(created(k=2), ParticipantsChosen(("a", "b", "c"))).round.plan.k_of_n == 2


def test_a_choice_that_failed_ends_the_round_and_participants_come_too_late() -> None:
    failed = step(created(), ChoiceFailed("3 devices needed, 1 there"))
    assert failed.effects == (Persist(),)
    assert (failed.round.state, failed.round.reason) == (RoundState.FAILED, "3 devices needed, 1 there")
    assert step(failed.round, ParticipantsChosen(("a",))) == Transition(failed.round)


def test_a_round_whose_participants_are_known_is_not_chosen_for() -> None:
    known = Round(RoundPlan("r-1", ("a",), 0, 1))
    for event in (ParticipantsChosen(("b",)), ChoiceFailed("nobody")):
        assert step(known, event) == Transition(known)


@pytest.mark.parametrize(
    ("fresh", "event"),
    [
        (created(), ParticipantsChosen(())),
        (created(k=3), ParticipantsChosen(("a", "b"))),
        (created(least=3), ParticipantsChosen(("a", "b", "c"), surplus=1)),
        (created(), ParticipantsChosen(("a", "a"))),
    ],
)
def test_a_choice_with_which_the_round_cannot_close_fails_it(fresh: Round, event: ParticipantsChosen) -> None:
    done = step(fresh, event)
    assert (done.round.state, done.effects) == (RoundState.FAILED, (Persist(),))
    assert done.round.reason is not None
    assert "participants" in done.round.reason


def test_an_open_round_can_be_cancelled_and_one_that_is_over_not() -> None:
    closed = after(collecting(1), UpdateReceived("a", "1")).round
    for current in (created(), collecting(), closed):
        done = step(current, RoundCancelled("stopped"))
        assert done.effects == (Persist(),)
        assert (done.round.state, done.round.reason) == (RoundState.FAILED, "stopped")
        assert step(done.round, RoundCancelled("again")) == Transition(done.round)
        assert step(done.round, AggregateStored(5)) == Transition(done.round)
    over = step(closed, AggregateStored(5)).round
    assert step(over, RoundCancelled("stopped")) == Transition(over)


def test_an_evaluation_completes_with_what_has_come_and_makes_no_version() -> None:
    plan = RoundPlan("r-1", ("a", "b", "c"), 4, 2, kind="evaluate")
    current = step(Round(plan), RoundConfigured()).round
    quorum = after(current, UpdateReceived("a", "1"), UpdateReceived("b", "2"))
    assert quorum.effects == (Persist(), Answer(Verdict.ACCEPTED))
    deadline = after(current, UpdateReceived("a", "1"), DeadlinePassed())
    assert deadline.effects == (Persist(),)
    for done in (quorum, deadline):
        assert (done.round.state, done.round.model_version) == (RoundState.COMPLETED, None)
        assert resume(done.round) == ()
    assert step(current, DeadlinePassed()).round.state is RoundState.FAILED


def test_a_wave_completes_once_all_are_heard_and_makes_no_version() -> None:
    fresh = Round(RoundPlan("e.w1", (), 4, None, is_wave=True))
    chosen = ParticipantsChosen(("a", "b", "c"))
    done = after(
        fresh, chosen, UpdateReceived("c", "1"), ParticipantFailed("b", "lost"), UpdateReceived("a", "2")
    )
    assert done.effects == (Persist(), Answer(Verdict.ACCEPTED))
    assert (done.round.state, done.round.model_version) == (RoundState.COMPLETED, None)
    assert list(done.round.accepted) == ["c", "a"]  # as they came
    assert after(fresh, chosen, DeadlinePassed()).round.state is RoundState.FAILED


def test_who_was_not_heard_is_known_at_the_end() -> None:
    current = after(collecting(3), UpdateReceived("b", "1"), ParticipantFailed("c", "lost"), DeadlinePassed())
    assert current.round.unheard == ("a", "c")


NAMES = ("a", "b", "c", "d")


reports = st.lists(
    st.builds(
        UpdateReceived, st.sampled_from((*NAMES, "x")), st.sampled_from("12"), st.sampled_from((None, 4, 5))
    )
    | st.builds(ParticipantFailed, st.sampled_from((*NAMES, "x")), st.sampled_from(("lost", "no image"))),
    max_size=9,
)


@given(reports, st.integers(1, 4), st.sampled_from(("train", "evaluate")), st.booleans(), st.booleans())
def test_reports_together_are_the_same_as_one_by_one(
    told: list[UpdateReceived | ParticipantFailed], k: int, kind: RoundKind, is_wave: bool, is_over: bool
) -> None:
    plan = RoundPlan("r-1", NAMES, 4, k, min(k, 2), kind, is_wave)
    current = step(Round(plan), RoundConfigured()).round
    if is_over:
        current = step(current, RoundCancelled("stopped")).round
    single = Transition(current)
    effects: list[Effect] = []
    for report in told:
        single = step(single.round, report)
        effects += single.effects
    together = step(current, ParticipantsReported(tuple(told)))
    assert together.round == single.round
    assert [*together.round.accepted] == [*single.round.accepted]  # in the same order too
    assert [*together.round.failures] == [*single.round.failures]
    answers = [effect for effect in effects if isinstance(effect, Answer)]
    others = [effect for effect in effects if not isinstance(effect, Answer | Persist)]
    first = [Persist()] if Persist() in effects else []
    assert together.effects == (*first, *answers, *others)


class RoundMachine(RuleBasedStateMachine):
    """Any events in any order, with crashes between them; beside it the least that must be remembered."""

    fresh = Round(RoundPlan("r-1", NAMES, 4, 3, 2))

    def __init__(self) -> None:
        super().__init__()
        self.round = self.fresh
        self.durable = self.round
        self.acknowledged: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.aggregations: list[tuple[str, ...]] = []
        self.published: list[int] = []
        self.history = [self.round.state]

    def feed(self, event: Event) -> Transition:
        before, done = self.round, step(self.round, event)
        self.round = done.round
        for effect in done.effects:
            match effect:
                case Persist():
                    self.durable = done.round
                case Answer(said):
                    assert self.durable == done.round
                    if said is Verdict.ACCEPTED:
                        self.accept(event)
                case Aggregate(names):
                    assert self.durable.state is RoundState.AGGREGATING
                    self.aggregations.append(names)
                case AnnounceVersion(version):
                    assert self.durable.model_version == version
                    self.published.append(version)
        if done.round != before:
            assert Persist() in done.effects
        if done.round.state != self.history[-1]:
            self.history.append(done.round.state)
        return done

    def accept(self, event: Event) -> None:
        assert isinstance(event, UpdateReceived | ParticipantFailed)
        assert event.proplet_id not in self.acknowledged
        if isinstance(event, UpdateReceived):
            self.acknowledged[event.proplet_id] = event.digest
            self.failures.pop(event.proplet_id, None)
        else:
            self.failures[event.proplet_id] = event.reason

    @rule()
    def configure(self) -> None:
        self.feed(RoundConfigured())

    @rule(
        name=st.sampled_from((*NAMES, "x")), digest=st.sampled_from("12"), base=st.sampled_from((None, 4, 5))
    )
    def update(self, name: str, digest: str, base: int | None) -> None:
        admission = admit(self.round, name, base)
        done = self.feed(UpdateReceived(name, digest, base))
        if admission.verdict is Verdict.ACCEPTED:
            assert verdict(done) in {Verdict.ACCEPTED, Verdict.REPEATED, Verdict.DIFFERENT}
        else:
            assert done.effects == (admission,)
        assert sum(isinstance(effect, Answer) for effect in done.effects) == 1
        if name == "x":
            assert verdict(done) is Verdict.FOREIGN

    @rule(chosen=st.sampled_from((NAMES, (*NAMES[::-1], "e"), ("a", "b"))), surplus=st.integers(0, 2))
    def choose(self, chosen: tuple[str, ...], surplus: int) -> None:
        before = self.round
        done = self.feed(ParticipantsChosen(chosen, surplus))
        if before.plan.is_chosen or before.state is not RoundState.CREATED:
            assert done == Transition(before)

    @rule()
    def not_chosen(self) -> None:
        self.feed(ChoiceFailed("too few"))

    @precondition(lambda self: len(self.history) > 2)
    @rule()
    def cancel(self) -> None:
        before = self.round
        done = self.feed(RoundCancelled("stopped"))
        assert done.round.state.is_over
        assert (done == Transition(before)) == before.state.is_over

    @rule(name=st.sampled_from((*NAMES, "x")), reason=st.sampled_from(("lost", "no image")))
    def failure(self, name: str, reason: str) -> None:
        done = self.feed(ParticipantFailed(name, reason))
        assert sum(isinstance(effect, Answer) for effect in done.effects) == 1
        if name == "x":
            assert verdict(done) is Verdict.FOREIGN

    @rule()
    def deadline(self) -> None:
        before = self.round
        self.feed(DeadlinePassed())
        if before.state is RoundState.COLLECTING:
            for name in before.unheard:
                self.failures.setdefault(name, "no update by the deadline: nothing was heard of it")

    @rule(version=st.integers(1, 9))
    def stored(self, version: int) -> None:
        self.feed(AggregateStored(version))

    @rule()
    def not_stored(self) -> None:
        self.feed(AggregationFailed("no aggregator"))

    @rule(names=st.sets(st.sampled_from((*NAMES, "x"))))
    def left_out(self, names: set[str]) -> None:
        before = self.round
        done = self.feed(UpdatesLeftOut(dict.fromkeys(names, "too large")))
        gone = {name for name in names if name in before.accepted}
        if before.state is not RoundState.AGGREGATING or not gone:
            assert done == Transition(before)
            return
        for name in gone:
            del self.acknowledged[name]
            self.failures[name] = "too large"
        # Those of more updates are of no account any more.
        goes_on = done.round.state is RoundState.AGGREGATING
        assert goes_on == (len(self.acknowledged) >= before.plan.min_updates)
        self.aggregations = self.aggregations[-1:] if goes_on else []

    @precondition(lambda self: self.round.state is RoundState.FAILED)
    @rule()
    def retry(self) -> None:
        self.feed(RetryRequested())

    @rule()
    def crash(self) -> None:
        self.round = self.durable
        for effect in resume(self.round):
            assert isinstance(effect, Aggregate)
            assert effect.proplet_ids == self.aggregations[-1]

    @invariant()
    def every_acknowledged_update_counts_once_and_no_other(self) -> None:
        assert dict(self.round.accepted) == self.acknowledged
        assert len(self.acknowledged) <= (self.round.plan.k_of_n or 0)

    @invariant()
    def every_acknowledged_failure_is_remembered_until_its_update_comes(self) -> None:
        assert dict(self.round.failures) == self.failures

    @invariant()
    def a_round_that_collects_can_get_an_update(self) -> None:
        if self.round.state is RoundState.COLLECTING:
            assert len(self.acknowledged) + len(self.failures) < len(self.round.plan.participants)
            assert not self.round.has_heard_from_all

    @invariant()
    def every_aggregation_is_of_all_acknowledged_updates(self) -> None:
        if self.aggregations:
            assert set(self.aggregations[-1]) == set(self.acknowledged)
            assert len(set(self.aggregations)) == 1
            assert len(self.acknowledged) >= self.round.plan.min_updates

    @invariant()
    def aggregated_once_unless_it_failed_and_was_retried(self) -> None:
        failures = sum(one is RoundState.FAILED for one in self.history)
        assert len(self.aggregations) <= 1 + failures

    @invariant()
    def completed_is_final_and_published_once(self) -> None:
        if RoundState.COMPLETED in self.history:
            assert self.history[-1] is RoundState.COMPLETED
            assert self.published == ([self.round.model_version] if self.round.plan.kind == "train" else [])
        else:
            assert self.published == []

    @invariant()
    def a_failed_round_says_why(self) -> None:
        assert (self.round.state is RoundState.FAILED) == (self.round.reason is not None)


class ChosenRoundMachine(RoundMachine):
    """The same, of a round whose participants come after it is created."""

    fresh = Round(RoundPlan("r-1", (), 4, None, 2))


class EvaluationMachine(RoundMachine):
    """The same, of a round that makes no version."""

    fresh = Round(RoundPlan("r-1", (), 4, 2, kind="evaluate"))

    @invariant()
    def nothing_is_aggregated(self) -> None:
        assert self.aggregations == []
        assert self.round.model_version is None
        assert RoundState.AGGREGATING not in self.history


TestRoundMachine = RoundMachine.TestCase
TestChosenRoundMachine = ChosenRoundMachine.TestCase
TestEvaluationMachine = EvaluationMachine.TestCase


def test_updates_that_are_left_out_of_an_aggregation_are_failures() -> None:
    closed = after(collecting(k=3, least=2), *(UpdateReceived(name, "1") for name in "abc")).round
    done = step(closed, UpdatesLeftOut({"b": "too large"}))
    assert done.effects == (Persist(), Aggregate(("a", "c")))
    assert (dict(done.round.failures), done.round.unheard) == ({"b": "too large"}, ("b",))
    few = step(done.round, UpdatesLeftOut({"c": "too large"})).round
    assert (few.state, few.reason) == (
        RoundState.FAILED,
        "1 updates are left and at least 2 needed: 2 of 3 participants failed: too large",
    )
