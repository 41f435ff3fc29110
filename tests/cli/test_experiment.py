"""Experiment files: what cannot be sent is named."""

from pathlib import Path

import pytest

from propeller.cli.experiment import ExperimentFile, read_json
from propeller.process.run import StartError

GOOD = 'image = "i"\n[hyperparams]\nlr = 0.1\nlayers = [8, { size = 2 }]\n[model]\nw = [0.0, 1.0]\n'


def test_what_json_has_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(GOOD)
    found = ExperimentFile.load(file)
    assert found.hyperparams == {"lr": 0.1, "layers": [8, {"size": 2}]}
    assert found.first_model(tmp_path) == {"w": [0.0, 1.0]}


@pytest.mark.parametrize("value", ["1979-05-27", "[07:32:00]", "nan", "{ a = [inf] }"])
@pytest.mark.parametrize(("table", "name"), [("hyperparams", "lr"), ("model", "w")])
def test_what_json_has_not_is_named(tmp_path: Path, table: str, name: str, value: str) -> None:
    file = tmp_path / "experiment.toml"
    lines = [f"{name} = {value}" if line.startswith(f"{name} =") else line for line in GOOD.splitlines()]
    file.write_text("\n".join(lines))
    with pytest.raises(StartError, match=rf"experiment\.toml: {table}: {name} must be made of"):
        ExperimentFile.load(file)


def test_a_number_that_is_none_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    file.write_text('{"w": NaN}')
    with pytest.raises(StartError, match=r"model\.json: not JSON: NaN is no number in JSON"):
        read_json(file)
