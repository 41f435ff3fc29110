"""A sandbox that runs native programs with the tests' own interpreter."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from propeller.wasm.sandbox import Sandbox
from support.guests import children, is_waiting
from support.native_programs import interpreter
from support.net import eventually

collect_ignore = [] if "jax" in interpreter().python.distributions else ["test_jax.py"]


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    """At its end nothing may be left of its tasks, on disk or in the process table."""
    async with Sandbox(tmp_path / "sandbox", native=interpreter()) as made:
        yield made
        await eventually(
            lambda: all(map(is_waiting, children(made.template_pid))), 2, "the tasks' processes are gone"
        )
        if (warm := made.native_template_pid) is not None:
            await eventually(lambda: not children(warm), 2, "the forked tasks' processes are gone")
        await eventually(
            lambda: (
                not any(True for own in (tmp_path / "sandbox" / "tasks").iterdir() for _ in own.iterdir())
            ),
            2,
            "the tasks' folders are gone",
        )
