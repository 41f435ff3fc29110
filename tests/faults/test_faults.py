"""Faults of every kind that costs little time, in a split stack while experiments run; `make soak` makes the others too, and more."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from faults.ended import Records
from faults.experiments import Experiments
from faults.hostile import hostile_device
from faults.kinds import kill, lose_answers, send_twice
from faults.promises import Promises
from faults.stack import FaultyStack

ROUNDS = 12
SEED = 1


@pytest.mark.timeout(180)
async def test_promises_hold_whatever_happens(tmp_path: Path) -> None:
    rng = Random(SEED)
    async with FaultyStack(tmp_path / "state").running() as stack:
        experiments = Experiments(stack, ROUNDS)
        await experiments.prepare()
        first = await experiments.submit()
        await experiments.wait_ended(first)
        records = Records(stack)
        promises = Promises(records, (await records.of(first)).made)
        await promises.check(stack, first)
        disturbed = await experiments.submit()
        for done, faults in (
            (2, (kill,)),
            (4, (lose_answers, hostile_device)),
            (6, (send_twice, kill, hostile_device)),
        ):
            await experiments.wait_begun(disturbed, done)
            await asyncio.gather(*(fault(stack, rng) for fault in faults))
        await experiments.wait_ended(disturbed)
        await promises.check(stack, disturbed)
        assert stack.acknowledged
        await stack.stop(signal.SIGTERM)  # no process is left
        promises.check_logs(stack)


# Each once, as far as it can be had here: the table says why one is not.
KINDS = ("poisonous participant", "full disk", "damaged model version", "damaged update")


@pytest.mark.timeout(180)
def test_each_of_these_faults_is_named_and_harms_nothing_else() -> None:
    command = [
        sys.executable,
        "-m",
        "faults.soak",
        "--minutes",
        "0",
        "--rounds",
        str(ROUNDS),
        "--seed",
        str(SEED),
    ]
    done = subprocess.run(
        [*command, "--kinds", ",".join(KINDS)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1  damaged model version" in done.stdout, done.stdout
