"""The programs that README.md and docs/programs.md show are programs."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from propeller.cli.project import run_new
from propeller.cli.trial import TrialInputs
from propeller.cli.try_program import run_try
from propeller.fl.strategies import Contribution
from propeller.wasm.program_run import Limits
from support.strategies import all_strategies, default_strategy

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/programs.md")
SAMPLES = [{"x": [a, b], "y": 2 * a - b + 1.0} for a in (-1.0, 0.0, 1.0) for b in (-1.0, 0.5, 2.0)]


def blocks(page: str) -> list[str]:
    """The Python blocks of a page that are about programs."""
    found = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [text for text in found if "propeller.program" in text]


def python(*arguments: str | Path, folder: Path) -> str:
    """Run Python in a folder; what it writes to standard output."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_a_program_learns(page: str, tmp_path: Path) -> None:
    """``y = 2 x0 - x1 + 1`` is found, by gradient descent on the squared error that both pages show."""
    program = next(text for text in blocks(page) if "@train" in text)
    (tmp_path / "train.py").write_text(program)
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "in" / "dataset.json").write_text(json.dumps({"data": SAMPLES}))
    (tmp_path / "in" / "model.json").write_text(json.dumps({"w": [0, 0], "b": 0}))
    (tmp_path / "in" / "hyperparams.json").write_text(json.dumps({"epochs": 200, "lr": 0.1}))
    said = python("-m", "propeller.program.native", tmp_path / "train.py", tmp_path, folder=tmp_path)
    document = json.loads(said)
    assert document["num_samples"] == len(SAMPLES)
    assert document["metrics"]["loss"] < 1e-4
    assert document["update"]["w"] == pytest.approx([2, -1], abs=0.02)
    assert document["update"]["b"] == pytest.approx(1, abs=0.02)
    for name in all_strategies():  # it reports what each of them needs of an update
        update = Contribution(0, "p", document["num_samples"], document["steps"], document["metrics"])
        default_strategy(name).check(update)


@pytest.mark.parametrize("page", PAGES)
def test_a_program_learns_in_a_new_project(page: str, tmp_path: Path) -> None:
    """The README has it put into the project of ``propeller new``: with that data and ``lr`` it converges."""
    project = tmp_path / "mine"
    run_new(project)
    (project / "train.py").write_text(next(text for text in blocks(page) if "@train" in text))
    hyperparams = tomllib.loads((project / "experiment.toml").read_text())["hyperparams"]
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "in" / "model.json").write_text(json.dumps({"w": [0, 0], "b": 0}))
    (tmp_path / "in" / "hyperparams.json").write_text(json.dumps({**hyperparams, "epochs": 50}))
    for data in sorted((project / "data").iterdir()):
        shutil.copy(data, tmp_path / "in" / "dataset.json")
        said = python("-m", "propeller.program.native", project / "train.py", tmp_path, folder=project)
        metrics = json.loads(said)["metrics"]
        assert metrics["loss"] < metrics["loss_before"] / 2, data.name


@pytest.mark.parametrize(
    ("strategy", "modes"),
    [
        ({"name": "fedprox", "mu": 0.1}, ["train"]),
        ({"name": "scaffold"}, ["train", "train"]),
        ({"name": "ditto"}, ["train", "evaluate"]),
        ({"name": "fedbn", "personal": ["b"]}, ["train", "evaluate"]),
    ],
    ids=lambda given: given["name"] if isinstance(given, dict) else "",
)
def test_the_readmes_program_does_the_devices_part_of_a_strategy(
    strategy: dict[str, Any],
    modes: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script, model, data = (tmp_path / name for name in ("train.py", "model.json", "data.json"))
    script.write_text(next(text for text in blocks("README.md") if "@train" in text))
    model.write_text(json.dumps({"w": [0, 0], "b": 0}))
    data.write_text(json.dumps({"data": SAMPLES}))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for mode in modes:  # the second one finds what the first kept on the device
        inputs = TrialInputs(model, data, {"epochs": 2, "lr": 0.1}, mode, strategy, state=tmp_path / "device")
        code = run_try(script, inputs, Limits())
        shown = capfd.readouterr()
        assert code == 0, shown.err
        assert "trained as for fedavg" not in shown.err
        assert json.loads(shown.out)["metrics"]["loss"] > 0


def test_a_program_in_a_test(tmp_path: Path) -> None:
    program, as_in_a_test = blocks("docs/programs.md")[:2]
    (tmp_path / "train.py").write_text(program)
    (tmp_path / "check.py").write_text(as_in_a_test)
    assert re.search(r"^[0-9.e-]+ \[.*\]$", python("check.py", folder=tmp_path).strip())
