"""examples/experiments: every file of it learns on a stack of three devices, as its README says."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from propeller.sdk import Propeller
from support.python_programs import CACHE_HOME, built
from support.stack import PROPELLER, Up, running_stack

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "experiments"
FILES = sorted(file.name for file in EXAMPLES.glob("*.toml"))

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("examples") / "state") as running:
        yield running


@pytest.fixture(scope="module")
def folder(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with data, whose files name the registry of this stack."""
    copy = tmp_path_factory.mktemp("copy") / "experiments"
    shutil.copytree(EXAMPLES, copy)
    subprocess.run([sys.executable, copy / "digits.py"], check=True, capture_output=True)
    registry = up.url("oci_registry").removeprefix("http://")
    for file in copy.glob("*.toml"):
        file.write_text(file.read_text().replace("127.0.0.1:5000", registry))
    program = built(ROOT / "programs" / "python" / "softmax.py")
    run(copy, "push", str(program), f"{registry}/softmax:latest")
    return copy


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*PROPELLER, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(CACHE_HOME)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", FILES)
def test_it_learns(up: Up, folder: Path, name: str) -> None:
    shown = run(folder, "run", name, "--state", str(up.folder))
    found = re.search(r"Experiment (\S+):", shown)
    assert found is not None
    with Propeller.from_state(up.folder) as fl:
        handle = fl.experiment(found[1])
        accuracy = [value for _, value in handle.history().metric("accuracy", "evaluate")]
        assert accuracy[-1] > 0.75, shown
        best = handle.wait().best
        assert best is not None
        assert best["value"] == pytest.approx(max(accuracy))


def test_the_readme_names_every_file() -> None:
    assert sorted(re.findall(r"\[(\w+\.toml)\]", (EXAMPLES / "README.md").read_text())) == FILES
