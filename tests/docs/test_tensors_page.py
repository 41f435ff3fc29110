"""docs/tensors.md against the code: its examples are run, and its tables are complete."""

import re
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from propeller.program import tensors
from propeller.tensors import session
from propeller.tensors.machine import StepMachine
from propeller.tensors.numpy_machine import NumpyMachine
from propeller.tensors.operations import documentation
from propeller.tensors.python_machine import PythonMachine

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tensors.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def section(heading: str) -> str:
    """The text under a heading of the second level."""
    found = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of the table rows that begin with code."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]


@pytest.mark.parametrize("machine", [NumpyMachine, PythonMachine])
@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples(example: str, machine: Any) -> None:
    """Each runs on its own, and where it shows a value that is the value."""
    copy_context().run(check_example, example, machine())


def check_example(example: str, machine: StepMachine) -> None:
    session.use(machine)
    names: dict[str, Any] = {}
    source = ""
    shown = 0
    for line in example.splitlines():
        expression, arrow, value = line.partition("# → ")
        if not arrow:
            source += line + "\n"
            continue
        exec(source, names)
        source = ""
        assert repr(eval(expression, names)) == value
        shown += 1
    exec(source, names)
    assert shown > 0


def test_every_function_is_listed() -> None:
    listed = [name for cells in rows(section("Functions")) for name in re.findall(r"`(\w+)`", cells[0])]
    assert sorted(listed) == sorted(tensors.__all__)


def test_every_method_is_named() -> None:
    words = set(re.findall(r"\w+", section("Arrays")))
    public = {name for name in vars(tensors.Array) if not name.startswith("_")}
    assert public <= words


def test_operations_are_listed_as_they_are_documented() -> None:
    """To write the table anew: ``python -c 'from propeller.tensors import operations as o; print(o.documentation())'``."""
    listed = [line for line in section("Operations").splitlines() if line.startswith("| `")]
    assert listed == documentation().splitlines()


def test_every_other_step_is_listed() -> None:
    listed = {cells[0].strip("`") for cells in rows(section("The tape"))}
    assert listed == set(NumpyMachine().control_steps)


def test_the_interface_is_the_programs() -> None:
    wit = (ROOT / "src" / "propeller" / "wasm" / "build" / "wit" / "program.wit").read_text()
    shown = re.search(r"^```wit\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert all(line.strip() in wit for line in shown[1].splitlines())
