"""Strategies with a part on the devices, evaluated there on held-out data: one script, on a whole stack."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from propeller.sdk import Experiment, Propeller
from support.network import digits, network, samples
from support.python_programs import SOURCES, built
from support.stack import Up, propeller, running_stack

pytestmark = pytest.mark.timeout(240)

X, Y = np.round(digits()[0][:900], 4), digits()[1][:900]
ROUNDS = 3


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("devices") / "state"
    with running_stack(folder) as running:
        yield running


@pytest.fixture(scope="module")
def image(up: Up) -> str:
    """The network's program in the stack's registry; each device has other digits."""
    reference = f"{up.url('oci_registry').removeprefix('http://')}/mlp:latest"
    pushed = propeller("push", str(built(SOURCES / "mlp.py")), reference)
    assert pushed.returncode == 0, pushed.stderr
    with Propeller.from_state(up.folder) as fl:
        for number, proplet in enumerate(up.ids()):
            mine = np.flatnonzero(np.equal(Y % 3, number))
            fl.put_dataset(proplet, {"data": samples(X[mine], Y[mine])})
    return reference


def run(up: Up, image: str, strategy: Any, update: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The rounds of an experiment, evaluations among them, once it is over."""
    with (
        Propeller.from_state(up.folder) as fl,
        httpx.Client(base_url=up.url("coordinator"), timeout=60) as http,
    ):
        first = fl.put_model(network(64, 16))
        handle = fl.run(
            Experiment(
                program=image,
                rounds=ROUNDS,
                strategy=strategy,
                evaluate={"every": 1, "on": "devices"},
                update=update,
                split={"holdout": 0.2, "seed": 1},
                model=first,
                hyperparams={"epochs": 3, "lr": 0.1, "batch_size": 32},
            )
        )
        result = handle.wait(timeout=200)
        assert result.state == "completed", result
        rounds: list[dict[str, Any]] = http.get(f"/experiments/{handle.id}/history").json()["rounds"]
    return rounds


def of_kind(rounds: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in rounds if one["kind"] == kind and one["state"] == "completed"]


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "fedprox", "mu": 0.01},
        {"name": "scaffold"},
        {"name": "ditto", "lambda": 0.1},
        {"name": "fedper", "personal": ["w2", "b2"]},
    ],
    ids=lambda strategy: strategy["name"],
)
def test_it_learns_and_is_evaluated_on_what_was_held_out(up: Up, image: str, strategy: Any) -> None:
    rounds = run(up, image, strategy)
    trained, evaluated = of_kind(rounds, "train"), of_kind(rounds, "evaluate")
    assert len(trained) == len(evaluated) == ROUNDS
    counts = {number: np.count_nonzero(np.equal(Y % 3, number)) for number in range(3)}
    held_out = {number: round(count * 0.2) for number, count in counts.items()}
    for one in evaluated:
        assert sorted(each["num_samples"] for each in one["updates"]) == sorted(held_out.values())
    for one in trained:
        assert sorted(each["num_samples"] for each in one["updates"]) == sorted(
            counts[number] - held_out[number] for number in range(3)
        )
    does_its_part = None if strategy["name"] == "fedper" else True  # which asks for nothing of the program
    assert {each.get("corrected") for one in trained for each in one["updates"]} == {does_its_part}
    scores = [one["metrics"]["accuracy"] for one in evaluated]
    if strategy["name"] in {"fedprox", "scaffold"}:
        assert scores[-1] > max(0.3, scores[0]), scores
    else:  # a device has few digits: what is its own tells them apart at once
        assert scores[-1] > 0.8, scores
    assert ("personal_accuracy" in trained[0]["metrics"]) == (strategy["name"] == "ditto")


def test_differences_make_the_model_that_weights_make(up: Up, image: str) -> None:
    weights = of_kind(run(up, image, "fedavg"), "train")
    deltas = of_kind(run(up, image, "fedavg", {"kind": "delta"}), "train")
    assert [one["metrics"]["loss"] for one in deltas] == pytest.approx(
        [one["metrics"]["loss"] for one in weights], rel=1e-5
    )
