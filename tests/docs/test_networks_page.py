"""docs/networks.md against the code: its examples are run, and its tables are complete."""

import re
from contextvars import copy_context
from pathlib import Path

import pytest

from docs.test_tensors_page import check_example
from propeller.program import nn, optim, registry
from propeller.tensors.numpy_machine import NumpyMachine

PAGE = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples(example: str) -> None:
    registry.reset()
    copy_context().run(check_example, example, NumpyMachine())
    registry.reset()


@pytest.mark.parametrize("module", [nn, optim])
def test_everything_is_named(module: object) -> None:
    names = set(getattr(module, "__all__", ()))
    assert names
    assert names <= set(re.findall(r"\w+", PAGE))
