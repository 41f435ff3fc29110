"""A convolutional network on MNIST among devices whose data differ: Flower's published table for NIID-Bench, by the simulator with the sandboxed program.

    python benchmarks/niid.py [--data DIR] [--rounds 50] [--seeds 1] [--rows NAME …] [--torch PYTHON]

Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study, ICDE 2022, in the form of Flower's baseline ``niid_bench``: 10 clients, all of them
in each of 50 rounds, 10 local epochs of batches of 64, SGD with a learning rate of 0.01, a momentum of 0.9 and a weight decay of 1e-5, the network of
``programs/python/lenet.py``. The images are divided at random, by a Dirichlet distribution of 0.5 over the classes, or so that each client has two or
three digits; by the very draws of the baseline, whose seed is 42 (``run_exp.py``), because which client has which digits matters: with two digits a
client, three of the ten are with one client alone, and three with three. ``--seeds`` are of the first weights and of the order of the samples.
Printed: the accuracy on the 10,000 test images in the last round, and the best of any, beside Flower's figures; and the processor time.
With ``--torch PYTHON``, an interpreter that has PyTorch, one client's round is also done there on one thread, and the ratio printed.

Exits 1 if a row of FedAvg ends more than 0.3 points below Flower's figure, which is that of 50 rounds; fewer, with ``--rounds``, have to do as well.
Without the files of MNIST nothing is measured.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.coordinator.rounds import RoundRecord
from propeller.sdk import Experiment
from propeller.sdk.initial_model import initial_model
from propeller.simulation import Dataset, read_dataset, simulate
from propeller.simulation.experiment import SimulatedExperiment

Labels = npt.NDArray[np.int64]

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "programs" / "python" / "lenet.py"
CLIENTS, ROUNDS, BELOW = 10, 50, 0.003
HYPERPARAMS = {"epochs": 10, "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-5, "batch_size": 64}

PARTITION_SEED = 42
"""Of the published run's division."""

Division = Callable[[np.random.Generator, Labels], Labels]
"""From the digits of all images, the client of each."""


def at_random(draws: np.random.Generator, labels: Labels) -> Labels:
    """Ten parts of one size."""
    client_of = np.empty(len(labels), np.int64)
    for client, rows in enumerate(
        np.array_split(draws.choice(len(labels), len(labels), replace=False), CLIENTS)
    ):
        client_of[rows] = client
    return client_of


def by_dirichlet(draws: np.random.Generator, labels: Labels) -> Labels:
    """Shares of each digit from ``Dir(0.5)`` over the clients that have less than a tenth of all images yet."""
    client_of = np.empty(len(labels), np.int64)
    sizes = np.zeros(CLIENTS, np.int64)
    while sizes.min() < 10:
        sizes[:] = 0
        for digit in range(10):
            rows = np.flatnonzero(labels == digit)
            draws.shuffle(rows)
            shares = draws.dirichlet(np.full(CLIENTS, 0.5)) * (sizes < len(labels) / CLIENTS)
            ends = (np.cumsum(shares / shares.sum()) * len(rows)).astype(int)
            for client, part in enumerate(np.split(rows, ends[:-1])):
                client_of[part] = client
                sizes[client] += len(part)
    return client_of


