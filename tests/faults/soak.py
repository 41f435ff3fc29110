"""Faults of all kinds, for as long as is wanted and each at least once, in a split stack while experiments run; after each experiment the promises are checked.

    python -m faults.soak [--minutes 10] [--seed N] [--kinds "kill, full disk"]     (in the folder tests)
    make soak SOAK_MINUTES=10 SOAK_SEED=N SOAK_KINDS="kill, full disk" SOAK_DATABASE=postgresql

The seed decides which faults are made, and for how long; when they meet what happens is the machine's chance. At the first promise that is broken the stack is ended and its
folder kept, exit 1.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random

from faults.ended import Records
from faults.experiments import Experiments
from faults.kinds import KINDS, Kind
from faults.promises import Promises
from faults.stack import FaultyStack
from propeller.process.logs import configure
from support.postgresql import create_database, find_programs, open_postgresql
from support.python_programs import CACHE_HOME

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

    def __init__(self, stack: FaultyStack, seed: int, kinds: Mapping[str, Kind], rounds: int) -> None:
        """Experiments have so many ``rounds``."""
        self._stack, self._rng, self._kinds, self._rounds = stack, Random(seed), kinds, rounds
        self._records = Records(stack)
        self._promises = Promises(self._records)
        self._waiting: list[str] = []
        self._again: list[str] = []
        self.made: Counter[str] = Counter()
        self.experiments = 0

    @property
    def checked(self) -> Counter[str]:
        """How often each promise was checked."""
        return self._promises.checked

    async def run(self, seconds: float) -> None:
        """Run experiments undisturbed, then others with faults for so long and until each kind has come, and the last one to its end.

        Raises:
            AssertionError: a promise is broken.
        """
        lacking = {name for name, kind in self._kinds.items() if kind.lacks(self._stack)}
        self._kinds = {name: kind for name, kind in self._kinds.items() if name not in lacking}
        assert self._kinds, "none of these kinds of faults can be made here"
        sizes = [Experiments(self._stack, self._rounds, large=large) for large in (False, True)]
        undisturbed = {}
        for experiments in sizes:
            await experiments.prepare()
            first = await experiments.submit()
            await experiments.wait_ended(first)
            undisturbed[experiments] = (await self._records.of(first)).made
        until = time.monotonic() + seconds

        def is_done() -> bool:
            return time.monotonic() >= until and self._kinds.keys() <= self.made.keys()

        for experiments in itertools.cycle(sizes):
            if is_done():
                return
            self._promises.undisturbed = undisturbed[experiments]
            running = await experiments.submit()
            while not is_done() and not await experiments.has_ended(running):
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
        others = sorted(name for name, kind in self._kinds.items() if not kind.alone)
        if self._rng.random() < SECOND_FAULT and kinds & {*others}:
            kinds |= {self._rng.choice(others)}
        await asyncio.gather(*map(self._make_fault, sorted(kinds)))
        await asyncio.sleep(self._rng.uniform(0, LONGEST_CALM_S))

    async def _make_fault(self, kind: str) -> None:
        what = await self._kinds[kind].make(self._stack, self._rng)
        if what:
            self.made[kind] += 1
        else:
            self._again.append(kind)
        print(f"  {time.strftime('%H:%M:%S')} {kind}: {what or 'came to nothing'}", flush=True)

    def _next_kind(self) -> str:
        """Each kind comes before any comes again."""
        if not self._waiting:
            # What came to nothing is in the list once more, but is not the only thing that comes.
            others = self._rng.sample(sorted(self._kinds), len(self._kinds))
            self._waiting, self._again = others + sorted(set(self._again)), []
        return self._waiting.pop()


def print_faults(stack: FaultyStack, kinds: Mapping[str, Kind], made: Counter[str]) -> None:
    """Print each kind, how often it was made, and what was checked of it alone; or why it was not made."""
    print("\nfaults")
    for name, kind in sorted(kinds.items(), key=lambda each: -made[each[0]]):
        lacks = kind.lacks(stack)
        told = f"not here: {lacks}" if lacks else kind.checks
        print(f"  {made[name]:>6}  {name:<32} {told}".rstrip())


def print_promises(checked: Counter[str]) -> None:
    """Print how often each promise was checked."""
    print("\npromises, checked after each experiment, whatever happened in it")
    for name, count in checked.most_common():
        print(f"  {count:>6}  {name}")


async def soak(folder: Path, chosen: argparse.Namespace, databases: Mapping[str, str]) -> bool:
    """Run, and print what was found; whether every promise held."""
    stack = FaultyStack(folder / "state", is_own=True, databases=databases)
    kinds = read_kinds(chosen.kinds)
    work = Soak(stack, chosen.seed, kinds, chosen.rounds)
    begun = time.monotonic()
    broken: AssertionError | None = None
    try:
        async with stack.running():
            await work.run(chosen.minutes * 60)
            await stack.stop(signal.SIGTERM)
        work.check_logs()
    except AssertionError as error:
        broken = error
    print_faults(stack, kinds, work.made)
    print_promises(work.checked)
    print(
        f"\n{work.experiments} experiments of {chosen.rounds} rounds and {sum(work.made.values())} faults in {time.monotonic() - begun:.0f} s, seed {chosen.seed}"
    )
    if broken is not None:
        print("".join(traceback.format_exception(broken)))
        print(f"BROKEN: {broken}\nseed {chosen.seed}; what the stack kept and logged is in {folder}")
    return broken is None


def read_kinds(text: str) -> Mapping[str, Kind]:
    """Kinds by their names, which commas separate; all if there is none.

    Raises:
        ValueError: there is no such kind.
    """
    names = [name.strip() for name in text.split(",") if name.strip()] or list(KINDS)
    if unknown := set(names) - KINDS.keys():
        raise ValueError(f"there is no kind {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    return {name: KINDS[name] for name in names}


def _make_databases(opened: contextlib.ExitStack) -> Mapping[str, str]:
    """A database of a PostgreSQL server for each service that may have a standby.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """
    programs = find_programs()
    if programs is None:
        raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql")
    host = opened.enter_context(open_postgresql(programs))
    return {name: create_database(programs, host, name) for name in ("coordinator", "identity", "manager")}


def main(chosen: argparse.Namespace) -> int:
    """The exit code."""
    configure("soak", level="critical")
    os.environ["XDG_CACHE_HOME"] = str(CACHE_HOME)  # where the program is built, and its runtime is made
    print(f"seed {chosen.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="propeller-soak-"))
    with contextlib.ExitStack() as opened:
        databases = _make_databases(opened) if chosen.database == "postgresql" else {}
        if not asyncio.run(soak(folder, chosen, databases)):
            return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of an experiment")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument(
        "--database", choices=["sqlite", "postgresql"], default="sqlite", help="with postgresql two of each"
    )
    parser.add_argument("--kinds", default="", help="names, separated by commas; all without it")
    sys.exit(main(parser.parse_args()))
