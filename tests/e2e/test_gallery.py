"""The examples that the simulator runs: each learns as its README says, in about half of its rounds."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.stack import propeller

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.timeout(240)


def evaluations(folder: Path, *more: str) -> list[float]:
    """The accuracy of each evaluation of a simulation."""
    done = propeller("simulate", str(folder / "experiment.toml"), *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return [float(one) for one in re.findall(r"eval.*accuracy (\S+)", done.stdout + done.stderr)]


def copy_of(example: str, folder: Path) -> Path:
    """An example in a copy of the repository's folders, for one that writes files."""
    copy = folder / "examples" / example
    shutil.copytree(EXAMPLES / example, copy, ignore=shutil.ignore_patterns("data", "result"))
    return copy


def script(file: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(file), *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_convolutional_network_reads_digits_of_ten_devices() -> None:
    assert evaluations(EXAMPLES / "digits_cnn", "--set", "rounds=7")[-1] > 0.93


def test_personal_heads_are_better_than_one_model_for_all() -> None:
    personal = evaluations(EXAMPLES / "personal", "--set", "rounds=9")[-1]
    common = evaluations(EXAMPLES / "personal", "--set", "rounds=9", "--set", "strategy=fedavg")[-1]
    assert personal > 0.9
    assert personal > common + 0.1


def test_three_hospitals_are_better_than_each_alone(tmp_path: Path) -> None:
    folder = copy_of("hospitals", tmp_path)
    shutil.copytree(ROOT / "programs" / "python", tmp_path / "programs" / "python")
    script(folder / "hospitals.py")
    together = evaluations(folder)[-1]
    assert together > 0.96
    for client in ("client-1", "client-2", "client-3"):
        alone = evaluations(folder, "--set", f'selection.names=["{client}"]', "--set", "evaluate.every=10")[
            -1
        ]
        assert alone < together


def test_a_network_of_four_authors_writes_more_of_their_words(tmp_path: Path) -> None:
    """Six rounds of the fourteen: right for two in five characters, where the most frequent one is one in six; and words that there are."""
    folder = copy_of("text", tmp_path)
    script(folder / "verses.py")
    accuracy = evaluations(folder, "--set", "rounds=6", "--out", str(folder / "result"))
    assert accuracy == sorted(accuracy)
    assert accuracy[-1] > 0.38
    words = set(
        re.findall(r"[a-z]+", " ".join(file.read_text().lower() for file in folder.glob("verses/*.txt")))
    )
    text = script(folder / "write.py", str(folder / "result" / "latest.safetensors"), "The ")
    written = re.findall(r"[a-z]+", text.removeprefix("The "))
    assert len(written) > 30, text
    assert sum(word in words for word in written) > len(written) / 2, text


def test_every_example_is_listed() -> None:
    page = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        if path.name not in {"README.md", "__pycache__"}:
            assert f"]({path.name})" in page, path.name
            assert path.is_file() or (path / "README.md").is_file(), path.name
