"""CONTRIBUTING.md against the tree: every file that a recipe names is there, for some service and some noun."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = dict(re.findall(r"^## ((?:Add|Change) .+?)$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
PLACEHOLDERS = re.compile(r"SERVICE|NOUN|NAME|NNNN_what_it_does")
FILE = re.compile(r"`([\w./-]+(?:/|\.(?:py|md|toml|yaml)))`")

COUNTS = {3: "Three", 4: "Four", 8: "Eight"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_files_of_a_recipe_are_there(recipe: str) -> None:
    names = FILE.findall(RECIPES[recipe])
    assert names
    for name in names:
        pattern = PLACEHOLDERS.sub("*", name)
        assert [*ROOT.glob(pattern), *(ROOT / "src" / "propeller").glob(pattern)], f"there is no {name}"


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith("Add")])
def test_a_recipe_says_how_many_files_it_takes_and_what_checks_it(recipe: str) -> None:
    text = RECIPES[recipe]
    steps = len(re.findall(r"^\d\. ", text, re.MULTILINE))
    assert f"\n{COUNTS[steps]} files" in text
    for target in re.findall(r"tests/[\w/.]+", text.partition("```console")[2]):
        assert [*ROOT.glob(PLACEHOLDERS.sub("*", target))], f"there is no {target}"


def test_there_is_a_recipe_for_each_usual_change() -> None:
    assert list(RECIPES) == [
        "Add a strategy",
        "Add an HTTP route",
        "Add a tensor operation",
        "Add a service",
        "Change the tables of a database",
    ]
