"""Faults of all kinds, for as long as is wanted, in a split stack while experiments run; after each experiment the promises are checked.

    python -m faults.soak [--minutes 10] [--seed N]        (in the folder tests; or: make soak SOAK_MINUTES=10 SOAK_SEED=N)

The seed decides which faults are made, and for how long; when they meet what happens is the machine's chance. At the first promise that is broken the stack is ended and its
folder kept, exit 1.
"""

import argparse
import asyncio
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from faults.ended import Records
from faults.experiments import Experiments
from faults.kinds import KINDS, OF_THE_WHOLE_STACK
from faults.promises import Promises
from faults.stack import FaultyStack
from propeller.process.logs import configure

ROUNDS = 100
LONGEST_CALM_S = 3.0
"""Between two faults."""

SECOND_FAULT = 1 / 3
"""The share of faults that do not come alone."""


class Soak:
    """Experiments one after another, and faults while they run.

    Attributes:
        made: how many faults of each kind.
        experiments: how many ended.
    """

    def __init__(self, stack: FaultyStack, seed: int) -> None:
        self._stack, self._rng = stack, Random(seed)
        self._records = Records(stack)
        self._promises = Promises(self._records)
        self._waiting: list[str] = []
        self.made: Counter[str] = Counter()
        self.experiments = 0

    @property
    def checked(self) -> Counter[str]:
        """How often each promise was checked."""
        return self._promises.checked

    async def run(self, until: float) -> None:
        """Go on until a moment of the monotonic clock, and then to the end of the experiment.

        Raises:
            AssertionError: a promise is broken.
        """
        experiments = Experiments(self._stack, ROUNDS)
        await experiments.prepare()
        first = await experiments.submit()
        await experiments.wait_ended(first)
        self._promises.undisturbed = (await self._records.of(first)).made
        while time.monotonic() < until:
            running = await experiments.submit()
            while time.monotonic() < until and not await experiments.has_ended(running):
                await self._make_faults()
            await self._stack.wait_healthy()
            await experiments.wait_ended(running)
            await self._promises.check(self._stack, running)
            self.experiments += 1
            print(f"{running}: every promise held", flush=True)

    def check_logs(self) -> None:
        """Check what the stack has logged, also while it ended."""
        self._promises.check_logs(self._stack)

    async def _make_faults(self) -> None:
        """One fault, or two at once."""
        kinds = {self._next_kind()}
        if self._rng.random() < SECOND_FAULT and not kinds & OF_THE_WHOLE_STACK:
            kinds |= {self._rng.choice(sorted(KINDS.keys() - OF_THE_WHOLE_STACK))}
        await asyncio.gather(*map(self._make_fault, sorted(kinds)))
        await asyncio.sleep(self._rng.uniform(0, LONGEST_CALM_S))

    async def _make_fault(self, kind: str) -> None:
        what = await KINDS[kind](self._stack, self._rng)
        self.made[kind] += 1
        print(f"  {time.strftime('%H:%M:%S')} {kind}: {what}", flush=True)

    def _next_kind(self) -> str:
        """Each kind comes before any comes again."""
        if not self._waiting:
            self._waiting = self._rng.sample(sorted(KINDS), len(KINDS))
        return self._waiting.pop()


def print_table(title: str, rows: Counter[str]) -> None:
    """Print counts, a line each."""
    print(f"\n{title}")
    for name, count in rows.most_common():
        print(f"  {count:>6}  {name}")


async def soak(folder: Path, seed: int, minutes: float) -> bool:
    """Run, and print what was found; whether every promise held."""
    stack = FaultyStack(folder / "state", own_programs=True)
    work = Soak(stack, seed)
    begun = time.monotonic()
    broken: AssertionError | None = None
    try:
        async with stack.running():
            await work.run(begun + minutes * 60)
            await stack.stop(signal.SIGTERM)
        work.check_logs()
    except AssertionError as error:
        broken = error
    print_table("faults", work.made)
    print_table("promises checked", work.checked)
    print(
        f"\n{work.experiments} experiments of {ROUNDS} rounds and {sum(work.made.values())} faults in {time.monotonic() - begun:.0f} s, seed {seed}"
    )
    if broken is not None:
        print(f"BROKEN: {broken}\nseed {seed}; what the stack kept and logged is in {folder}")
    return broken is None


def main(chosen: argparse.Namespace) -> int:
    """The exit code."""
    configure("soak", level="critical")
    print(f"seed {chosen.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="propeller-soak-"))
    if not asyncio.run(soak(folder, chosen.seed, chosen.minutes)):
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    sys.exit(main(parser.parse_args()))
