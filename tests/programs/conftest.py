"""The logistic regressions in a sandbox."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from propeller.data import program_path
from propeller.wasm.sandbox import Sandbox
from support import go_program
from support.logreg import Logreg


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where sandboxes keep what they compiled: the program in Go takes a second or two, once."""
    return tmp_path_factory.mktemp("sandbox")


@pytest.fixture(params=["c", "go"])
async def logreg(request: pytest.FixtureRequest, compiled: Path) -> AsyncIterator[Logreg]:
    """A logistic regression, in each language."""
    program = program_path("logreg") if request.param == "c" else go_program.build()
    async with Sandbox(compiled) as sandbox:
        yield Logreg(sandbox, program)
