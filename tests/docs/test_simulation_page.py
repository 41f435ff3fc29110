"""docs/simulation.md: its commands do what it says, and it describes every field."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from propeller.simulation.description import DevicesSpec, SimulationSpec
from propeller.simulation.partitions import decode_partition
from support.page import read_page
from support.python_programs import CACHE_HOME, SOURCES, TEMPLATE, built
from support.reader import Reader
from support.stack import propeller

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "simulation.md"
PAGE = FILE.read_text()
FILES = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(240)
def test_every_command_does_what_the_page_says(tmp_path: Path) -> None:
    built(TEMPLATE)  # kept for all tests that build it
    reader = Reader("simulation.md", tmp_path, {"XDG_CACHE_HOME": str(CACHE_HOME)})
    try:
        assert propeller("new", str(reader.folder / "mine")).returncode == 0
        shutil.copy(built(SOURCES / "softmax.py"), reader.folder / "softmax.wasm")
        np.savez(reader.folder / "start.npz", w=np.zeros((64, 10)), b=np.zeros(10))
        (reader.folder / "digits.toml").write_text(FILES[0])
        for command in read_page(FILE).commands:
            reader.follow(command)
    finally:
        reader.close()


def test_the_example_in_python() -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(CACHE_HOME)}
    built(SOURCES / "softmax.py")
    shown = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "simulate.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    found = re.findall(r"^(\w+) \[([^]]+)\] 88 tasks", shown.stdout, re.MULTILINE)
    last = {name: float(accuracies.split(", ")[-1]) for name, accuracies in found}
    assert last.keys() == {"fedavg", "fedadam", "scaffold"}
    assert last["fedadam"] > last["fedavg"] > 0.5


def test_every_field_is_described() -> None:
    names = set(SimulationSpec.model_fields) | set(DevicesSpec.model_fields)
    told = {name for name in names if re.search(rf"`{name}(`| = )|^{name} = ", PAGE, re.MULTILINE)}
    assert names == told
    kinds = re.findall(r"^\| `(\w+)` \|.*\|.*\|$", PAGE.partition("| `kind` |")[2], re.MULTILINE)
    for kind in kinds:
        given = {"kind": kind, **({"by": "y"} if kind == "column" else {})}
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{kind}` |"))
        fields = set(type(decode_partition(given)).model_fields) - {"kind", "seed"}
        assert sorted(field for field in fields if f"`{field}`" not in row) == []
    assert len(kinds) == 6


def test_the_devices_are_read() -> None:
    DevicesSpec.decode(tomllib.loads(FILES[1])["simulation"]["devices"]).to_devices()
