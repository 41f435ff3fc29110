"""FedAvg on MNIST as McMahan et al. 2017 have it in table 1, by the simulator with the sandboxed Python program, beside plain NumPy.

    python benchmarks/mnist_fedavg.py [--data DIR] [--seeds 3] [--splits iid shards] [--plot FILE]

The 2NN (784-200-200-10, rectified linear units), 100 clients, a tenth of them in a round (C = 0.1), one epoch (E = 1) of batches of 10 (B = 10),
with all 60,000 images divided at random, or sorted by digit into 200 shards of which each client has two. ``programs/python/mlp.py`` trains and,
after each round, tells the accuracy on the 10,000 test images. Printed: the round in which 97 % is reached, beside the paper's.

Every tenth round is repeated in NumPy while the simulator waits: the same clients from the same model, with the same batches, the same losses
before and after, the mean of the updates, and the evaluation, in as many processes as the simulator has workers, with a thread each. What
comes out is compared with the simulator's model. The time compared is that of processors: all of the simulator's processes from the first round
on (not building and compiling the program) against what NumPy would take for as many rounds and evaluations. Exits 1 if a round is later than
the paper's, the simulator takes over 2 times NumPy's (the mean of the seeds), or models of half the rounds are farther from NumPy's than 1e-4 of
what the round changed. (One round may be: a sum in another order puts a unit on the other side of zero, and from there on the two paths differ,
as those of NumPy do from weights that differ by 6e-8.)
Without the files of MNIST (``train-images-idx3-ubyte.gz`` and so on) nothing is measured.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from propeller.coordinator.rounds import RoundRecord
from propeller.fl.selection import slot_seed
from propeller.sdk import Experiment
from propeller.simulation import Dataset, decode_partition, read_dataset, simulate
from propeller.simulation.experiment import SimulatedExperiment

Floats = npt.NDArray[np.float32]
Model = dict[str, Floats]

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "programs" / "python" / "mlp.py"
SIZES = (784, 200, 200, 10)
CLIENTS, CHOSEN, BATCH, TARGET = 100, 10, 10, 0.97
MOST, AGREE = 2.0, 1e-4
REPEATED = 10
"""Every so many rounds are repeated in NumPy."""


@dataclass(frozen=True)
class Split:
    """A way to divide the images, and what is known of it.

    Attributes:
        partition: as ``simulate`` takes it.
        rounds: the paper's, which is also the most that are run.
        lr: the clients' learning rate. The paper tunes it, and does not say which one it found.
    """

    partition: Mapping[str, Any]
    rounds: int
    lr: float


SPLITS = {
    "iid": Split({"kind": "iid"}, 87, 0.1),
    "shards": Split({"kind": "shards", "per_client": 2}, 664, 0.1),
}


def first_model(seed: int) -> Model:
    """Random weights of variance 2 / inputs (He et al. 2015), and no biases."""
    source = np.random.default_rng(seed)
    model = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(SIZES), 1):
        weights = source.standard_normal((inputs, outputs)) * (2 / inputs) ** 0.5
        model[f"w{layer}"] = weights.astype(np.float32)
        model[f"b{layer}"] = np.zeros(outputs, np.float32)
    return model


# Plain NumPy ---------------------------------------------------------------------------------------------------


def forward(model: Model, x: Floats) -> tuple[Floats, Floats, Floats]:
    """Both hidden layers, and the logarithms of the classes' shares."""
    first = np.maximum(x @ model["w1"] + model["b1"], 0)
    second = np.maximum(first @ model["w2"] + model["b2"], 0)
    scores = second @ model["w3"] + model["b3"]
    scores -= scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return first, second, scores


def measure(model: Model, x: Floats, y: npt.NDArray[np.int64]) -> tuple[float, float]:
    """The mean cross-entropy, and the accuracy."""
    scores = forward(model, x)[2]
    return float(-scores[np.arange(len(y)), y].mean()), float((scores.argmax(axis=1) == y).mean())


def train(model: Model, x: Floats, y: npt.NDArray[np.int64], lr: float, seed: int) -> None:
    """An epoch in place, between a look at the loss and at loss and accuracy, as the program does it; the order is that of its ``pt.random``."""
    measure(model, x, y)
    rate = np.float32(lr)
    rows = np.random.Generator(np.random.PCG64([seed, 1])).permutation(len(y))
    xs, ys = x[rows], y[rows]
    for at in range(0, len(ys), BATCH):
        batch, labels = xs[at : at + BATCH], ys[at : at + BATCH]
        first, second, scores = forward(model, batch)
        error = np.exp(scores)
        error[np.arange(len(labels)), labels] -= 1
        error /= len(labels)
        back_2 = error @ model["w3"].T
        back_2 *= second > 0
        back_1 = back_2 @ model["w2"].T
        back_1 *= first > 0
        for layer, below, slope in ((3, second, error), (2, first, back_2), (1, batch, back_1)):
            model[f"w{layer}"] -= rate * (below.T @ slope)
            model[f"b{layer}"] -= rate * slope.sum(axis=0)
    measure(model, x, y)


