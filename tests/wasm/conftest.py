"""A sandbox for the tests of this folder."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from propeller.wasm.sandbox import Sandbox
from support.guests import children, is_waiting
from support.net import eventually


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    """A sandbox; at its end nothing may be left of its tasks, on disk or in the process table."""
    async with Sandbox(tmp_path / "sandbox") as made:
        yield made
        # A task that has said how it ended is killed, and not waited for.
        await eventually(
            lambda: all(map(is_waiting, children(made.template_pid))), 1, "the tasks' processes are gone"
        )
        # Nor is the removal of its folder.
        await eventually(
            lambda: (
                not any(True for own in (tmp_path / "sandbox" / "tasks").iterdir() for _ in own.iterdir())
            ),
            1,
            "the tasks' folders are gone",
        )
    assert list((tmp_path / "sandbox" / "tasks").iterdir()) == []
