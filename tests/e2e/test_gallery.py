"""The examples that the simulator runs: each learns as its README says, and the README's commands are those that are run."""

import re
from pathlib import Path

import pytest

from support.stack import propeller

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.timeout(240)


def accuracy_of(folder: Path, *more: str) -> float:
    done = propeller("simulate", str(folder / "experiment.toml"), *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return float(re.findall(r"eval.*accuracy (\S+)", done.stdout + done.stderr)[-1])


def test_a_convolutional_network_reads_digits_of_ten_devices() -> None:
    assert accuracy_of(EXAMPLES / "digits_cnn") > 0.95


def test_personal_heads_are_better_than_one_model_for_all() -> None:
    personal = accuracy_of(EXAMPLES / "personal")
    common = accuracy_of(EXAMPLES / "personal", "--set", "strategy=fedavg")
    assert personal > 0.93
    assert personal > common


def test_every_example_is_listed() -> None:
    page = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        if path.name not in {"README.md", "__pycache__"}:
            assert f"]({path.name})" in page, path.name
            assert path.is_file() or (path / "README.md").is_file(), path.name
