"""The experiment as a state machine: each rule by example, and its invariants under any events and crashes."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from propeller.fl.experiment import (
    Admitted,
    Best,
    CancelRound,
    CannotGoOn,
    EvaluateCentrally,
    Event,
    Experiment,
    ExperimentState,
    MarkBest,
    MarkLatest,
    OpenRound,
    PauseRequested,
    Persist,
    Report,
    ResumeRequested,
    RoundEnded,
    RoundRequest,
    StartRound,
    StopRequested,
    TimePassed,
    Transition,
    refusal,
    resume,
    round_id,
    step,
)
from propeller.functions import missing_function
from propeller.protocol.experiments import ExperimentSpec
from support.experiment_world import Outcome, World


def queued(**fields: Any) -> Experiment:
    return Experiment("e", ExperimentSpec.decode({"program": "p", "rounds": 3, **fields}), 7)


def after(current: Experiment, *events: Event) -> Transition:
    done = Transition(current)
    for event in events:
        done = step(done.experiment, event)
    return done


def running(**fields: Any) -> Experiment:
    return step(queued(**fields), Admitted(0.0)).experiment


def trained(round_id: str, version: int, at: float = 1.0, **metrics: float) -> RoundEnded:
    return RoundEnded(round_id, at, version, metrics, participants=("a", "b"))


def evaluated(round_id: str, at: float = 1.0, **metrics: float) -> RoundEnded:
    return RoundEnded(round_id, at, None, metrics)


def failed(round_id: str, reason: str = "deadline", *names: str) -> RoundEnded:
    return RoundEnded(round_id, 1.0, reason=reason, participants=("a", "b"), failed=names)


def started(done: Transition) -> RoundRequest:
    return next(one.request for one in done.effects if isinstance(one, StartRound | EvaluateCentrally))


def reports(done: Transition) -> list[str]:
    return [one.kind for one in done.effects if isinstance(one, Report)]


def test_a_queued_experiment_starts_its_first_round_once_it_is_admitted() -> None:
    done = step(queued(hyperparams={"lr": 0.1}, k_of_n=2, strategy="fedmedian"), Admitted(5.0))
    assert done.experiment.state is ExperimentState.RUNNING
    assert reports(done) == ["state", "round_started"]
    assert [type(one) for one in done.effects] == [Persist, Report, Report, StartRound]
    request = started(done)
    assert (request.round_id, request.kind, request.number, request.attempt) == ("e.1", "train", 1, 1)
    assert (request.base_version, request.k_of_n, request.min_updates, request.timeout_s) == (7, 2, 1, 60.0)
    assert (request.hyperparams, request.strategy) == ({"lr": 0.1}, {"name": "fedmedian"})
    assert request.policy.min_chosen == 2
    assert step(done.experiment, Admitted(6.0)) == Transition(done.experiment)


def test_each_round_starts_from_the_version_before_until_all_are_done() -> None:
    second = step(running(), trained("e.1", 8))
    assert [type(one) for one in second.effects] == [Persist, Report, Report, StartRound, MarkLatest]
    assert (started(second).round_id, started(second).base_version) == ("e.2", 8)
    end = after(second.experiment, trained("e.2", 12), trained("e.3", 13))
    assert end.effects[0] == Persist()
    assert end.effects[-2:] == (
        Report("state", {"state": "completed", "reason": None}),
        MarkLatest(13),
    )
    assert (end.experiment.state, end.experiment.done, end.experiment.version) == (
        ExperimentState.COMPLETED,
        3,
        13,
    )
    assert end.experiment.is_settled


def test_schedules_are_resolved_for_the_round() -> None:
    lr = {"schedule": "linear", "start": 1.0, "end": 0.0}
    one = running(hyperparams={"lr": lr})
    assert started(step(one, trained("e.1", 8))).hyperparams == {"lr": 0.5}


def test_the_end_of_a_round_that_is_not_open_changes_nothing() -> None:
    second = step(running(), trained("e.1", 8)).experiment
    for event in (trained("e.1", 9), failed("e.1"), trained("e.3", 9), trained("e.e1", 9), trained("x", 9)):
        assert step(second, event) == Transition(second)


def test_a_failed_round_is_tried_again_without_those_that_failed() -> None:
    again = step(running(retries=2), failed("e.1", "no image", "b"))
    assert (started(again).round_id, started(again).attempt, started(again).number) == ("e.1.2", 2, 1)
    assert started(again).policy.exclude == ["b"]
    assert started(again).base_version == 7
    third = step(again.experiment, failed("e.1.2", "no image", "b", "c"))
    assert started(third).policy.exclude == ["b", "c"]
    fresh = step(third.experiment, trained("e.1.3", 8))
    assert (started(fresh).round_id, started(fresh).policy.exclude) == ("e.2", [])


def test_an_experiment_fails_with_the_reason_of_its_last_try() -> None:
    end = after(running(retries=1), failed("e.1", "first"), failed("e.1.2", "3 devices needed, 1 there"))
    assert (end.experiment.state, end.experiment.reason) == (
        ExperimentState.FAILED,
        "round 1 failed 2 times, the last time: 3 devices needed, 1 there",
    )
    assert end.experiment.is_settled
    assert step(running(retries=0), failed("e.1", "why")).experiment.reason == "round 1 failed: why"
    evaluation = after(running(retries=0, evaluate={}), trained("e.1", 8), failed("e.e1", "no @evaluate"))
    assert evaluation.experiment.reason == "the evaluation after round 1 failed: no @evaluate"
    assert evaluation.experiment.version == 8
    # What a program lacks it lacks in each try.
    lacks = after(
        running(evaluate={}), trained("e.1", 8), failed("e.e1", f"p-1: {missing_function('evaluate')}")
    )
    assert (lacks.experiment.state, lacks.experiment.open) == (ExperimentState.FAILED, None)
    assert "mark one with @evaluate" in str(lacks.experiment.reason)


MISTAKE = "the program exited with code 1: train.py:9: KeyError: 'nope'"


def mistaken(round_id: str, *names: str) -> RoundEnded:
    reason = f"no update can come any more: {MISTAKE}"
    return RoundEnded(round_id, 1.0, reason=reason, participants=names, failed=names, program_error=MISTAKE)


def test_a_mistake_of_the_program_is_not_tried_again() -> None:
    end = step(running(), mistaken("e.1", "a", "b"))
    assert (end.experiment.state, end.experiment.reason) == (
        ExperimentState.FAILED,
        f"round 1 failed, and is not tried again, as the program itself fails alike on every device: {MISTAKE}",
    )
    assert reports(end) == ["round_ended", "state"]
    # Nothing is said of tries that nobody asked for.
    none = step(running(retries=0), mistaken("e.1", "a", "b"))
    assert none.experiment.reason == f"round 1 failed: no update can come any more: {MISTAKE}"
    evaluation = after(running(evaluate={}), trained("e.1", 8), mistaken("e.e1", "a", "b"))
    assert str(evaluation.experiment.reason).startswith(
        "the evaluation after round 1 failed, and is not tried"
    )
    central = RoundEnded("e.e1", 1.0, reason="r", participants=("coordinator",), program_error=MISTAKE)
    asked = {"on": "central", "dataset": "d"}
    assert (
        after(running(evaluate=asked), trained("e.1", 8), central).experiment.state is ExperimentState.FAILED
    )


def test_devices_that_may_differ_are_tried_before_it_counts_as_a_mistake_of_the_program() -> None:
    # One device by itself: others may have other data; if there are none it fails a second time.
    again = step(running(), mistaken("e.1", "a"))
    assert started(again).policy.exclude == ["a"]
    assert step(again.experiment, mistaken("e.1.2", "b")).experiment.state is ExperimentState.RUNNING
    end = step(again.experiment, mistaken("e.1.2", "a"))
    assert str(end.experiment.reason).startswith("round 1 failed 2 times, and is not tried again, as")
    # The program has worked on others.
    later = after(running(), trained("e.1", 8), mistaken("e.2", "c", "d"))
    assert started(later).policy.exclude == ["c", "d"]
    assert step(later.experiment, mistaken("e.2.2", "d", "e")).experiment.state is ExperimentState.RUNNING
    assert step(later.experiment, mistaken("e.2.2", "d", "c")).experiment.state is ExperimentState.FAILED


def test_versions_are_evaluated_on_devices_every_so_often_and_at_the_end() -> None:
    one = running(
        rounds=3,
        evaluate={"every": 2, "fraction": 0.5},
        selection={"count": 4, "tags": ["x"], "seed": 3},
        k_of_n=2,
    )
    two = after(one, trained("e.1", 8), trained("e.2", 9))
    request = started(two)
    assert (request.round_id, request.kind, request.base_version) == ("e.e2", "evaluate", 9)
    assert (request.k_of_n, request.min_updates) == (None, 1)
    assert (request.policy.fraction, request.policy.count, request.policy.tags, request.policy.seed) == (
        0.5,
        None,
        ["x"],
        3,
    )
    again = step(two.experiment, failed("e.e2", "deadline", "a"))
    assert (started(again).round_id, started(again).policy.exclude) == ("e.e2.2", ["a"])
    three = after(again.experiment, evaluated("e.e2.2", acc=0.5), trained("e.3", 10))
    assert started(three).round_id == "e.e3"
    end = step(three.experiment, evaluated("e.e3", acc=0.5))
    assert end.experiment.state is ExperimentState.COMPLETED


def test_a_central_evaluation_is_an_effect_that_is_answered_alike() -> None:
    one = running(evaluate={"on": "central", "dataset": "test"})
    done = step(one, trained("e.1", 8))
    assert [type(one) for one in done.effects] == [Persist, Report, Report, EvaluateCentrally, MarkLatest]
    assert (started(done).round_id, started(done).base_version) == ("e.e1", 8)
    assert resume(done.experiment) == (EvaluateCentrally(started(done)), MarkLatest(8))
    assert started(step(done.experiment, evaluated("e.e1", loss=1.0))).round_id == "e.2"
    stopped = step(done.experiment, StopRequested(2.0))
    assert CancelRound("e.e1", "the experiment is stopped: stopped by request") in stopped.effects


def test_a_paused_experiment_lets_its_round_end_and_starts_no_other() -> None:
    paused = step(running(), PauseRequested(1.0))
    assert paused.effects == (Persist(), Report("state", {"state": "paused", "reason": None}))
    assert step(paused.experiment, PauseRequested(2.0)) == Transition(paused.experiment)
    ended = step(paused.experiment, trained("e.1", 8))
    assert [type(one) for one in ended.effects] == [Persist, Report, MarkLatest]
    assert (ended.experiment.state, ended.experiment.done, ended.experiment.needs_place) == (
        ExperimentState.PAUSED,
        1,
        False,
    )
    back = after(ended.experiment, ResumeRequested(3.0), Admitted(4.0))
    assert (started(back).round_id, back.experiment.running_since) == ("e.2", 4.0)
    # The open round is not started twice if it goes on before its end.
    early = step(paused.experiment, ResumeRequested(2.0))
    assert [type(one) for one in early.effects] == [Persist, Report]
    assert started(step(early.experiment, failed("e.1"))).round_id == "e.1.2"


def test_who_is_resumed_without_an_open_round_waits_for_a_place() -> None:
    paused = after(running(), PauseRequested(1.0), trained("e.1", 8)).experiment
    waiting = step(paused, ResumeRequested(2.0))
    assert waiting.effects == (Persist(), Report("state", {"state": "queued", "reason": None}))
    assert not waiting.experiment.needs_place
    assert step(waiting.experiment, ResumeRequested(3.0)) == Transition(waiting.experiment)
    back = step(waiting.experiment, PauseRequested(3.0))
    assert back.effects == (Persist(), Report("state", {"state": "paused", "reason": None}))
    assert step(back.experiment, Admitted(4.0)) == Transition(back.experiment)
    assert step(waiting.experiment, StopRequested(3.0)).experiment.is_settled


def test_an_experiment_that_cannot_go_on_fails_and_cancels_what_is_open() -> None:
    done = step(running(), CannotGoOn(1.0, "strategy: there is none"))
    assert done.effects == (
        Persist(),
        Report("state", {"state": "failed", "reason": "strategy: there is none"}),
        CancelRound("e.1", "the experiment is failed: strategy: there is none"),
    )
    assert step(done.experiment, CannotGoOn(2.0, "again")) == Transition(done.experiment)


def test_a_pause_outlives_a_failure_and_the_last_round_ends_it() -> None:
    paused = after(running(rounds=1), PauseRequested(1.0), failed("e.1"))
    assert (paused.experiment.state, paused.experiment.failed_tries) == (ExperimentState.PAUSED, 1)
    again = after(paused.experiment, ResumeRequested(2.0), Admitted(2.0))
    assert started(again).round_id == "e.1.2"
    end = after(again.experiment, PauseRequested(3.0), trained("e.1.2", 8))
    assert end.experiment.state is ExperimentState.COMPLETED


def test_stopping_cancels_the_open_round_and_keeps_what_it_gave_all_the_same() -> None:
    one = running()
    done = step(one, StopRequested(1.0, "enough"))
    assert done.effects == (
        Persist(),
        Report("state", {"state": "stopped", "reason": "enough"}),
        CancelRound("e.1", "the experiment is stopped: enough"),
    )
    assert not done.experiment.is_settled
    assert resume(done.experiment) == done.effects[2:]
    assert step(done.experiment, StopRequested(2.0)) == Transition(done.experiment)
    for ending, version, count in ((failed("e.1", "cancelled"), 7, 0), (trained("e.1", 8), 8, 1)):
        end = step(done.experiment, ending).experiment
        assert (end.state, end.reason, end.version, end.done) == (
            ExperimentState.STOPPED,
            "enough",
            version,
            count,
        )
        assert end.is_settled
        assert step(end, ending) == Transition(end)
    assert step(queued(), StopRequested(1.0)).experiment.is_settled


@pytest.mark.parametrize(
    ("event", "allowed"),
    [
        (PauseRequested(1.0), {"queued", "running", "paused"}),
        (ResumeRequested(1.0), {"queued", "running", "paused"}),
        (StopRequested(1.0), {"queued", "running", "paused", "stopped"}),
    ],
)
def test_requests_that_cannot_be_fulfilled_are_refused_and_change_nothing(
    event: Any, allowed: set[str]
) -> None:
    one = running()
    over = after(one, trained("e.1", 8), trained("e.2", 9), trained("e.3", 10)).experiment
    states = [
        queued(),
        one,
        step(one, PauseRequested(1.0)).experiment,
        step(one, StopRequested(1.0)).experiment,
        over,
        step(running(retries=0), failed("e.1")).experiment,
    ]
    for state in states:
        why = refusal(state, event)
        assert (why is None) == (state.state.value in allowed)
        if why is not None:
            assert state.state.value in why
            assert step(state, event) == Transition(state)


def test_the_best_version_is_marked_and_worse_ones_are_not() -> None:
    one = running(rounds=4, stop={"metric": "acc"})
    first = step(one, trained("e.1", 8, acc=0.5))
    assert first.effects[-2:] == (MarkLatest(8), MarkBest(8, "acc", 0.5))
    assert "best" in reports(first)
    worse = step(first.experiment, trained("e.2", 9, acc=0.5))
    assert "best" not in reports(worse)
    assert worse.experiment.best == Best(8, "acc", 0.5)
    better = step(worse.experiment, trained("e.3", 10, acc=0.6))
    assert better.experiment.best == Best(10, "acc", 0.6)
    assert MarkBest(10, "acc", 0.6) in resume(better.experiment)


def test_without_a_metric_of_ones_own_the_loss_of_evaluations_marks_the_best_version() -> None:
    one = running(rounds=4, evaluate={})
    assert step(one, trained("e.1", 8, loss=0.1)).experiment.best is None
    first = after(one, trained("e.1", 8, loss=0.1), evaluated("e.e1", loss=0.5, accuracy=0.9))
    assert MarkBest(8, "loss", 0.5) in first.effects
    # Once chosen it stays: values of two metrics cannot be compared.
    second = after(first.experiment, trained("e.2", 9), evaluated("e.e2", accuracy=1.0))
    third = after(second.experiment, trained("e.3", 10), evaluated("e.e3", loss=0.4, accuracy=0.1))
    assert (second.experiment.best, third.experiment.best) == (Best(8, "loss", 0.5), Best(10, "loss", 0.4))


def test_evaluations_without_a_loss_mark_by_their_accuracy_or_not_at_all() -> None:
    one = running(rounds=4, evaluate={})
    by_accuracy = after(
        one,
        trained("e.1", 8),
        evaluated("e.e1", accuracy=0.5),
        trained("e.2", 9),
        evaluated("e.e2", accuracy=0.6),
    )
    assert by_accuracy.experiment.best == Best(9, "accuracy", 0.6)
    neither = after(one, trained("e.1", 8), evaluated("e.e1", f1=0.5)).experiment
    assert (neither.best, neither.state) == (None, ExperimentState.RUNNING)


def test_an_experiment_ends_at_its_target() -> None:
    up = after(
        running(stop={"metric": "acc", "target": 0.9}), trained("e.1", 8, acc=0.8), trained("e.2", 9, acc=0.9)
    )
    assert (up.experiment.state, up.experiment.reason) == (
        ExperimentState.COMPLETED,
        "acc is 0.9: the target 0.9 is reached",
    )
    down = step(running(stop={"metric": "loss", "target": 0.3}), trained("e.1", 8, loss=0.2))
    assert down.experiment.state is ExperimentState.COMPLETED
    assert (
        step(running(stop={"metric": "loss", "target": 0.3}), trained("e.1", 8, loss=0.4)).experiment.done
        == 1
    )


def test_an_experiment_ends_when_it_gets_no_better() -> None:
    one = running(rounds=9, stop={"metric": "loss", "patience": 2}, evaluate={})
    events: list[Event] = []
    for number, loss in enumerate([1.0, 0.5, 0.7, 0.4, 0.4, 0.6], 1):
        events += [trained(f"e.{number}", 7 + number, loss=9.0), evaluated(f"e.e{number}", loss=loss)]
    assert after(one, *events[:-1]).experiment.state is ExperimentState.RUNNING
    end = after(one, *events).experiment
    assert (end.state, end.done, end.best) == (ExperimentState.COMPLETED, 6, Best(11, "loss", 0.4))
    assert end.reason == "loss was 2 times in a row no better than the 0.4 of version 11"


def test_a_metric_that_nobody_reports_fails_the_experiment_at_once() -> None:
    end = step(
        running(stop={"metric": "acuracy", "goal": "max"}), trained("e.1", 8, loss=1.0, accuracy=0.5)
    ).experiment
    assert (end.state, end.version) == (ExperimentState.FAILED, 8)
    assert end.reason == (
        "stop.metric: 'acuracy' is not among the metrics of round 1, there are accuracy, loss; did you mean 'accuracy'?"
    )
    none = after(
        running(stop={"metric": "a", "goal": "max"}, evaluate={}), trained("e.1", 8, a=1.0), evaluated("e.e1")
    ).experiment
    assert (
        none.reason
        == "stop.metric: 'a' is not among the metrics of the evaluation after round 1, there are none"
    )
    # Once seen, a round without it is one that is no better.
    later = after(
        running(stop={"metric": "a", "goal": "max", "patience": 1}),
        trained("e.1", 8, a=1.0),
        trained("e.2", 9, b=1.0),
    ).experiment
    assert later.state is ExperimentState.COMPLETED


def test_time_counts_while_it_runs() -> None:
    one = step(queued(stop={"max_time_s": 100}), Admitted(1000.0)).experiment
    assert one.deadline == 1100.0
    assert step(one, TimePassed(1099.0)) == Transition(one)
    paused = step(one, PauseRequested(1060.0)).experiment
    assert paused.deadline is None
    assert step(paused, TimePassed(5000.0)) == Transition(paused)
    back = step(paused, ResumeRequested(2000.0)).experiment
    assert back.deadline == 2040.0
    end = step(back, TimePassed(2040.0))
    assert (end.experiment.state, end.experiment.reason) == (
        ExperimentState.COMPLETED,
        "stop.max_time_s: 100 s have passed",
    )
    assert [type(one) for one in end.effects] == [Persist, Report, CancelRound]
    late = step(back, trained("e.1", 8, at=2050.0)).experiment  # the timer may be late
    assert (late.state, late.done) == (ExperimentState.COMPLETED, 1)


def test_who_took_part_rests() -> None:
    one = running(rounds=5, selection={"count": 2, "cooldown_rounds": 2})
    two = step(one, trained("e.1", 8))
    assert started(two).policy.last_rounds == {"a": 1, "b": 1}
    three = step(two.experiment, RoundEnded("e.2", 1.0, 9, participants=("c",)))
    assert started(three).policy.last_rounds == {"a": 1, "b": 1, "c": 2}
    four = step(three.experiment, RoundEnded("e.3", 1.0, 10, participants=("d",)))
    assert started(four).policy.last_rounds == {"c": 2, "d": 3}


def test_ids_of_rounds() -> None:
    assert round_id("x", OpenRound("train", 3, 1)) == "x.3"
    assert round_id("x", OpenRound("train", 3, 2)) == "x.3.2"
    assert round_id("x", OpenRound("evaluate", 3, 1)) == "x.e3"
    assert round_id("x", OpenRound("evaluate", 3, 4)) == "x.e3.4"


specs = st.fixed_dictionaries(
    {"program": st.just("p"), "rounds": st.integers(1, 4), "retries": st.integers(0, 2)},
    optional={
        "evaluate": st.fixed_dictionaries({"every": st.just(1)})
        | st.just({"on": "central", "dataset": "test"}),
        "stop": st.fixed_dictionaries(
            {"metric": st.just("m"), "goal": st.just("max"), "patience": st.integers(1, 2)},
            optional={"target": st.just(3.0)},
        )
        | st.just({"max_time_s": 5.0}),
        "selection": st.just({"count": 2, "cooldown_rounds": 2}),
        "hyperparams": st.just({"lr": {"schedule": "linear", "start": 1.0, "end": 0.0}}),
    },
)
outcomes = st.tuples(
    st.booleans(), st.sampled_from([0.0, 1.0, 2.0, 3.0]), st.sampled_from([(), ("a",), ("a", "b")])
)


class ExperimentMachine(RuleBasedStateMachine):
    """Any events in any order, old ones again, and crashes between any two effects."""

    @initialize(fields=specs)
    def create(self, fields: dict[str, Any]) -> None:
        self.world = World(ExperimentSpec.decode(fields))

    @property
    def now(self) -> float:
        return self.world.now

    def feed(self, event: Event, crash: int | None) -> None:
        self.world.now += 0.5
        self.world.feed(event, crash)

    crashes = st.none() | st.integers(0, 6)

    @rule(crash=crashes)
    def admit(self, crash: int | None) -> None:
        self.feed(Admitted(self.now), crash)

    @rule(outcome=outcomes, crash=crashes, heard=st.booleans())
    def end_round(self, outcome: Outcome, crash: int | None, heard: bool) -> None:
        if self.world.open_rounds:
            end = self.world.end_round(self.world.open_rounds[0], outcome)
            if heard:
                self.feed(end, crash)
            else:
                self.world.crash()

    @rule(crash=crashes)
    def hear_what_waits(self, crash: int | None) -> None:
        if self.world.pending:
            self.feed(self.world.pending.pop(0), crash)

    @rule(data=st.data())
    def hear_again(self, data: st.DataObject) -> None:
        if self.world.ends:
            end = self.world.ends[data.draw(st.sampled_from(sorted(self.world.ends)))]
            self.feed(end, None)
            before = self.world.experiment
            self.feed(end, None)
            assert self.world.experiment == before

    @rule(crash=crashes, request=st.sampled_from([PauseRequested, ResumeRequested, TimePassed]))
    def request(self, crash: int | None, request: Any) -> None:
        self.feed(request(self.now), crash)

    @rule(crash=crashes)
    def stop(self, crash: int | None) -> None:
        if self.now > 4:
            self.feed(StopRequested(self.now), crash)

    @rule()
    def crash(self) -> None:
        self.world.crash()

    @invariant()
    def at_most_one_round_is_open(self) -> None:
        assert len(self.world.open_rounds) <= 1
        if self.world.open_rounds and self.world.experiment.open is not None:
            assert self.world.open_rounds[0] == round_id("e", self.world.experiment.open)

    @invariant()
    def one_that_runs_waits_for_something(self) -> None:
        one = self.world.experiment
        if one.state is ExperimentState.RUNNING:
            assert one.open is not None
        if one.open is not None:
            name = round_id("e", one.open)
            assert name in self.world.open_rounds or any(
                isinstance(end, RoundEnded) and end.round_id == name for end in self.world.pending
            )

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()
            self.world.check_the_end()


TestExperimentMachine = ExperimentMachine.TestCase


def run(spec: ExperimentSpec, script: Sequence[Outcome], crashes: Sequence[int | None]) -> World:
    """An experiment whose rounds end as the script says, with crashes at some of its steps."""
    world = World(spec)
    world.feed(Admitted(0.0), crashes[0])
    world.feed(Admitted(0.0))
    for number, outcome in enumerate(script, 1):
        world.now = float(number)
        if world.experiment.is_settled:
            break
        [name] = world.open_rounds
        world.feed(world.end_round(name, outcome), crashes[number % len(crashes)])
        while world.pending:
            world.feed(world.pending.pop(0))
    world.finish()
    return world


@given(
    specs, st.lists(outcomes, max_size=12), st.lists(st.none() | st.integers(0, 6), min_size=1, max_size=12)
)
def test_crashes_at_any_step_lead_to_the_same_end(
    fields: dict[str, Any], script: list[Outcome], crashes: list[int | None]
) -> None:
    spec = ExperimentSpec.decode(fields)
    undisturbed, disturbed = run(spec, script, [None]), run(spec, script, crashes)
    assert disturbed.experiment == undisturbed.experiment
    assert disturbed.requests == undisturbed.requests
    assert list(disturbed.requests) == list(undisturbed.requests)
    undisturbed.check_the_end()
