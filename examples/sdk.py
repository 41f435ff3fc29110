#!/usr/bin/env python3
"""Federated learning from Python: data, an experiment that is watched, its history, and a name for its best model.

While `propeller up` runs:

    python3 examples/sdk.py [STATE]        (STATE is its folder, .propeller)
"""

import sys
from typing import Any

import numpy as np

from propeller.sdk import Experiment, Propeller

SLOPE = np.array([2.0, -1.0, 0.5])
"""What is to be found: the sign of ``x @ SLOPE``."""


def records(random: np.random.Generator, count: int, middle: float) -> dict[str, Any]:
    """The data of a device whose values lie around ``middle``."""
    x = random.normal(middle, 1.0, (count, len(SLOPE)))
    y = x @ SLOPE + random.normal(0.0, 0.3, count) > 0
    return {"data": [{"x": row, "y": int(label)} for row, label in zip(x, y, strict=True)]}


def main(state: str) -> None:
    """Run an experiment on every device of a stack."""
    random = np.random.default_rng(0)
    with Propeller.from_state(state) as fl:
        devices = sorted(fl.device_names().values())
        experiment = Experiment(
            program=fl.image(),  # logistic regression, which the stack's registry has from the start
            name="from-python",
            rounds=6,
            strategy={"name": "fedavgm", "momentum": 0.5},
            model={"w": np.zeros(len(SLOPE)), "b": 0.0},
            data={name: records(random, 200, 0.5 * at) for at, name in enumerate(devices)},
            split={"holdout": 0.2, "seed": 1},
            evaluate={"every": 2},
            stop={"metric": "accuracy", "goal": "max"},  # marks the best version by it
            hyperparams={
                "epochs": 2,
                "batch_size": 16,
                "lr": {"schedule": "cosine", "start": 0.5, "end": 0.05},
            },
        )
        handle = fl.run(experiment)  # returns at once; the experiment goes on without this program
        for event in handle.events():
            if event.kind == "round_ended":
                print(f"{event.data['kind']} {event.data['number']}: {event.data['metrics']}")
        result = handle.wait()
        history = handle.history()
        print("losses:", [round(value, 3) for _round, value in history.metric("loss", "train")])
        print("rows, one a participant and round:", len(history.rows()))
        if result.best is None:
            raise SystemExit("no version is the best: there was no evaluation")
        fl.models.set_alias("production", result.best["version"])
        unseen = records(random, 1000, 0.0)["data"]
        model = handle.model("best")
        right = [(row["x"] @ model["w"] + model["b"] > 0) == row["y"] for row in unseen]
        print(
            f"production is v{result.best['version']}: accuracy {np.mean(right):.3f} on data that no device has"
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".propeller")
