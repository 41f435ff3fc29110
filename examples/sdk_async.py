#!/usr/bin/env python3
"""Several experiments at once, in an event loop: which learning rate is best?

While `propeller up` runs:

    python3 examples/sdk_async.py [STATE]        (STATE is its folder, .propeller)
"""

import asyncio
import sys

from propeller.sdk import AsyncPropeller, Experiment, ExperimentFailedError

RATES = (0.01, 0.1, 1.0)


async def learn(fl: AsyncPropeller, lr: float) -> float:
    """Train with a learning rate, on what the devices have; gives the last round's loss."""
    experiment = Experiment(
        program=fl.image(),
        name=f"lr-{lr}",
        rounds=4,
        model={"w": [0.0, 0.0, 0.0], "b": 0.0},
        hyperparams={"epochs": 1, "lr": lr},
    )
    handle = await fl.run(experiment)
    async for event in handle.events():
        if event.kind == "round_ended":
            print(f"{handle.id}: round {event.data['number']}, loss {event.data['metrics']['loss']:.3f}")
    try:
        await handle.wait()
    except ExperimentFailedError as error:  # as with a rate at which training diverges
        print(error)
        return float("inf")
    return (await handle.history()).metric("loss")[-1][1]


async def main(state: str) -> None:
    """Train with each learning rate at the same time."""
    async with AsyncPropeller.from_state(state) as fl:
        losses = await asyncio.gather(*(learn(fl, lr) for lr in RATES))
        best = min(zip(losses, RATES, strict=True))
        print(f"best: lr {best[1]}, loss {best[0]:.3f}")
        running = await fl.experiments(state="running")
        print(f"{len(running)} experiments still run")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else ".propeller"))
