"""Whole experiments in virtual time: nothing in ``fl`` needs a service, a clock or the ids of devices."""

from typing import Any

import numpy as np
import pytest

from propeller.fl.experiment import ExperimentState
from propeller.fl.selection import Candidate
from propeller.protocol.experiments import ExperimentSpec
from support.virtual_experiment import TRUTH, VirtualExperiment

SYNC: dict[str, Any] = {
    "strategy": {"name": "fedadam", "server_lr": 0.1},
    "selection": {"count": 5, "over_select": 0.4, "seed": 3, "cooldown_rounds": 1},
    "min_updates": 3,
    "evaluate": {"every": 5, "fraction": 0.5},
    "stop": {"metric": "loss", "patience": 4},
}
ASYNC: dict[str, Any] = {
    "strategy": "fedbuff",
    "mode": {"kind": "async", "buffer": 3, "concurrency": 6, "max_staleness": 4},
}


def fleet(prefix: str, count: int = 12) -> list[Candidate]:
    return [Candidate(f"{prefix}{number}", f"edge-{number:02}") for number in range(count)]


def run(prefix: str = "a", rounds: int = 40, **fields: Any) -> VirtualExperiment:
    lr = {"schedule": "cosine", "start": 0.2, "end": 0.05}
    asked = {"program": "p", "rounds": rounds, "timeout_s": 8.0, "retries": 5, "hyperparams": {"lr": lr}}
    return VirtualExperiment(ExperimentSpec.decode({**asked, **fields}), fleet(prefix)).run()


@pytest.mark.parametrize("fields", [SYNC, ASYNC], ids=["sync", "async"])
def test_an_experiment_learns_although_devices_fail_and_are_late(fields: dict[str, Any]) -> None:
    one = run(**fields)
    assert one.experiment.state is ExperimentState.COMPLETED, one.experiment.reason
    assert one.experiment.is_settled
    assert np.allclose(one.models[one.experiment.version]["w"], TRUTH, atol=0.1)
    losses = [end.metrics["loss"] for end in one.ended if end.reason is None]
    assert losses[-1] < losses[0] / 20


@pytest.mark.parametrize("fields", [SYNC, ASYNC], ids=["sync", "async"])
def test_it_is_the_same_on_a_fleet_with_other_ids_and_another_one_with_another_seed(
    fields: dict[str, Any],
) -> None:
    one, other = run("a", **fields), run("zz", **fields)
    assert [model["w"].tolist() for model in one.models] == [model["w"].tolist() for model in other.models]
    assert one.now == other.now
    seeded = run("a", **{**fields, "selection": {**fields.get("selection", {}), "seed": 4}})
    assert seeded.models[1]["w"].tolist() != one.models[1]["w"].tolist()


def test_updates_are_stale_but_not_more_than_they_may_be() -> None:
    one = run(**ASYNC)
    assert set(one.stalenesses) >= {0, 1}
    assert max(one.stalenesses) <= 4


def test_nobody_waits_for_the_slowest_where_updates_are_buffered() -> None:
    same_updates: dict[str, Any] = {"strategy": "fedavg", "selection": {"count": 3}}
    assert run(**ASYNC).now < run(**same_updates).now / 2
