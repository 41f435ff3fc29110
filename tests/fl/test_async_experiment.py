"""Asynchronous experiments: waves, the buffer, staleness; and their invariants under any events and crashes."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from propeller.fl.experiment import (
    Admitted,
    CancelRound,
    Event,
    ExperimentState,
    MergedUpdate,
    MergeRequest,
    MergeUpdates,
    PauseRequested,
    Persist,
    Report,
    ResumeRequested,
    RoundRequest,
    StartRound,
    StopRequested,
    TimePassed,
    Transition,
    WaveChanged,
    step,
    wave_id,
)
from propeller.protocol.experiments import ExperimentSpec
from support.experiment_world import GOOD, Outcome, WaveRound, World


def world(
    *, fleet: int = 6, buffer: int = 2, concurrency: int = 4, staleness: int = 5, **fields: Any
) -> World:
    mode = {"kind": "async", "buffer": buffer, "concurrency": concurrency, "max_staleness": staleness}
    one = World(ExperimentSpec.decode({"program": "p", "rounds": 3, "mode": mode, **fields}), fleet)
    one.feed(Admitted(0.0))
    hear(one)
    return one


def hear(one: World) -> None:
    while one.pending:
        one.feed(one.pending.pop(0))


def choose(one: World, name: str) -> tuple[str, ...]:
    one.feed(one.choose(one.waves[name]))
    hear(one)
    return one.waves[name].participants or ()


def update(one: World, wave: str, name: str) -> Transition:
    return one.feed(one.send_update(one.waves[wave], name))


def waves(done: Transition) -> list[RoundRequest]:
    return [one.request for one in done.effects if isinstance(one, StartRound)]


def merges(done: Transition) -> list[MergeRequest]:
    return [one.request for one in done.effects if isinstance(one, MergeUpdates)]


def test_it_begins_with_as_many_devices_as_may_train_at_once() -> None:
    one = world(hyperparams={"lr": {"schedule": "linear", "start": 1.0, "end": 0.0}}, strategy="fedbuff")
    [wave] = one.waves.values()
    request = wave.request
    assert (request.round_id, request.is_wave, request.kind, request.base_version) == (
        "e.w1",
        True,
        "train",
        0,
    )
    assert (request.policy.up_to, request.policy.min_chosen, request.k_of_n) == (4, 1, None)
    assert (request.hyperparams, request.strategy) == ({"lr": 1.0}, {"name": "fedbuff"})
    assert len(choose(one, "e.w1")) == 4
    assert one.open_rounds == []


def test_a_full_buffer_is_merged_and_devices_are_replaced_at_the_new_version() -> None:
    one = world()
    first = choose(one, "e.w1")
    assert merges(update(one, "e.w1", first[3])) == []
    [request] = merges(update(one, "e.w1", first[1]))
    assert (request.round_id, request.number, request.base_version) == ("e.1", 1, 0)
    # In the order of slots, not that of arrival.
    assert request.updates == (MergedUpdate("e.w1", first[1], 0, 0), MergedUpdate("e.w1", first[3], 0, 0))
    done = one.feed(one.end_round("e.1", GOOD))
    [wave] = waves(done)
    assert (wave.round_id, wave.base_version, wave.policy.up_to, wave.policy.min_chosen) == ("e.w2", 3, 2, 0)
    assert set(wave.policy.busy) == {first[0], first[2]}
    hear(one)
    assert set(choose(one, "e.w2")).isdisjoint({first[0], first[2]})


def test_an_update_is_as_stale_as_versions_were_made_since_its_base() -> None:
    one = world()
    first = choose(one, "e.w1")
    update(one, "e.w1", first[0])
    update(one, "e.w1", first[1])
    one.feed(one.end_round("e.1", GOOD))
    hear(one)
    second = choose(one, "e.w2")
    update(one, "e.w2", second[0])
    [request] = merges(update(one, "e.w1", first[2]))
    assert request.base_version == 3
    assert request.updates == (MergedUpdate("e.w1", first[2], 0, 1), MergedUpdate("e.w2", second[0], 3, 0))


def test_what_comes_while_a_version_is_made_waits_for_the_next() -> None:
    one = world()
    first = choose(one, "e.w1")
    for name in first:
        update(one, "e.w1", name)
    assert one.open_rounds == ["e.1"]
    assert len(one.experiment.buffer) == 2
    done = one.feed(one.end_round("e.1", GOOD))
    [request] = merges(done)
    assert (request.round_id, [update.staleness for update in request.updates]) == ("e.2", [1, 1])


def test_waves_that_are_too_stale_are_cancelled_and_what_they_sent_is_dropped() -> None:
    one = world(staleness=0)
    first = choose(one, "e.w1")
    for name in first[:3]:
        update(one, "e.w1", name)
    done = one.feed(one.end_round("e.1", GOOD))
    reason = "stale: more than 0 versions were made since the base model"
    assert CancelRound("e.w1", reason) in done.effects
    dropped = {"round_id": "e.w1", "proplet_id": first[2], "reason": reason}
    assert Report("failure", dropped) in done.effects
    assert one.experiment.buffer == ()
    # Whoever trained on it is free; the end of its wave changes nothing else.
    assert set(waves(done)[0].policy.busy) == set()
    hear(one)
    assert [wave.number for wave in one.experiment.waves] == [2]


def test_an_evaluation_does_not_hold_up_waves() -> None:
    one = world(evaluate={})
    first = choose(one, "e.w1")
    for name in first[:2]:
        update(one, "e.w1", name)
    done = one.feed(one.end_round("e.1", GOOD))
    assert [request.round_id for request in waves(done)] == ["e.e1", "e.w2"]
    hear(one)
    choose(one, "e.w2")
    for name in first[2:]:
        assert merges(update(one, "e.w1", name)) == []
    assert [request.round_id for request in merges(one.feed(one.end_round("e.e1", GOOD)))] == ["e.2"]


def test_devices_that_fail_are_replaced_once_the_buffer_cannot_fill() -> None:
    one = world()
    first = choose(one, "e.w1")
    for name in first[:2]:
        assert waves(one.feed(one.fail(one.waves["e.w1"], name))) == []
    [request] = waves(one.feed(one.fail(one.waves["e.w1"], first[2])))
    assert request.base_version == 0
    assert (request.policy.up_to, request.policy.busy) == (3, [first[3]])
    assert set(request.policy.exclude) == set(first[:3])


def test_a_small_fleet_merges_what_it_can() -> None:
    one = world(fleet=1)
    [name] = choose(one, "e.w1")
    # One device cannot fill a buffer of two: others are looked for, and again once it has sent its update.
    assert choose(one, "e.w2") == ()
    [request] = waves(update(one, "e.w1", name))
    assert (request.round_id, request.policy.busy, request.policy.min_chosen) == ("e.w3", [name], 0)
    hear(one)
    [merge] = merges(one.feed(one.choose(one.waves["e.w3"])))
    assert [one.proplet_id for one in merge.updates] == [name]


def test_it_fails_when_wave_after_wave_gives_nothing() -> None:
    one = world(fleet=0, retries=1)
    one.feed(one.choose(one.waves["e.w1"]))
    hear(one)
    done = one.feed(one.choose(one.waves["e.w2"]))
    assert one.experiment.state is ExperimentState.FAILED
    assert one.experiment.reason == (
        "no update came of 2 waves in a row: 1 device needed, 0 there; no device is alive"
    )
    assert isinstance(done.effects[0], Persist)


def test_a_mistake_of_the_program_is_not_tried_in_further_waves() -> None:
    one = world(retries=5)
    names = choose(one, "e.w1")
    mistake = "the program exited with code 1: KeyError: 'nope'"
    over = WaveChanged("e.w1", 1.0, tuple(names), (), tuple(names), True, mistake, mistake)
    # While others train they may show that it works.
    elsewhere = replace(one.experiment.waves[0], number=9)
    busy = replace(one.experiment, waves=(*one.experiment.waves, elsewhere))
    assert step(busy, over).experiment.state is ExperimentState.RUNNING
    end = step(one.experiment, over).experiment
    assert end.state is ExperimentState.FAILED
    assert end.reason == (
        f"wave 1 failed, and is not tried again, as the program itself fails alike on every device: {mistake}"
    )


def test_a_merge_that_fails_is_tried_again_with_the_same_updates() -> None:
    one = world(retries=1)
    first = choose(one, "e.w1")
    update(one, "e.w1", first[0])
    [request] = merges(update(one, "e.w1", first[1]))
    [again] = merges(one.feed(one.end_round("e.1", (False, 0.0, ()))))
    assert (again.round_id, again.attempt, again.updates) == ("e.1.2", 2, request.updates)
    one.feed(one.end_round("e.1.2", (False, 0.0, ())))
    assert one.experiment.state is ExperimentState.FAILED
    assert one.experiment.reason == "round 1 failed 2 times, the last time: lost"
    hear(one)
    one.check_the_end()


def test_a_pause_buffers_and_a_stop_cancels() -> None:
    one = world()
    first = choose(one, "e.w1")
    one.feed(PauseRequested(1.0))
    for name in first[:3]:
        done = update(one, "e.w1", name)
        assert (merges(done), waves(done)) == ([], [])
    done = one.feed(ResumeRequested(2.0))
    assert [request.round_id for request in merges(done)] == ["e.1"]
    stopped = one.feed(StopRequested(3.0))
    names = [effect.round_id for effect in stopped.effects if isinstance(effect, CancelRound)]
    assert names == ["e.1", "e.w1"]
    assert not one.experiment.is_settled
    hear(one)
    one.check_the_end()


def test_the_last_version_cancels_the_waves() -> None:
    one = world(rounds=1)
    first = choose(one, "e.w1")
    for name in first[:2]:
        update(one, "e.w1", name)
    done = one.feed(one.end_round("e.1", GOOD))
    assert one.experiment.state is ExperimentState.COMPLETED
    assert CancelRound("e.w1", "the experiment is completed") in done.effects
    assert waves(done) == []
    hear(one)
    one.check_the_end()


specs = st.builds(
    lambda buffer, concurrency, staleness, extra: {
        "program": "p",
        "mode": {"kind": "async", "buffer": buffer, "concurrency": concurrency, "max_staleness": staleness},
        **extra,
    },
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 3),
    st.fixed_dictionaries(
        {"rounds": st.integers(1, 4), "retries": st.integers(0, 2)},
        optional={
            "evaluate": st.just({}) | st.just({"on": "central", "dataset": "test"}),
            "stop": st.just({"metric": "m", "goal": "max", "patience": 2}) | st.just({"max_time_s": 8.0}),
            "selection": st.just({"min_available": 2}) | st.just({"names": ["d0", "d1", "d2", "d3"]}),
        },
    ),
)


class AsyncMachine(RuleBasedStateMachine):
    """Any events in any order, old ones again, and crashes between any two effects."""

    crashes = st.none() | st.none() | st.integers(0, 6)

    @initialize(fields=specs, fleet=st.integers(0, 6))
    def create(self, fields: dict[str, Any], fleet: int) -> None:
        self.world = World(ExperimentSpec.decode(fields), fleet)
        self.world.feed(Admitted(0.0))

    def feed(self, event: Event, crash: int | None) -> None:
        self.world.now += 0.25
        self.world.feed(event, crash)

    def wave(self, data: st.DataObject) -> WaveRound:
        return self.world.waves[
            data.draw(st.sampled_from([w.request.round_id for w in self.world.open_waves]))
        ]

    @precondition(lambda self: self.world.open_waves)
    @rule(
        data=st.data(),
        crash=crashes,
        what=st.sampled_from(["update", "update", "update", "fail", "deadline"]),
    )
    def change_a_wave(self, data: st.DataObject, crash: int | None, what: str) -> None:
        wave = self.wave(data)
        if wave.participants is None:
            event = self.world.choose(wave)
        elif what == "deadline":
            wave.end("deadline")
            event = wave.snapshot(self.world.now)
        else:
            change = self.world.send_update if what == "update" else self.world.fail
            event = change(wave, data.draw(st.sampled_from(wave.training)))
        if data.draw(st.booleans()):
            self.feed(event, crash)
        else:
            self.world.crash()

    @precondition(lambda self: self.world.open_rounds)
    @rule(outcome=st.tuples(st.booleans(), st.sampled_from([0.0, 1.0]), st.just(())), crash=crashes)
    def end_round(self, outcome: Outcome, crash: int | None) -> None:
        self.feed(self.world.end_round(self.world.open_rounds[0], outcome), crash)

    @precondition(lambda self: self.world.pending)
    @rule(crash=crashes)
    def hear_what_waits(self, crash: int | None) -> None:
        self.feed(self.world.pending.pop(0), crash)

    @precondition(lambda self: self.world.waves)
    @rule(data=st.data())
    def hear_again(self, data: st.DataObject) -> None:
        wave = self.world.waves[data.draw(st.sampled_from(sorted(self.world.waves)))]
        self.feed(wave.snapshot(self.world.now), None)
        before = self.world.experiment
        done = self.world.feed(wave.snapshot(self.world.now))
        assert done == Transition(before)

    @rule(crash=crashes, request=st.sampled_from([PauseRequested, ResumeRequested, TimePassed]))
    def request(self, crash: int | None, request: Any) -> None:
        self.feed(request(self.world.now), crash)

    @precondition(lambda self: self.world.now > 4)
    @rule(crash=crashes)
    def stop(self, crash: int | None) -> None:
        self.feed(StopRequested(self.world.now), crash)

    @invariant()
    def at_most_one_round_is_open_beside_waves(self) -> None:
        assert len(self.world.open_rounds) <= 1

    @invariant()
    def no_more_train_than_may_and_none_twice(self) -> None:
        one = self.world.experiment
        assert len(one.training) <= (one.spec.mode.concurrency or 0)
        busy = one.busy
        assert len(set(busy)) == len(busy)

    @invariant()
    def one_that_runs_waits_for_something(self) -> None:
        one = self.world.experiment
        if one.state is ExperimentState.RUNNING:
            assert one.open is not None or one.waves

    @invariant()
    def merges_are_of_different_devices_not_too_stale_and_of_each_update_once(self) -> None:
        spec = self.world.experiment.spec
        seen: Counter[tuple[str, str]] = Counter()
        for request in self.world.requests.values():
            if isinstance(request, MergeRequest):
                names = [update.proplet_id for update in request.updates]
                assert len(set(names)) == len(names) <= (spec.mode.buffer or 0)
                assert all(
                    0 <= update.staleness <= (spec.mode.max_staleness or 0) for update in request.updates
                )
                if request.attempt == 1:
                    seen.update((update.round_id, update.proplet_id) for update in request.updates)
        assert all(count == 1 for count in seen.values())

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()
            self.world.check_the_end()


TestAsyncMachine = AsyncMachine.TestCase


def run(fields: dict[str, Any], fleet: int, crashes: list[int | None]) -> World:
    """An experiment in which everything goes well and in order, with crashes at some of its first steps."""
    one = World(ExperimentSpec.decode(fields), fleet)
    one.feed(Admitted(0.0))
    for crash in crashes:
        if one.pending:
            one.feed(one.pending.pop(0), crash)
        elif one.open_rounds:
            one.feed(one.end_round(one.open_rounds[0], GOOD), crash)
        elif one.open_waves:
            one.go_on_with(one.open_waves[0])
    one.finish()
    return one


@given(specs, st.integers(0, 6), st.lists(st.none() | st.integers(0, 6), max_size=30))
def test_crashes_at_any_step_lead_to_the_same_end(
    fields: dict[str, Any], fleet: int, crashes: list[int | None]
) -> None:
    undisturbed, disturbed = run(fields, fleet, []), run(fields, fleet, crashes)
    assert disturbed.experiment == undisturbed.experiment
    assert disturbed.requests == undisturbed.requests
    undisturbed.check_the_end()


def test_ids_of_waves_are_of_no_other_round() -> None:
    assert wave_id("e", 3) == "e.w3"
    with pytest.raises(ValueError, match=r"must not end in '\.w3'"):
        ExperimentSpec.decode({"program": "p", "rounds": 1, "id": "e.w3"})
