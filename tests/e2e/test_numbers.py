"""Numbers through a whole stack: dtypes from round to round, metrics, NaN as C prints it, NumPy in the client."""

import asyncio
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from propeller.fl.tensors import DTYPES, SAFETENSORS, Tensors, bounds, specs_of, to_safetensors
from propeller.sdk import Experiment, Propeller, PropellerError
from support import large_models
from support.c_programs import compiled
from support.net import eventually
from support.python_programs import built
from support.stack import Up, propeller, running_stack

pytestmark = pytest.mark.timeout(180)

COUNTER = """
from propeller.program import Update, train

@train
def fit(model, data, hyperparams, ctx):
    update = dict(model)
    if "steps" in model:
        for _ in range(model["steps"].item()):
            pass
        update["steps"] = model["steps"] + hyperparams.get("more", 0)
    return Update(update, num_samples=len(data), metrics={"correct": len(data), "share": 0.5})
"""
"""Gives the model back as it is, but for a counter, whose value must be an integer."""

METRICS = ["nan", "-nan", "inf", "-inf", "NaN", r"\"bad\"", "null", "[0.5]", r"{\"a\":1}", "true", "0.25"]

PRINTS = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
const char *metrics[] = {METRICS};
int main() {
  const char *metric = metrics[atoi(strchr(getenv("HYPERPARAMS"), ':') + 1)];
  printf("{\"round_id\":\"%s\",\"proplet_id\":\"%s\",\"num_samples\":5,\"metrics\":{\"loss\":%s},"
         "\"update\":{\"w\":[1,2,3],\"b\":4}}", getenv("ROUND_ID"), getenv("PROPLET_ID"), metric);
}
""".replace("METRICS", ", ".join(f'"{metric}"' for metric in METRICS))
"""Prints the metric of ``METRICS`` that its one hyperparameter counts."""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("numbers") / "state") as running:
        yield running


@pytest.fixture(scope="module")
def fl(up: Up) -> Iterator[Propeller]:
    with Propeller.from_state(up.folder) as client:
        yield client


def push(up: Up, program: Path, name: str) -> str:
    reference = f"{up.url('oci_registry').removeprefix('http://')}/{name}:latest"
    pushed = propeller("push", str(program), reference)
    assert pushed.returncode == 0, pushed.stderr
    return reference


@pytest.fixture(scope="module")
def counter(up: Up, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program in Python."""
    script = tmp_path_factory.mktemp("counter") / "counter.py"
    script.write_text(COUNTER)
    return push(up, built(script), "counter")


@pytest.fixture(scope="module")
def prints(up: Up) -> str:
    """The program in C."""
    return push(up, compiled(PRINTS), "prints")


def dtypes(model: Tensors) -> dict[str, str]:
    return {name: spec.dtype for name, spec in specs_of(model).items()}


@pytest.mark.parametrize("size", [1000, 200_000])
def test_a_model_keeps_its_dtypes_from_round_to_round(fl: Propeller, counter: str, size: int) -> None:
    """Whether the update is in the document or in a file."""
    version = fl.put_model({"steps": np.int64(2), "w": np.full(size, 0.1, np.float32)})
    for steps in (3, 4):
        result = fl.run_round(counter, base_version=version, hyperparams={"more": 1}, timeout_s=120)
        model = fl.model(result.model_version)
        assert dtypes(model) == {"steps": "I64", "w": "F32"}
        assert model["steps"].item() == steps
        np.testing.assert_array_equal(model["w"], np.full(size, 0.1, np.float32))
        version = result.model_version
    assert result.mean("share") == 0.5


