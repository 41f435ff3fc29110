"""examples/lora on a stack: only the adapters travel, the other tensors stay bit for bit, and a simulation gives the same."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from propeller.cli.experiment_file import ExperimentFile
from propeller.fl.tensors import Tensors
from propeller.sdk import ExperimentHandle, History, Propeller
from propeller.simulation import simulate
from support.stack import Up, running_stack

EXAMPLE = Path(__file__).parents[2] / "examples" / "lora"
README = (EXAMPLE / "README.md").read_text()

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy") / "lora"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("data", "model.npz"))
    subprocess.run([sys.executable, copy / "base.py"], check=True)
    return copy


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("lora") / "state") as running:
        yield running


def run(fl: Propeller, folder: Path, *changes: str) -> ExperimentHandle:
    file = ExperimentFile.load(folder / "experiment.toml", changes)
    handle = fl.run(file.to_experiment(), folder=folder)
    assert handle.wait(timeout=200).state == "completed"
    return handle


def bytes_of_updates(history: History) -> set[int]:
    return {update["bytes"] for one in history if one["kind"] == "train" for update in one["updates"]}


def test_adapters_alone_travel_and_learn(up: Up, folder: Path) -> None:
    first = dict(np.load(folder / "model.npz").items())
    with Propeller.from_state(up.folder) as fl:
        handle = run(fl, folder)
        model: Tensors = handle.model()
        untouched = ("strategy.trained=['b2']", "rounds=1", "lr=0.000001", "evaluate.every=1")
        history, before, all_of_it = (
            one.history()
            for one in (
                handle,
                run(fl, folder, *untouched),
                run(fl, folder, "strategy='fedavg'", "rounds=1", "evaluate.every=1"),
            )
        )
    for name, array in first.items():
        assert model[name].dtype == array.dtype
        assert np.array_equal(model[name], array) == (not name.startswith("lora_")), name
    (_, accuracy), (_, untrained) = (one.metric("accuracy", "evaluate")[-1] for one in (history, before))
    shown = [float(number) for number in re.findall(r"reads (0\.\d+) at first and (0\.\d+)", README)[0]]
    assert [untrained, accuracy] == pytest.approx(shown, abs=0.03)

    adapters = sum(array.nbytes for name, array in first.items() if name.startswith("lora_"))
    whole = sum(array.nbytes for array in first.values())
    sizes, all_sizes = bytes_of_updates(history), bytes_of_updates(all_of_it)
    assert adapters < min(sizes)
    assert max(sizes) < adapters + 2000  # the header
    assert min(all_sizes) > whole
    small, large = (
        1000 * int(number) for number in re.findall(r"has (\d+) kB instead of (\d+) kB", README)[0]
    )
    assert max(sizes) == pytest.approx(small, abs=1000)
    assert max(all_sizes) == pytest.approx(large, abs=1000)

    simulated = simulate(
        ExperimentFile.load(folder / "experiment.toml").to_experiment(), program=folder / "lora.py"
    )
    same = simulated.model()
    assert all(np.array_equal(same[name], array) for name, array in model.items())


def test_it_goes_with_compression_and_differences(up: Up, folder: Path) -> None:
    first = np.load(folder / "model.npz")
    with Propeller.from_state(up.folder) as fl:
        handle = run(
            fl, folder, "rounds=3", "evaluate.every=3", 'update={kind = "delta", compression = "int8"}'
        )
        model, history = handle.model(), handle.history()
    assert max(bytes_of_updates(history)) < 5000
    assert all(np.array_equal(first[name], model[name]) for name in first if not name.startswith("lora_"))
    assert not np.array_equal(first["lora_b1"], model["lora_b1"])
