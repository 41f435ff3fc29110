#!/usr/bin/env python3
"""Three strategies on a hundred virtual clients whose digits differ, on this machine: no stack is needed.

    pip install 'propeller[build,simulation]'
    python examples/simulate.py

The program is ``programs/python/softmax.py``, built when it is first needed. docs/simulation.md has every option.
"""

from pathlib import Path

import numpy as np

from propeller.sdk import Experiment
from propeller.simulation import simulate

PROGRAM = Path(__file__).parents[1] / "programs" / "python" / "softmax.py"


def main() -> None:
    """Compare the strategies by the accuracy on digits that no client has."""
    start = {"w": np.zeros((64, 10), np.float32), "b": np.zeros(10, np.float32)}
    for strategy in ("fedavg", {"name": "fedadam", "server_lr": 0.05}, "scaffold"):
        experiment = Experiment(
            program="softmax",
            rounds=8,
            strategy=strategy,
            model=start,
            hyperparams={"lr": 0.3, "batch_size": 16},
            selection={"count": 10, "seed": 1},
            evaluate={"every": 1, "on": "central", "dataset": "test"},
        )
        ended = simulate(
            experiment,
            clients=100,
            data="digits",
            partition={"kind": "dirichlet", "alpha": 0.5},
            test=0.2,
            program=PROGRAM,
        )
        accuracy = [round(value, 3) for _number, value in ended.history().metric("accuracy", "evaluate")]
        print(experiment.spec.strategy.name, accuracy, f"{ended.clients} tasks in {ended.seconds:.1f} s")


if __name__ == "__main__":
    main()
