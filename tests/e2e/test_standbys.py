"""Two coordinators and two managers on one PostgreSQL, whose owners are killed in the middle of rounds: nothing is lost or doubled; and who owns what is said."""

import asyncio
import os
import platform
import signal
import uuid
from pathlib import Path

from propeller.store.ownership import FileClaim
from support.net import eventually
from support.postgresql import create_database
from support.stack import end, propeller, start_up
from support.standbys import open_world

SERVICES = ("coordinator", "manager")


async def test_owners_that_are_killed_in_the_middle_of_rounds(
    tmp_path: Path, broker_port: int, postgresql: tuple[Path, str]
) -> None:
    databases = {name: create_database(*postgresql, f"{name}_{uuid.uuid4().hex}") for name in SERVICES}
    losses = {2: ("coordinator", signal.SIGKILL), 4: ("manager", signal.SIGKILL)}
    async with open_world(tmp_path, broker_port, databases, seed=1) as world:
        await world.run(6, losses)
    for service, how, took in world.takeovers:
        print(f"{service} lost by {how}: taken over after {took:.2f} s")  # noqa: T201 - the figure is what is shown
    assert len(world.takeovers) == len(losses)
    assert all(took < 10 for _service, _how, took in world.takeovers)


async def test_who_owns_the_database_of_a_stack_that_waits_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    (folder / "manager").mkdir(parents=True, mode=0o700)
    claim = FileClaim(folder / "manager" / "manager.db", "manager")
    assert await claim.take()
    up = start_up(folder, "--ports", "auto", "--proplets", "0")
    try:
        said = f"standby: manager.db is owned by process {os.getpid()} on {platform.node()}, since 20"

        def asked(*command: str) -> str:
            told = propeller(*command, "--state", str(folder))
            assert told.returncode == 1
            return told.stdout + told.stderr

        log = folder / "logs" / "manager.log"
        await eventually(lambda: log.exists() and "standby: " in log.read_text(), 60)
        assert f"manager: {said}" in asked("status")
        assert f"manager is a {said}" in " ".join(asked("doctor").split())
        await claim.close()
        await asyncio.to_thread(up.wait_ready)
        assert propeller("status", "--state", str(folder)).returncode == 0
    finally:
        await claim.close()
        await asyncio.to_thread(end, up)
