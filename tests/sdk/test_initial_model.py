"""The model that an experiment begins with: read from files as model.file names them, and made by scripts."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.errors import InvalidError
from propeller.fl.tensors import to_safetensors
from propeller.sdk import Experiment, read_model
from propeller.simulation import simulate

PYTORCH = Path(__file__).parents[1] / "program" / "pytorch" / "net.pt"

SCRIPT = """
from propeller.program import initial_model, nn, train

@initial_model
def first(hyperparams):
    return nn.Linear(2, hyperparams.get("classes", 3)).init(1)

@train
def fit(model, data, hyperparams, ctx): ...
"""

NATIVE = """
# /// script
# [tool.propeller]
# native = true
# ///
import not_installed_here
"""


def test_files_and_scripts(tmp_path: Path) -> None:
    model = {"w": np.arange(3, dtype=np.float32)}
    np.savez(tmp_path / "m.npz", w=model["w"])
    (tmp_path / "m.safetensors").write_bytes(to_safetensors(model))
    (tmp_path / "m.json").write_text(json.dumps({"w": [0.0, 1.0, 2.0]}))
    for name in ("m.npz", "m.safetensors", "m.json"):
        assert np.asarray(read_model(tmp_path / name)["w"]).tolist() == [0, 1, 2]
    assert "conv1.weight" in read_model(str(PYTORCH))
    (tmp_path / "train.py").write_text(SCRIPT)
    assert read_model(tmp_path / "train.py")["weight"].shape == (3, 2)
    assert read_model(tmp_path / "train.py", {"classes": 5})["weight"].shape == (5, 2)


def test_what_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model"
    with pytest.raises(InvalidError, match=r"none\.npz: No such file"):
        read_model(tmp_path / "none.npz")
    file.write_text("w = 1")
    with pytest.raises(
        InvalidError, match=r"model: .*; a model is a \.safetensors, \.npz, \.json or \.pt file"
    ):
        read_model(file)
    for suffix in (".safetensors", ".npz", ".pt", ".json"):
        damaged = file.with_suffix(suffix)
        damaged.write_bytes(b"{")
        with pytest.raises(InvalidError, match=rf"model\{suffix}: "):
            read_model(damaged)


def test_a_library_that_only_devices_have(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(NATIVE)
    with pytest.raises(
        InvalidError,
        match=r"No module named 'not_installed_here': @initial_model is run by .*: install it there",
    ) as raised:
        read_model(tmp_path / "train.py")
    assert sys.executable in str(raised.value)


@pytest.mark.parametrize("model", ["net.pt", "train.py", Path("net.pt"), {"file": "net.pt"}])
def test_a_file_in_the_place_of_a_model(model: Any) -> None:
    with pytest.raises(InvalidError, match=r"^model: '.*' is a file: give read_model\('.*'\)"):
        Experiment(program="mine:v1", rounds=1, model=model)


def test_a_simulation_begins_with_tensors() -> None:
    with pytest.raises(
        InvalidError, match=r"model: give the tensors to start from, as read_model\('train\.py'\)"
    ):
        simulate(Experiment(program="mine:v1", rounds=1, model=3))