_shared: dict[str, npt.NDArray[Any]] = {}
"""The data in a process of NumPy's, which has it from the one that it was forked from."""


def train_client(base: Model, rows: npt.NDArray[np.int64], lr: float, seed: int) -> tuple[float, Model]:
    """A client's update, and the processor seconds that it took."""
    begin = time.process_time()
    model = {name: each.copy() for name, each in base.items()}
    train(model, _shared["x"][rows], _shared["y"][rows], lr, seed)
    return time.process_time() - begin, model


@dataclass
class Beside:
    """Rounds of a simulation repeated in NumPy, while it waits.

    Attributes:
        accuracies: the simulator's, by round.
        rounds: processor seconds of each round that was repeated.
        evaluations: and of the evaluations.
        distances: how far each round's model was from the simulator's, by the Euclidean norm, beside what the round changed.
        began: of the simulator, when its first round did: processor and wall-clock seconds.
        spent: processor and wall-clock seconds of all that was done here.
    """

    pool: ProcessPoolExecutor
    data: Dataset
    parts: Sequence[npt.NDArray[np.int64]]
    lr: float
    seed: int
    accuracies: dict[int, float] = field(default_factory=dict)
    rounds: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    began: tuple[float, float] | None = None
    spent: tuple[float, float] = (0.0, 0.0)

    def observe(self, ended: SimulatedExperiment, record: RoundRecord) -> None:
        """What the simulator calls."""
        before = used()
        if self.began is None:
            self.began = before
        if record.round.model_version is not None and record.kind == "train":
            if ended.record.experiment.done % REPEATED == 0:
                self._repeat(ended, record)
        elif record.kind == "evaluate" and record.metrics:
            self.accuracies[ended.record.experiment.done] = record.metrics["accuracy"]
        after = used()
        self.spent = (self.spent[0] + after[0] - before[0], self.spent[1] + after[1] - before[1])

    def _repeat(self, ended: SimulatedExperiment, record: RoundRecord) -> None:
        base, number = record.round.plan.base_version, record.request.number  # type: ignore[union-attr]
        version = record.round.model_version
        if version is None or self.data.test is None:
            raise AssertionError("a round with a model, of a data set with a test set")
        model = {key: np.array(each, np.float32) for key, each in ended.model(base).items()}
        chosen = [int(name.removeprefix("client-")) - 1 for name in record.round.plan.participants]
        rows = [self.parts[client] for client in chosen]
        jobs = [
            self.pool.submit(train_client, model, mine, self.lr, slot_seed(self.seed, number, slot))
            for slot, mine in enumerate(rows)
        ]
        updates = [job.result() for job in jobs]
        begin = time.process_time()
        total = sum(len(mine) for mine in rows)
        sums = {key: np.zeros(each.shape, np.float64) for key, each in model.items()}
        for mine, (_seconds, update) in zip(rows, updates, strict=True):
            for key, each in update.items():
                sums[key] += len(mine) / total * each.astype(np.float64)
        mean = {key: each.astype(np.float32) for key, each in sums.items()}
        self.rounds.append(time.process_time() - begin + sum(seconds for seconds, _update in updates))
        begin = time.process_time()
        measure(mean, self.data.test["x"], self.data.test["y"])
        self.evaluations.append(time.process_time() - begin)
        made = ended.model(version)
        self.distances.append(distance(mean, made) / distance(made, model))


def distance(one: Mapping[str, Floats], other: Mapping[str, Floats]) -> float:
    """Between two models, by the Euclidean norm of all their numbers."""
    return float(sum(np.square(one[key] - other[key], dtype=np.float64).sum() for key in one) ** 0.5)


def used() -> tuple[float, float]:
    """Processor seconds of this process and of those that it started and that have ended, and the time."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system, time.perf_counter()


# The experiment ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Of one run.

    Attributes:
        accuracies: by round.
        round: the first one with the target, if there was one.
        seconds: wall-clock, of the simulator alone.
        processor: of the simulator's processes.
        numpy: processor seconds of NumPy for the same.
        differs: the median of the distances of models.
    """

    accuracies: Mapping[int, float]
    round: int | None
    seconds: float
    processor: float
    numpy: float
    differs: float