def test_every_dtype_is_trained_and_kept_exactly(fl: Propeller, counter: str) -> None:
    """Also integers beyond 2**53, true and false, no elements at all, and many dimensions."""
    first: Tensors = {"none": np.empty((2, 0, 3), np.float32), "rank": np.ones((1,) * 12, np.float16)}
    for name, dtype in DTYPES.items():
        least, most = bounds(dtype)
        first[name] = np.array([least, most, 1, 0], object).astype(dtype)
    first["counters"] = np.array([2**60 + 1, -(2**60) - 1])
    version = fl.put_model(first)
    result = fl.run_round(counter, base_version=version, timeout_s=120)
    model = fl.model(result.model_version)
    assert specs_of(model) == specs_of(first)
    for name, array in first.items():
        assert model[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(
    ("which", "text"),
    [
        (0, "'loss' is nan; a metric is one finite number: training diverged"),
        (1, "'loss' is nan; a metric is one finite number: training diverged"),
        (2, "'loss' is inf; a metric is one finite number: training diverged"),
        (3, "'loss' is -inf; a metric is one finite number: training diverged"),
        (4, "'loss' is nan; a metric is one finite number: training diverged"),
    ],
)
def test_a_metric_that_is_nan_or_infinite_is_the_devices_failure(
    fl: Propeller, prints: str, which: int, text: str
) -> None:
    round_id = fl.start_round(prints, base_version=0, hyperparams={"which": which})
    with pytest.raises(PropellerError, match=text):
        fl.wait_round(round_id)
    failures = httpx.get(f"{fl.url('coordinator')}/rounds/{round_id}").json()["failures"]
    assert len(failures) == 3
    assert all(f"metrics: {text}" in one["reason"] for one in failures)


@pytest.mark.parametrize("which", range(5, 10))
def test_metrics_that_are_no_numbers_are_passed_over(fl: Propeller, prints: str, which: int) -> None:
    result = fl.run_round(prints, base_version=0, hyperparams={"which": which})
    assert result.failures == {}
    assert result.mean("loss") is None


def test_a_run_says_which_metric_is_no_number(up: Up, prints: str, tmp_path: Path) -> None:
    """And goes on: both rounds run. One whose metrics are numbers says nothing of it."""
    for which, code, text in (
        (0, 1, "'loss' is nan"),
        (5, 0, "note: metrics: 'loss' is text (proplet-1, proplet-2, proplet-3): left out"),
        (10, 0, "0.25"),
    ):
        file = tmp_path / f"{which}.toml"
        file.write_text(
            f'image = "{prints}"\nrounds = 2\n[model]\nversion = 0\n[hyperparams]\nwhich = {which}\n'
        )
        done = propeller("run", str(file), "--state", str(up.folder))
        assert done.returncode == code, done.stdout + done.stderr
        assert text in " ".join((done.stdout + done.stderr).split())
        assert "Traceback" not in done.stderr


def test_numpy_in_the_client(fl: Propeller) -> None:
    version = fl.put_model({"w": np.zeros(3), "b": 0.0})
    assert fl.model(version)["w"].tolist() == [0, 0, 0]
    fl.put_dataset("numpy", {"data": [{"x": [np.float32(0.1)], "y": np.int64(1)}]})
    stored = httpx.get(f"{fl.url('data_store')}/datasets/numpy").json()
    assert stored["data"] == [{"x": [float(np.float32(0.1))], "y": 1}]
    refused: list[tuple[Any, str]] = [
        (lambda: fl.put_model({"w": [math.nan]}), "model: tensor 'w': holds NaN"),
        (lambda: fl.put_dataset("numpy", {"data": [{"x": [math.nan], "y": 1}]}), r"data\[0\]\.x\[0\]: must be a"),
        (
            lambda: fl.start_round(fl.image(), base_version=0, hyperparams={"lr": math.nan, "clip": math.inf}),
            r"hyperparams\.lr: must be a finite number",
        ),
    ]  # fmt: skip
    for act, text in refused:
        with pytest.raises(PropellerError, match=text):
            act()


def test_hyperparameters_are_never_null(fl: Propeller, up: Up) -> None:
    """Whoever sends them, and however: they are refused by name, and no round is there."""
    body = {
        "experiment_id": "e",
        "round_id": "r-nan",
        "participants": up.ids(),
        "model_ref": "fl/models/global_model_v0",
        "task_wasm_image": fl.image(),
        "hyperparams": {"layers": [{"lr": math.nan}]},
    }
    for service, path in (("manager", "/fl/experiments"), ("coordinator", "/experiments")):
        answer = httpx.post(
            f"{fl.url(service)}{path}",
            content=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 400, answer.text
        assert "hyperparams.layers[0].lr: NaN is not a finite number" in answer.json()["error"]
    assert httpx.get(f"{fl.url('coordinator')}/rounds/r-nan").status_code == 404


def test_an_update_beyond_the_base_models_dtype_is_refused(fl: Propeller, up: Up) -> None:
    """And integers that it holds are exact, also as JSON."""
    version = fl.put_model({"small": np.array([1, 2], np.int8), "large": np.array([2**64 - 1], np.uint64)})
    body = {
        "experiment_id": "e",
        "round_id": "r-range",
        "participants": up.ids()[:1],
        "model_ref": f"fl/models/global_model_v{version}",
    }
    coordinator = fl.url("coordinator")
    assert httpx.post(f"{coordinator}/experiments", json=body).status_code == 201
    update = {"round_id": "r-range", "proplet_id": up.ids()[0], "num_samples": 1}
    wrong = {**update, "update": {"small": [1, 300], "large": [1]}}
    answer = httpx.post(f"{coordinator}/update", json=wrong)
    assert answer.status_code == 422
    assert (
        "tensor 'small': holds 300, but the base model's I8 goes from -128 to 127" in answer.json()["error"]
    )
    good = {**update, "update": {"small": [1, -128], "large": [2**64 - 3]}}
    assert httpx.post(f"{coordinator}/update", json=good).status_code == 200
    model = fl.model(fl.wait_round("r-range").model_version)
    assert (model["small"].tolist(), model["large"].tolist()) == ([1, -128], [2**64 - 3])
    assert dtypes(model) == {"small": "I8", "large": "U64"}


def test_models_in_safetensors_and_json_say_the_same(fl: Propeller) -> None:
    content = to_safetensors({"mask": np.array([True, False]), "half": np.array([0.5], DTYPES["BF16"])})
    registry = fl.url("model_registry")
    answer = httpx.post(f"{registry}/models", content=content, headers={"Content-Type": SAFETENSORS})
    version = answer.json()["version"]
    assert httpx.get(f"{registry}/models/{version}").json() == {"mask": [True, False], "half": [0.5]}
    assert dtypes(fl.model(version)) == {"mask": "BOOL", "half": "BF16"}


async def test_a_large_model_goes_by_files_of_which_none_is_left(
    fl: Propeller, up: Up, tmp_path: Path
) -> None:
    """The aggregate is exact, number by number, though a proplet dies while its program writes the update.

    And the coordinator as soon as it has one: those that it was receiving are sent again.
    """
    specs = large_models.specs(24)
    stored = httpx.post(
        f"{fl.url('model_registry')}/models",
        content=large_models.pieces(specs),
        headers={"Content-Type": SAFETENSORS},
        timeout=60,
    ).json()
    program = push(up, large_models.program(), "large")
    data_sets = [f"{fl.url('data_store')}/datasets/{proplet_id}" for proplet_id in up.ids()]
    before = [httpx.get(url).json() for url in data_sets]
    experiment = Experiment(
        program=program,
        rounds=1,
        model=stored["version"],
        data=[{"data": [{"x": [slot], "y": 0}]} for slot in range(3)],
        hyperparams={"wait_s": 2},
        timeout_s=100,
    )
    handle = fl.run(experiment)
    await eventually(lambda: any(up.folder.glob("proplet-1/sandbox/tasks/*/*/out/update.safetensors")), 60)
    psutil.Process(up.stack["processes"]["proplet-1"]).kill()
    await eventually(lambda: any(up.folder.glob("coordinator/updates/*")), 60)
    psutil.Process(up.stack["processes"]["coordinator"]).kill()
    result = await asyncio.to_thread(handle.wait, 100)
    for url, dataset in zip(data_sets, before, strict=True):
        httpx.post(url, json=dataset).raise_for_status()
    assert result.state == "completed", result.reason
    assert result.model_version is not None
    fl.models.export(result.model_version, tmp_path / "new.safetensors")
    large_models.check(tmp_path / "new.safetensors", specs, large_models.STEP)

    def left() -> set[str]:
        """What there is beside the newest model of each device: nothing, once the tasks have ended."""
        places = ("proplet-*/large/task-*", "proplet-*/sandbox/tasks/*/*", "coordinator/large/*", "**/*.tmp")
        return {str(file) for place in places for file in up.folder.glob(place)}

    await eventually(lambda: not left(), what="files are left")
