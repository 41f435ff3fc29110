"""docs/strategies.md against the code: every strategy with its parameters, the tests it names, and its own strategy run."""

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.fl.strategies import (
    Contribution,
    Description,
    Strategy,
    aggregate,
    create_strategy,
    describe_strategies,
    read_strategy,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "strategies.md").read_text()
SECTIONS = dict(re.findall(r"^### `(\w+)`$(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
NOTHING = "\N{EN DASH}"
STRATEGIES = {each.name: each for each in describe_strategies()}


def parameter_rows(described: Description) -> list[str]:
    """The rows of a strategy's table; what all strategies take is told once, on top."""
    rows = []
    for each in described.parameters:
        if each.name in Strategy.model_fields and not each.required:
            continue
        value = str(each.default).lower() if isinstance(each.default, bool) else each.default
        default = "required" if each.required else NOTHING if value is None else f"`{value}`"
        rows.append(
            f"| `{each.name}` | {each.type} | {default} | {each.range or NOTHING} | {each.description} |"
        )
    return rows


def test_every_strategy_has_a_section() -> None:
    assert list(SECTIONS) == list(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_section_has_the_paper_the_parameters_and_an_experiment_that_works(name: str) -> None:
    section = SECTIONS[name]
    assert STRATEGIES[name].paper in section
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows == parameter_rows(STRATEGIES[name])
    (snippet,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    assert read_strategy(tomllib.loads(snippet)["strategy"]).name == name


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_tests_that_a_section_names_are_there(name: str) -> None:
    named = re.findall(
        r"`(?:(tests/[\w/]+/))?(test_\w+\.py)(?:::(\w+))?`", SECTIONS[name].partition("Tests:")[2]
    )
    assert named
    for folder, module, function in named:
        text = (ROOT / (folder or "tests/fl/strategies") / module).read_text()
        assert not function or f"def {function}(" in text


def test_the_strategy_of_ones_own_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = PAGE.partition("## A strategy of your own")[2]
    source = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    project, experiment = (
        tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    )
    points: dict[str, Any] = project["project"]["entry-points"]
    (group,) = points
    (tmp_path / "my_strategies.py").write_text(source)
    info = tmp_path / "my_strategies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-strategies\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points[group].items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    monkeypatch.syspath_prepend(str(tmp_path))

    strategy = read_strategy(experiment["strategy"])
    assert strategy == create_strategy("careful", {"limit": 0.05})
    received = [(Contribution(0, "p-0", 1), {"w": np.array([0.01, 1.0, -1.0])})]
    model, state = aggregate(strategy, {"w": np.zeros(3)}, None, received)
    model, state = aggregate(strategy, model, state, received)
    assert model["w"].tolist() == pytest.approx([0.01, 0.1, -0.1])
    assert state.tensors["last/w"].tolist() == pytest.approx([0, 0.05, -0.05])
    assert state.values == {"rounds": 2}
