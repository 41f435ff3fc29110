"""What a simulated client costs: 1,000 virtual clients, 10 rounds of logistic regression on 64 samples each, the programs in C and in Python.

    python benchmarks/simulation.py [--clients 1000] [--rounds 10] [--large 0] [--flower PYTHON]

Every client trains in every round. Python is measured with the steps alone, as Flower's client has them, and with the program of the examples,
which also measures before and after and logs what it does, as the one in C. Prints for each program the processor time of a client (of all processes, from the first round on), how many
clients a second that is on this machine's cores, and the largest memory of a worker. ``--large 100000`` adds a round of so many clients of the
program in C, with the memory of all processes together. ``--flower`` names a Python in whose environment ``flwr[simulation]`` is installed: the
same work is then done by Flower's simulation, beside it. Exits 1 if a bound is missed.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from propeller.coordinator.rounds import RoundRecord
from propeller.data import program_path
from propeller.sdk import Experiment
from propeller.simulation import simulate
from propeller.simulation.experiment import SimulatedExperiment

ROOT = Path(__file__).parents[1]
SAMPLES, FEATURES = 64, 8
CLIENT_MS = {"C": 1.0, "Python": 2.0}
"""The most that a client may take of one core; of the others, nothing was asked."""
FASTER = 20.0
"""Than Flower's simulation, in clients a second."""
LARGE_BYTES = 4 * 2**30
_LOOK_S = 0.2


@dataclass
class Watch:
    """What the processes of a simulation take, looked at while it runs.

    Attributes:
        peak: the most that all of them have of their own at one time, in bytes.
        worker: the most that one worker has.
    """

    peak: int = 0
    worker: int = 0
    _begun: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        """Look from the first round on, in which the program is compiled, until it is over."""
        self._begun.wait()
        me = psutil.Process()
        while not self._ended.wait(_LOOK_S):
            sizes = [_own_bytes(each) for each in (me, *me.children(recursive=True))]
            self.peak, self.worker = max(self.peak, sum(sizes)), max([self.worker, *sizes[1:]])

    def begin(self) -> None:
        """The first round has ended."""
        self._begun.set()

    def end(self) -> None:
        """It is over."""
        self._ended.set()
        self._begun.set()


def _own_bytes(process: psutil.Process) -> int:
    """What a process has in memory that is in no file; not its whole map, which takes as long to read as many clients to run."""
    try:
        text = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:  # it has ended
        return 0
    found = re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * sum(map(int, found))


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch the processes for the length of the block."""
    watch = Watch()
    thread = threading.Thread(target=watch.look)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join()


def data(clients: int) -> dict[str, Any]:
    """Samples of all clients."""
    source = np.random.default_rng(0)
    x = source.normal(size=(clients * SAMPLES, FEATURES)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] + 0.3 * source.normal(size=len(x)) > 0).astype(np.int64)}


def processor_s() -> float:
    """Of this process and those below it, in seconds."""
    me = psutil.Process()
    total = 0.0
    for each in (me, *me.children(recursive=True)):
        try:
            total += sum(each.cpu_times()[:4])
        except psutil.Error:
            continue
    return total


def measure(program: Path, clients: int, rounds: int) -> tuple[float, float, Watch]:
    """Processor milliseconds of a client, clients a second, and the memory; the first round, in which workers start, is left out."""
    marks: list[tuple[float, float, int]] = []

    def observe(running: SimulatedExperiment, record: RoundRecord) -> None:
        if record.state.is_over:
            watch.begin()
            marks.append((time.perf_counter(), processor_s(), running.done))

    made = Experiment(
        program="logreg",
        rounds=rounds + 1,
        model={"w": np.zeros(FEATURES), "b": np.zeros(())},
        hyperparams={"epochs": 1, "lr": 0.1, "batch_size": 16},
        timeout_s=3600,
    )
    with watched() as watch:
        ended = simulate(made, clients=clients, data=data(clients), program=program, observe=observe)
    if ended.state != "completed":
        raise RuntimeError(f"the experiment is {ended.state}: {ended.reason}")
    (began, began_s, before), (over, over_s, after) = marks[0], marks[-1]
    return 1000 * (over_s - began_s) / (after - before), (after - before) / (over - began), watch


def flower(python: str, clients: int, rounds: int) -> float:
    """Clients a second of Flower's simulation."""
    script = Path(__file__).parent / "programs" / "flower_simulation.py"
    ended = subprocess.run(
        [python, str(script), str(clients), str(rounds), str(SAMPLES), str(FEATURES)],
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        raise RuntimeError(f"Flower's simulation failed: {ended.stderr[-2000:]}")
    return float(json.loads(ended.stdout.splitlines()[-1])["clients_per_s"])


def main() -> int:
    parser = argparse.ArgumentParser(description="What a simulated client costs.")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--large", type=int, default=0, help="clients of one large round; 0: none")
    parser.add_argument("--flower", metavar="PYTHON", help="of an environment with flwr[simulation]")
    options = parser.parse_args()
    met = True
    peer = None
    if options.flower:
        peer = flower(options.flower, options.clients, min(options.rounds, 3))
        print(f"Flower: {peer:.0f} clients a second")
    with tempfile.TemporaryDirectory() as folder:
        from propeller.wasm.build import build

        programs = {
            "C": program_path("logreg"),
            "Python": build(
                ROOT / "benchmarks" / "programs" / "logreg_steps.py", Path(folder) / "steps.wasm"
            ).path,
            "Python, example": build(
                ROOT / "programs" / "python" / "logreg.py", Path(folder) / "logreg.wasm"
            ).path,
        }
        for name, program in programs.items():
            each_ms, a_second, watch = measure(program, options.clients, options.rounds)
            beside = "" if peer is None else f", {a_second / peer:.1f} times Flower's"
            bound = f" (bound {CLIENT_MS[name]:g})" if name in CLIENT_MS else ""
            print(
                f"{name:15} {each_ms:6.2f} ms of one core a client{bound}, {a_second:6.0f} clients a second{beside}; "
                f"a worker has at most {watch.worker / 2**20:.0f} MiB, all processes {watch.peak / 2**20:.0f} MiB"
            )
            if name in CLIENT_MS:
                met = met and each_ms <= CLIENT_MS[name] and (peer is None or a_second >= FASTER * peer)
    if options.large:
        each_ms, a_second, watch = measure(programs["C"], options.large, 1)
        print(
            f"{options.large} clients in a round: {each_ms:.2f} ms a client, {a_second:.0f} a second, all processes "
            f"{watch.peak / 2**20:.0f} MiB (bound {LARGE_BYTES / 2**20:.0f})"
        )
        met = met and watch.peak <= LARGE_BYTES
    print("bounds met" if met else "a bound was MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
