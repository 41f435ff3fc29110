"""Native programs from the command line: built, tried, refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from propeller.native_program import NativeProgram
from support import command_server

EXAMPLE = Path(__file__).parents[2] / "examples" / "scikit_learn"

HEAD = """# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=1.26"]
#
# [tool.propeller]
# native = true
# ///
"""
SCRIPT = f"""{HEAD}
import numpy as np
from helper import twice
from propeller.program import Update, train


@train
def fit(model, data, hyperparams, ctx):
    return Update({{"w": twice(model["w"]) + np.float32(hyperparams["lr"])}}, len(data))
"""
FILES = {
    "train.py": SCRIPT,
    "helper.py": "def twice(x):\n    return 2 * x\n",
    "model.json": '{"w": [1.0, 2.0]}',
    "data.json": '{"data": [{"x": [1.0], "y": 1}]}',
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(folder: Path, *arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = command_server.run(list(arguments), dict(os.environ), 100, folder=folder)
    assert done.returncode == code, done.stdout + done.stderr
    assert 'Traceback (most recent call last):\n  File "/' not in done.stderr
    return done


TRY = ("--model", "model.json", "--data", "data.json", "--hyperparams", '{"lr": 0.5}')


def test_a_script_says_itself_that_it_is_native(project: Path) -> None:
    said = run(project, "build", "train.py").stdout
    assert said.startswith("Built train.native (")
    built = NativeProgram.decode((project / "train.native").read_bytes())
    assert (built.script, sorted(built.modules)) == ("train", ["helper", "train"])
    assert (built.requires_python, built.dependencies) == (">=3.11", ("numpy>=1.26",))
    assert built.functions == ("train",)
    for program in ("train.py", "train.native"):
        tried = run(project, "try", program, *TRY)
        assert json.loads(tried.stdout)["update"] == {"w": [2.5, 4.5]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("numpy>=1.26", "numpy>=>1"), "dependencies: 'numpy>=>1' is no requirement"),
        (("numpy>=1.26", "numpy @ https://example.com/x.whl"), "devices install nothing"),
        (('">=3.11"', '"newest"'), "requires-python: 'newest' is no specifier"),
        (("native = true", "native = 1"), "tool.propeller.native: must be true or false"),
        (("native = true", "natives = true"), "tool.propeller: has the field native alone"),
        (("@train", "@aggregate"), "@aggregate is for Wasm programs"),
        (("# dependencies = [", "# dependencies = "), "is not TOML"),
    ],
)
def test_mistakes_are_found_when_it_is_built(project: Path, change: tuple[str, str], told: str) -> None:
    text = SCRIPT.replace(*change)
    if "@aggregate" in change:
        text = text.replace("import Update, train", "import Update, aggregate, train")
    (project / "train.py").write_text(text)
    assert told in run(project, "build", "train.py", code=1).stderr


def test_forms_that_it_does_not_have(project: Path) -> None:
    assert "leave --standalone and --plain out" in run(project, "build", "train.py", "--plain", code=1).stderr


def test_what_the_interpreter_lacks_is_said(project: Path) -> None:
    (project / "train.py").write_text(SCRIPT.replace("numpy>=1.26", "numpy>=99"))
    said = run(project, "try", "train.py", *TRY, code=1).stderr
    assert "the Python of native programs here, cannot run it: it lacks numpy>=99 (it has " in said


def test_an_error_names_the_line(project: Path) -> None:
    (project / "helper.py").write_text("def twice(x):\n    return x.no_such\n")
    said = run(project, "try", "train.py", *TRY, code=1).stderr
    assert "helper.py:2: AttributeError: 'numpy.ndarray' object has no attribute 'no_such'" in said


def test_the_example_can_be_tried(tmp_path: Path) -> None:
    copy = tmp_path / "example"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("data", "model.json"))
    subprocess.run([sys.executable, copy / "digits.py"], check=True, capture_output=True)
    tried = run(copy, "try", "train.py")
    assert json.loads(tried.stdout)["metrics"]["accuracy"] > 0.8


def test_it_is_simulated_with_an_interpreter_that_can_be_named(project: Path) -> None:
    fields = 'name = "x"\nprogram = "train.py"\nrounds = 1\n[hyperparams]\nlr = 0.5\n[model]\nw = [1.0]\n[data]\nfiles = ["data.json"]\n'
    file = project / "experiment.toml"
    file.write_text(fields)
    ran = json.loads(run(project, "simulate", "experiment.toml", "--json").stdout)
    assert (ran["state"], ran["done"], ran["history"][0]["failures"]) == ("completed", 1, [])
    said = run(project, "simulate", "experiment.toml", "--native-python", "/no/python", code=1).stderr
    assert "native_python: /no/python cannot be run" in said
    file.write_text(f'{fields}[simulation]\nnative_python = "mine/python"\n')
    said = run(project, "simulate", "experiment.toml", code=1).stderr
    assert "mine/python cannot be run" in said


def test_what_it_imports_is_noted_in_the_file(project: Path) -> None:
    """A device imports that ahead of tasks, if it is of what the program requires."""
    (project / "helper.py").write_text("def twice(x):\n    import sklearn.base, os.path\n    return 2 * x\n")
    run(project, "build", "train.py")
    assert json.loads((project / "train.native").read_text())["imports"] == ["numpy", "sklearn.base"]
