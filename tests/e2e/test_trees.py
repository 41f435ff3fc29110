"""examples/trees on a stack: boosted trees of three hospitals, whose model grows from round to round; a simulation gives the same."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from propeller.cli.experiment_file import ExperimentFile
from propeller.sdk import Experiment, ExperimentFailedError, Propeller
from propeller.simulation import simulate
from support.stack import Up, running_stack

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy")
    for name in ("hospitals", "trees"):
        shutil.copytree(EXAMPLES / name, copy / name, ignore=shutil.ignore_patterns("data"))
    subprocess.run([sys.executable, copy / "hospitals" / "hospitals.py"], check=True)
    return copy / "trees"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("trees") / "state") as running:
        yield running


def test_it_learns_and_a_simulation_gives_the_same_trees(up: Up, folder: Path) -> None:
    experiment = ExperimentFile.load(folder / "experiment.toml").to_experiment()
    with Propeller.from_state(up.folder) as fl:
        handle = fl.run(experiment, folder=folder)
        result = handle.wait(timeout=200)
        model, history = handle.model(), handle.history()
    assert result.state == "completed"
    scores = [value for _, value in history.metric("accuracy", "evaluate")]
    assert scores[-1] > 0.92, scores
    trees = [json.loads(line) for line in model["trees"].tobytes().decode().splitlines()]
    assert len(trees) == 3 * 15
    assert model["trees"].dtype == np.uint8
    trained = [one for one in history if one["kind"] == "train"]
    # An update has a tree, however large the model is.
    assert max(update["bytes"] for one in trained for update in one["updates"]) < 2000
    same = simulate(experiment, program=folder / "trees.py").model()
    assert same["trees"].tobytes() == model["trees"].tobytes()


def test_a_first_model_that_is_no_bytes_fails_with_what_to_do(up: Up, folder: Path) -> None:
    file = ExperimentFile.load(
        folder / "experiment.toml", ["model={trees = [0]}", "rounds=1", "retries=0", "evaluate.every=1"]
    )
    with Propeller.from_state(up.folder) as fl:
        handle = fl.run(file.to_experiment(), folder=folder)
        with pytest.raises(ExperimentFailedError, match="what has any length is a vector of bytes"):
            handle.wait(timeout=60)


LARGE = """
from propeller.program import Update, train
from propeller.program import tensors as pt


@train
def fit(model, data, hyperparams, ctx):
    mark = pt.array([data.samples[0]["y"] + 1, ctx.round], "uint8")
    sent = pt.concatenate([mark, pt.zeros(5_000_000, "uint8")])
    return Update({"trees": sent, "w": model["w"] + 1}, num_samples=1)
"""


def test_large_bytes_go_by_files_and_parts(up: Up, tmp_path: Path) -> None:
    """Each update has 5 MB, and the model grows by 15 MB a round: nothing of it is in the form of a small one."""
    (tmp_path / "large.py").write_text(LARGE)
    experiment = Experiment(
        program="large.py",
        rounds=2,
        strategy={"name": "bagging", "free": ["trees"]},
        model={"trees": np.zeros(0, np.uint8), "w": np.zeros(4, np.float32)},
        data={f"proplet-{number}": {"data": [{"x": [0.0], "y": number}]} for number in (1, 2, 3)},
    )
    with Propeller.from_state(up.folder) as fl:
        handle = fl.run(experiment, folder=tmp_path)
        assert handle.wait(timeout=200).state == "completed"
        model = handle.model()
    assert model["w"].tolist() == [2.0] * 4
    pieces = model["trees"].reshape(6, 5_000_002)
    assert pieces[:, :2].tolist() == [[number + 1, one] for one in (1, 2) for number in (1, 2, 3)]
    assert not pieces[:, 2:].any()
