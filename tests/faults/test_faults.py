"""Faults of every kind that costs little time, in a split stack while experiments run; `make soak` makes the others too, and more."""

import asyncio
import signal
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
