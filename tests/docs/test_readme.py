"""README.md, command by command: each is run as it is written, and shows what the page says."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.page import read_page
from support.python_programs import CACHE_HOME, COMPILED, TEMPLATE, built
from support.reader import Reader

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

LEFT_OUT = Counter(
    {
        "a picture": 1,
        "make demo is a step of continuous integration": 1,
        "what make demo shows": 1,
        "the test of this page runs it in Python": 1,
        "tests/docs/test_program_pages.py has it learn": 1,
        "tests/e2e/test_gallery.py has it learn": 1,
    }
)
"""Blocks that are not run, by their reason."""


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    built(TEMPLATE)  # kept for all tests that build it
    environment = {"XDG_CACHE_HOME": str(CACHE_HOME), "PROPLET_CACHE": str(COMPILED)}
    following = Reader("README.md", tmp_path, environment)
    try:
        yield following
    finally:
        following.close()


@pytest.mark.timeout(240)
def test_every_command_does_what_the_readme_says(reader: Reader) -> None:
    for command in read_page(README).commands:
        if (experiment := reader.folder / "mine" / "experiment.toml").exists():
            experiment.write_text(reader.to_own_ports(experiment.read_text()))
        reader.follow(command)
    example = next(
        text
        for text in re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
        if "propeller.sdk" in text
    )
    shown = subprocess.run(
        [sys.executable, "-c", reader.to_own_ports(example)],
        cwd=reader.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    losses = [float(found) for found in re.findall(r"\(\d+, ([\d.]+)\)", shown.stdout)]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)


def test_what_is_not_run_is_run_elsewhere() -> None:
    page = read_page(README)
    assert Counter(page.left_out) == LEFT_OUT
    assert len(page.commands) >= 7


def test_the_network_is_the_examples() -> None:
    [network] = re.findall(r"^```python\n(class Net.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert network in (ROOT / "examples" / "digits_cnn" / "train.py").read_text()
