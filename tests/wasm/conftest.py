"""A sandbox for the tests of this folder."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from propeller.wasm.sandbox import Sandbox
from support.guests import children


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    """A sandbox; at its end nothing may be left of its tasks, on disk or in the process table."""
    async with Sandbox(tmp_path / "sandbox") as made:
        yield made
        assert children(made.template_pid) == []
        tasks = [entry for own in (tmp_path / "sandbox" / "tasks").iterdir() for entry in own.iterdir()]
        assert tasks == []
    assert list((tmp_path / "sandbox" / "tasks").iterdir()) == []
