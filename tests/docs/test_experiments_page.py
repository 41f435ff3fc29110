"""docs/experiments.md against the code: each file in it is read, and every field is described and shown."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from propeller.cli.experiment_file import ExperimentFile
from propeller.protocol.experiments import ExperimentSpec
from propeller.sdk import Experiment

PAGE = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text()
FILES = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
OF_FILES = {"files", "label"}


def paths(table: dict[str, Any], before: str = "") -> set[str]:
    """The paths of all fields in a document."""
    found = set()
    for name, value in table.items():
        found.add(before + name)
        if isinstance(value, dict):
            found |= paths(value, f"{before}{name}.")
    return found


def fields(schema: Any) -> set[str]:
    """The fields of an experiment, and of its parts."""
    if isinstance(schema, list):
        return set().union(*map(fields, schema))
    if not isinstance(schema, dict):
        return set()
    return set(schema.get("properties", {})).union(*map(fields, schema.values()))


@pytest.mark.parametrize("text", FILES, ids=range(len(FILES)))
def test_each_file_is_read(tmp_path: Path, text: str) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(text if text.startswith("program") else f'program = "i"\nrounds = 20\n{text}')
    assert ExperimentFile.load(file).notes == []


def test_every_field_is_described_and_shown() -> None:
    names = fields(ExperimentSpec.model_json_schema()) | OF_FILES
    assert sorted(name for name in names if f"`{name}`" not in PAGE and f".{name}`" not in PAGE) == []
    shown = {path.rpartition(".")[2] for text in FILES for path in paths(tomllib.loads(text))}
    assert sorted(names - shown) == []


def test_the_example_in_python() -> None:
    example, _with_a_stack = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    assert isinstance(names["experiment"], Experiment)
