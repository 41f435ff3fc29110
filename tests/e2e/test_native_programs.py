"""Native programs on a real stack: the scikit-learn example as its README says, from the file to a model that recognises digits; and the same by a simulation."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from propeller.fl.tensors import from_safetensors
from propeller.sdk import Propeller
from support import command_server
from support.native_programs import compile_libraries
from support.stack import Up, running_stack

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "scikit_learn"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    compile_libraries()
    folder = tmp_path_factory.mktemp("native") / ".propeller"
    with running_stack(folder, "--native-python", sys.executable) as running:
        yield running


@pytest.fixture(scope="module")
def example(up: Up) -> Path:
    copy = up.folder.parent / "example"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("data", "model.json"))
    subprocess.run([sys.executable, copy / "digits.py"], check=True, capture_output=True)
    return copy


def run(folder: Path, *arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = command_server.run(list(arguments), dict(os.environ), 200, folder=folder)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_scikit_learn_learns_on_three_devices(up: Up, example: Path) -> None:
    # Not all of its rounds: fewer show the same.
    fewer = ("--set", "rounds=3", "--set", "evaluate.every=3")
    lines = run(example, "run", "experiment.toml", "--state", "../.propeller", *fewer).stdout.splitlines()
    assert lines[2].startswith("  round  1  updates 3/3  "), lines
    with Propeller.from_state(up.folder) as fl:
        [ran] = fl.experiments(name="scikit-learn")
        assert ran["state"] == "completed", ran
        handle = fl.experiment(ran["id"])
        history, model = handle.history(), handle.model()
    [measured] = [one for one in history if one.get("kind") == "evaluate"]
    samples = len(json.loads((example / "data" / "test.json").read_text())["data"])
    assert (measured["participants"], measured["num_samples"]) == (["coordinator"], samples)
    assert measured["metrics"]["accuracy"] > 0.85

    shown = run(example, "simulate", "experiment.toml", "--out", "result", *fewer).stdout
    assert "completed: 3 rounds, 10 tasks" in shown, shown
    simulated, _ = from_safetensors((example / "result" / "latest.safetensors").read_bytes())
    assert simulated.keys() == model.keys()
    for name, tensor in model.items():
        same = np.asarray(simulated[name])
        assert (same.dtype, same.tobytes()) == (tensor.dtype, tensor.tobytes()), name
    told = json.loads((example / "result" / "history.json").read_text())["rounds"]
    assert [one["metrics"] for one in told] == [one["metrics"] for one in history]
