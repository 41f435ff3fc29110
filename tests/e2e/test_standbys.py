"""Two coordinators and two managers on one PostgreSQL, whose owners are killed in the middle of rounds: nothing is lost or doubled."""

import signal
import uuid
from pathlib import Path

from support.postgresql import create_database
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
