"""Experiments in memory: how long the next try of a round waits."""

from hypothesis import given
from hypothesis import strategies as st

from propeller.coordinator.active_experiments import ActiveExperiment
from propeller.coordinator.experiment_records import ExperimentRecord
from propeller.fl.experiment import Experiment
from propeller.protocol.experiments import ExperimentSpec

NOW = 1_800_000_000.0


def make_active(tried_at: float | None) -> ActiveExperiment:
    """An experiment whose last round was begun at ``tried_at``."""
    spec = ExperimentSpec(program="localhost:5000/fl:v1", rounds=1)
    active = ActiveExperiment(
        ExperimentRecord(Experiment("e", spec, 0), NOW, spec.program, {"name": "fedavg"})
    )
    active.tried_at = tried_at
    return active


@given(st.integers(0, 200), st.floats(0, 100))
def test_tries_that_fail_at_once_begin_ever_longer_apart(failed: int, took_s: float) -> None:
    pause_s = make_active(NOW - took_s).pause_before(failed, NOW)
    apart_s = 0.0 if not failed else min(2.0 ** (failed - 1), 30.0)
    assert max(0.0, apart_s / 2 - took_s) - 1e-6 <= pause_s <= max(0.0, apart_s - took_s) + 1e-6


def test_the_time_that_the_failed_try_took_is_not_waited_again() -> None:
    assert make_active(NOW - 31).pause_before(9, NOW) == 0


def test_a_try_waits_also_if_it_is_not_known_when_the_last_one_began() -> None:
    """After a restart, or after a clock that went back."""
    assert 1 <= make_active(None).pause_before(2, NOW) <= 2
    assert 1 <= make_active(NOW + 60).pause_before(2, NOW) <= 2