def run(pool: ProcessPoolExecutor, data: Dataset, split: Split, seed: int) -> Found:
    """Rounds until the target, or as many as the paper needs."""
    partition = {**split.partition, "seed": seed}
    experiment = Experiment(
        program="mlp",
        rounds=split.rounds,
        model=first_model(seed),
        hyperparams={"epochs": 1, "lr": split.lr, "batch_size": BATCH},
        selection={"count": CHOSEN, "seed": seed},
        evaluate={"every": 1, "on": "central", "dataset": "test"},
        stop={"metric": "accuracy", "target": TARGET},
    )
    parts = decode_partition(partition).divide(data.columns, CLIENTS)
    beside = Beside(pool, data, parts, split.lr, seed)
    ended = simulate(
        experiment, clients=CLIENTS, data=data, partition=partition, program=PROGRAM, observe=beside.observe
    )
    after = used()
    if ended.state == "failed" or beside.began is None:
        raise SystemExit(f"{ended}: {ended.reason}")
    reached = [number for number, accuracy in beside.accuracies.items() if accuracy >= TARGET]
    numpy = ended.status()["done"] * statistics.mean(beside.rounds)
    numpy += len(beside.accuracies) * statistics.mean(beside.evaluations)
    return Found(
        beside.accuracies,
        min(reached, default=None),
        after[1] - beside.began[1] - beside.spent[1],
        after[0] - beside.began[0] - beside.spent[0],
        numpy,
        statistics.median(beside.distances),
    )


def picture(found: Mapping[str, Sequence[Found]], file: Path) -> None:
    """Accuracy by round, a line a seed, beside the paper's target and round."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "propeller"  # the same picture has the same bytes
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(4.5 * len(found), 3), squeeze=False)
    for axis, (name, runs) in zip(axes[0], found.items(), strict=True):
        for seed, each in enumerate(runs):
            axis.plot(list(each.accuracies), list(each.accuracies.values()), lw=1, label=f"seed {seed}")
        axis.axhline(TARGET, color="gray", ls=":", lw=1)
        axis.axvline(SPLITS[name].rounds, color="gray", ls="--", lw=1, label="McMahan 2017")
        axis.set(title=name, xlabel="round", ylim=(0.8, 1.0))
        axis.legend(fontsize=7, loc="lower right")
    axes[0][0].set_ylabel("test accuracy")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def shown(name: str, seed: int, each: Found) -> list[str]:
    """Print a run; what it missed."""
    split = SPLITS[name]
    print(
        f"{name:<8}{split.lr:>5}{seed:>6}{each.round or '-':>8}{split.rounds:>7}{each.seconds:>9.1f}{each.processor:>11.1f}"
        f"{each.numpy:>8.1f}{each.processor / each.numpy:>7.2f}{each.differs:>10.1e}",
        flush=True,
    )
    missed = []
    if each.round is None:
        most = max(each.accuracies.values())
        missed.append(f"{name}, seed {seed}: {most:.2%} is the most in {split.rounds} rounds")
    if each.differs > AGREE:
        missed.append(
            f"{name}, seed {seed}: models are {each.differs:.1e} of a round's change away from NumPy's"
        )
    return missed


def main() -> int:
    """Measure and print; 1 if a bound was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the files of MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=list(SPLITS))
    parser.add_argument("--plot", type=Path, help="an .svg file to write")
    given = parser.parse_args()
    folder = given.data or ROOT.parent / "shared" / "data" / "mnist"
    if given.data is None and not folder.is_dir():
        print("the files of MNIST are not here: give their folder with --data DIR; nothing was measured")
        return 0
    data = read_dataset(folder)
    print(f"{'split':<8}{'lr':>5}{'seed':>6}{'rounds':>8}{'paper':>7}{'seconds':>9}{'processor':>11}{'NumPy':>8}{'ratio':>7}{'differs':>10}")  # fmt: skip
    found: dict[str, list[Found]] = {}
    missed = []
    _shared.update(data.columns)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        pool.submit(used).result()  # forks all of them, while there are no threads
        for name in given.splits:
            found[name] = []
            for seed in range(given.seeds):
                found[name].append(run(pool, data, SPLITS[name], seed))
                missed += shown(name, seed, found[name][-1])
            mean = statistics.mean(each.processor / each.numpy for each in found[name])
            if mean > MOST:
                missed.append(f"{name}: {mean:.2f} times NumPy's time, at most {MOST} are allowed")
    if given.plot:
        picture(found, given.plot)
    for line in missed:
        print(f"MISSED {line}")
    return bool(missed)


if __name__ == "__main__":
    raise SystemExit(main())
