"""Two coordinators and two managers on one PostgreSQL, whose owners are killed and stopped in the middle of an experiment's rounds.

    python benchmarks/standby.py [--rounds 50] [--every 5] [--seed N]

At a moment of every few rounds that chance decides the owner of a database is lost: a coordinator and a manager by kill -9, then each by
SIGSTOP, after which it is let go on as soon as its standby has taken over. Printed are the seconds from the loss until the standby
answered ``/health``. Checked, exit 1 if it is not so: each take-over takes less than 10 s; each update that was acknowledged was counted
exactly once, in its round and in the model, and no other; each device had exactly one task in each round; an owner that was stopped ended
when it went on. A start that was published twice is the same task, which a device does once: how many were is printed.

It needs PostgreSQL's programs (on Debian: apt-get install postgresql).
"""

import argparse
import asyncio
import itertools
import secrets
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from propeller.process.logs import configure
from support.nats import open_broker
from support.postgresql import create_database, find_programs, open_postgresql
from support.standbys import DEVICES, World, open_world

LONGEST_S = 10.0
LOSSES = [
    (service, how) for how in (signal.SIGKILL, signal.SIGSTOP) for service in ("coordinator", "manager")
]


async def measure(folder: Path, port: int, databases: dict[str, str], chosen: argparse.Namespace) -> World:
    """Run the experiment; what took part."""
    rounds = range(chosen.every, chosen.rounds, chosen.every)
    async with open_world(folder, port, databases, chosen.seed) as world:
        await world.run(chosen.rounds, dict(zip(rounds, itertools.cycle(LOSSES), strict=False)))
    return world


def main(chosen: argparse.Namespace) -> bool:
    """Print what was measured; whether everything held."""
    configure("standby", level="critical")
    programs = find_programs()
    if programs is None:
        print("PostgreSQL is not installed (on Debian: apt-get install postgresql)")
        return False
    print(f"seed {chosen.seed}", flush=True)
    begun = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        open_broker(Path(folder) / "broker") as port,
        open_postgresql(programs) as host,
    ):
        state = Path(folder) / f"world-{secrets.token_hex(4)}"
        state.mkdir()
        databases = {name: create_database(programs, host, name) for name in ("coordinator", "manager")}
        try:
            world = asyncio.run(measure(state, port, databases, chosen))
        except AssertionError as error:
            print(f"FAILED: {error}")
            return False
    held = True
    for service, how in LOSSES:
        took = [seconds for name, by, seconds in world.takeovers if (name, by) == (service, how.name)]
        if took:
            held = held and max(took) < LONGEST_S
            print(
                f"{service:<11} {how.name}  {len(took)} times, taken over after median {statistics.median(took):.2f} s, "
                f"longest {max(took):.2f} s"
            )
    updates = len(world.devices.acknowledged)
    again = sum(count - 1 for count in world.devices.tasks.values())
    print(
        f"{chosen.rounds} rounds in {time.monotonic() - begun:.0f} s: {updates} of {chosen.rounds * len(DEVICES)} updates "
        f"acknowledged, each counted once; {len(world.devices.tasks)} tasks, {again} starts published again"
    )
    return held


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    sys.exit(0 if main(parser.parse_args()) else 1)
