"""The programs that README.md and docs/programs.md show are programs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/programs.md")


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
    samples = [{"x": [a, b], "y": 2 * a - b + 1.0} for a in (-1.0, 0.0, 1.0) for b in (-1.0, 0.5, 2.0)]
    (tmp_path / "in" / "dataset.json").write_text(json.dumps({"data": samples}))
    (tmp_path / "in" / "model.json").write_text(json.dumps({"w": [0, 0], "b": 0}))
    (tmp_path / "in" / "hyperparams.json").write_text(json.dumps({"epochs": 200, "lr": 0.1}))
    said = python("-m", "propeller.program.native", tmp_path / "train.py", tmp_path, folder=tmp_path)
    document = json.loads(said)
    assert document["num_samples"] == len(samples)
    assert document["metrics"]["loss"] < 1e-4
    assert document["update"]["w"] == pytest.approx([2, -1], abs=0.02)
    assert document["update"]["b"] == pytest.approx(1, abs=0.02)


def test_a_program_in_a_test(tmp_path: Path) -> None:
    program, as_in_a_test = blocks("docs/programs.md")[:2]
    (tmp_path / "train.py").write_text(program)
    (tmp_path / "check.py").write_text(as_in_a_test)
    assert re.search(r"^[0-9.e-]+ \[.*\]$", python("check.py", folder=tmp_path).strip())