def by_digits(count: int) -> Division:
    """Client *i* has the digit *i*, and others at random until it has so many; the clients of a digit have equal parts of its images."""

    def divide(draws: np.random.Generator, labels: Labels) -> Labels:
        owners: dict[int, list[int]] = {digit: [] for digit in range(10)}
        for client in range(CLIENTS):
            digits = {client}
            while len(digits) < count:
                digits.add(int(draws.choice(10)))
            for digit in digits:
                owners[digit].append(client)
        client_of = np.empty(len(labels), np.int64)
        for digit, clients in owners.items():
            rows = np.flatnonzero(labels == digit)
            draws.shuffle(rows)
            for client, part in zip(clients, np.array_split(rows, len(clients)), strict=True):
                client_of[part] = client
        return client_of

    return divide


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        strategy: of the experiment.
        division: which client has which images.
        published: Flower's accuracy after 50 rounds.
        is_held: whether to miss it is a failure.
    """

    strategy: Any
    division: Division
    published: float
    is_held: bool = True


ROWS = {
    "fedavg-iid": Row("fedavg", at_random, 0.9909),
    "fedavg-dirichlet": Row("fedavg", by_dirichlet, 0.9889),
    "fedavg-labels-2": Row("fedavg", by_digits(2), 0.9686),
    "fedavg-labels-3": Row("fedavg", by_digits(3), 0.9786),
    "fedprox-dirichlet": Row({"name": "fedprox", "mu": 0.01}, by_dirichlet, 0.9902, is_held=False),
    "scaffold-dirichlet": Row("scaffold", by_dirichlet, 0.9907, is_held=False),
    "fednova-dirichlet": Row({"name": "fednova", "momentum": 0.9}, by_dirichlet, 0.9803, is_held=False),
}

TORCH = """
import sys, time, torch
from torch import nn
torch.set_num_threads(1)
count, epochs, batch = map(int, sys.argv[1:])
net = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                    nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
optimizer, loss = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=1e-5), nn.CrossEntropyLoss()
x, y = torch.rand(count, 1, 28, 28), torch.randint(0, 10, (count,))
begin = time.process_time()
for _ in range(epochs):
    order = torch.randperm(count)
    for at in range(0, count, batch):
        rows = order[at : at + batch]
        optimizer.zero_grad()
        loss(net(x[rows]), y[rows]).backward()
        optimizer.step()
print(time.process_time() - begin)
"""
"""The same training in PyTorch, of images of no meaning: processor seconds."""


def processor_s() -> float:
    """Of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run(data: Dataset, row: Row, rounds: int, seed: int) -> tuple[list[float], float, float]:
    """The accuracy after each round, and the wall-clock and processor seconds."""
    accuracies: list[float] = []

    def observe(_ended: SimulatedExperiment, record: RoundRecord) -> None:
        if record.kind == "evaluate" and record.metrics:
            accuracies.append(record.metrics["accuracy"])
            print(f"  round {len(accuracies):>3}  {accuracies[-1]:.4f}", flush=True)

    experiment = Experiment(
        program="lenet",
        rounds=rounds,
        model=initial_model(PROGRAM, {"seed": seed + 1}),
        strategy=row.strategy,
        hyperparams=HYPERPARAMS,
        selection={"seed": seed},
        evaluate={"every": 1, "on": "central", "dataset": "test"},
        limits={"wall_time_s": 3600},
    )
    clients = row.division(np.random.default_rng(PARTITION_SEED), np.asarray(data.columns["y"]))
    begin, processor = time.perf_counter(), processor_s()
    ended = simulate(
        experiment,
        clients=CLIENTS,
        data=Dataset(data.name, data.columns, {"client": clients}, data.test),
        partition={"kind": "column", "by": "client"},
        program=PROGRAM,
        observe=observe,
    )
    if ended.state == "failed":
        raise SystemExit(f"{ended}: {ended.reason}")
    return accuracies, time.perf_counter() - begin, processor_s() - processor


def main() -> int:
    """Measure and print; 1 if a bound was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the files of MNIST")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has PyTorch")
    given = parser.parse_args()
    folder = given.data or ROOT.parent / "shared" / "data" / "mnist"
    if given.data is None and not folder.is_dir():
        print("the files of MNIST are not here: give their folder with --data DIR; nothing was measured")
        return 0
    data = read_dataset(folder)
    missed = []
    for name in given.rows:
        for seed in range(given.seeds):
            row = ROWS[name]
            accuracies, seconds, processor = run(data, row, given.rounds, seed)
            print(
                f"{name}, seed {seed}: {accuracies[-1]:.2%} after {len(accuracies)} rounds, at most {max(accuracies):.2%}; Flower's "
                f"table has {row.published:.2%} after {ROUNDS}; {seconds:.0f} s, {processor:.0f} s of processors",
                flush=True,
            )
            if given.torch:
                count = len(data.columns["y"]) // CLIENTS
                done = subprocess.run(
                    [
                        given.torch,
                        "-c",
                        TORCH,
                        str(count),
                        str(HYPERPARAMS["epochs"]),
                        str(HYPERPARAMS["batch_size"]),
                    ],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                torch = float(done.stdout) * CLIENTS * len(accuracies)
                print(
                    f"  PyTorch's training alone, one thread: {torch:.0f} s of processors; ratio {processor / torch:.2f}"
                )
            if row.is_held and accuracies[-1] < row.published - BELOW:
                missed.append(f"{name}, seed {seed}: {accuracies[-1]:.2%}")
    if missed:
        print("missed: " + "; ".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
