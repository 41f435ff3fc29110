"""The shipped program in a sandbox."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from propeller.wasm.sandbox import Sandbox
from support.logreg import Logreg


@pytest.fixture
async def logreg(tmp_path: Path) -> AsyncIterator[Logreg]:
    """The logistic regression."""
    async with Sandbox(tmp_path) as sandbox:
        yield Logreg(sandbox)
