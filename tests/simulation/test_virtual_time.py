"""Whole experiments in virtual time, whose clients fit a line to points of their own: nothing needs a service, a clock or the ids of devices."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.fl.experiment import ExperimentState
from propeller.fl.selection import Candidate
from propeller.fl.tensors import Tensors, from_safetensors, to_safetensors
from propeller.protocol.experiments import ExperimentSpec
from propeller.protocol.rounds import RoundStart
from propeller.simulation.description import DevicesSpec
from propeller.simulation.experiment import SimulatedExperiment
from propeller.simulation.messages import ClientReport, ClientTask, RoundTask
from propeller.simulation.model_files import ModelFiles

TRUTH = np.array([2.0, -1.0])
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
DEVICES = {
    # Most are quick, and a few take very long.
    "seconds": {"distribution": "lognormal", "median": 0.6, "sigma": 1.5},
    "drop_out": {"part": 0.1, "noticed_after_s": 1},
    "seed": 1,
}


class Fitting:
    """Clients that fit a line to points of their own, more of them the higher a client's number is."""

    def run(self, round_task: RoundTask, tasks: Sequence[ClientTask]) -> Iterator[tuple[ClientReport, bytes]]:
        base = from_safetensors(Path(round_task.model).read_bytes())[0]["w"]
        lr = json.loads(round_task.env["HYPERPARAMS"])["lr"]
        for task in tasks:
            assert task.client is not None
            number, draws = 20 + 5 * task.client, np.random.default_rng(task.seed)
            points = np.random.default_rng(task.client).normal(size=(number, 2))
            values, weights = points @ TRUTH, base.copy()
            for _ in range(0 if round_task.evaluates else 5):
                batch = draws.integers(number, size=10)
                weights -= lr * points[batch].T @ (points[batch] @ weights - values[batch]) / 10
            header = {
                "round_id": round_task.env["ROUND_ID"],
                "proplet_id": task.proplet_id,
                "base_model_uri": round_task.env["MODEL_URI"],
                "num_samples": number,
                "steps": 5,
                "metrics": {"loss": float(np.mean((points @ weights - values) ** 2))},
            }
            if round_task.evaluates:
                yield ClientReport(task.id, header=header), b""
                continue
            content = to_safetensors({"w": weights})
            transfer = {"bytes": len(content), "uncompressed_bytes": len(content)}
            yield ClientReport(task.id, header=header, bytes=len(content), transfer=transfer), content


def run(prefix: str = "a", rounds: int = 40, **fields: Any) -> SimulatedExperiment:
    lr = {"schedule": "cosine", "start": 0.2, "end": 0.05}
    asked = {"program": "p", "rounds": rounds, "timeout_s": 8.0, "retries": 5, "hyperparams": {"lr": lr}}
    made = SimulatedExperiment(
        "e",
        ExperimentSpec.decode({**asked, **fields}),
        {"w": np.zeros(2)},
        [Candidate(f"{prefix}{number}", f"edge-{number:02}") for number in range(12)],
        DevicesSpec.decode(DEVICES).to_devices(),
        lambda client: 20 + 5 * client,
        Fitting(),
        ModelFiles(),
        program="p",
    )
    made.run()
    return made


def models(ended: SimulatedExperiment) -> list[Tensors]:
    return [ended.model(version) for version in range(1, ended.record.experiment.version + 1)]


def stalenesses(ended: SimulatedExperiment) -> set[int]:
    starts = [one.request for one in ended.rounds if isinstance(one.request, RoundStart)]
    return {source.staleness for start in starts for source in start.merged or ()}


@pytest.mark.parametrize("fields", [SYNC, ASYNC], ids=["sync", "async"])
def test_an_experiment_learns_although_devices_fail_and_are_late(fields: dict[str, Any]) -> None:
    ended = run(**fields)
    experiment = ended.record.experiment
    assert experiment.state is ExperimentState.COMPLETED, experiment.reason
    assert experiment.is_settled
    assert np.allclose(ended.model(experiment.version)["w"], TRUTH, atol=0.1)
    looked = "evaluate" if "evaluate" in fields else "train"
    losses = [one.metrics["loss"] for one in ended.rounds if one.kind == looked and one.metrics]
    assert losses[-1] < losses[0] / 20
    assert any(one.round.failures for one in ended.rounds)


@pytest.mark.parametrize("fields", [SYNC, ASYNC], ids=["sync", "async"])
def test_it_is_the_same_on_a_fleet_with_other_ids_and_another_one_with_another_seed(
    fields: dict[str, Any],
) -> None:
    one, other = run("a", **fields), run("zz", **fields)
    assert [model["w"].tolist() for model in models(one)] == [model["w"].tolist() for model in models(other)]
    assert one.now == other.now
    seeded = run("a", **{**fields, "selection": {**fields.get("selection", {}), "seed": 4}})
    assert models(seeded)[1]["w"].tolist() != models(one)[1]["w"].tolist()


def test_updates_are_stale_but_not_more_than_they_may_be() -> None:
    found = stalenesses(run(**ASYNC))
    assert found >= {0, 1}
    assert max(found) <= 4


def test_nobody_waits_for_the_slowest_where_updates_are_buffered() -> None:
    same_updates: dict[str, Any] = {"strategy": "fedavg", "selection": {"count": 3}}
    assert run(**ASYNC).now < run(**same_updates).now / 2
