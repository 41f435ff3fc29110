"""A large model through a round with three proplets: the peak memory of every process, and whether the aggregate is right.

    python benchmarks/large_model.py [--mib 1024] [--folder DIR]

Starts a stack on free ports, stores a model of that many MiB, of which the largest tensor has a quarter, and runs an experiment of one
round: a program in C adds to each weight what its device is to add, reading and writing the model by blocks. Prints for each process
of the stack the memory that it had before and at most during the round (VmHWM, Linux), its growth, and the bound on it; then how long the
stages took. The aggregate is compared with what it must be, number by number. Exits 1 if a bound is exceeded:

- a service grows by at most three chunks and the largest tensor;
- a proplet, and a program in its sandbox, by at most twice the model; the broker by a chunk.

A chunk is a part of an aggregation (4 MiB). Services need a few of them whatever the model's size, so that the first bound is meant for
models of 256 MiB and more, of which a tensor is larger than these.
"""

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from propeller.fl.strategies import PART_BYTES
from support import large_models
from support.large_models import MIB
from support.stack import Up, propeller, running_stack

TIMEOUT_S = 1800
SAFETENSORS = "application/vnd.safetensors"
PROPLETS = 3
ROOM = 14
"""Of how many models the stack has files at most: versions, and for each proplet the model, the update, and what comes of it."""

SAMPLED_EVERY_S = 0.05


class Peaks:
    """The most memory that the processes of a stack have had since this was made, by process.

    Attributes:
        before: their memory then, in bytes.
        peaks: the most until the end of ``sampling``, in bytes.
        worked: seconds that those still there then had taken of the processors.
    """

    def __init__(self, up: Up) -> None:
        self._up = up
        self._names = {pid: name for name, pid in up.stack["processes"].items()}
        self.before = self._measure(_resident)
        self._worked = self._measure(_processor_seconds)
        for pid in self._pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM begins again
        self.peaks: dict[str, float] = {}
        self.worked: dict[str, float] = {}
        self._stop = threading.Event()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Look again and again for the length of the block, as the programs' processes come and go."""
        thread = threading.Thread(target=self._sample)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            now = self._measure(_processor_seconds)
            self.worked = {name: seconds - self._worked.get(name, 0.0) for name, seconds in now.items()}

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLED_EVERY_S):
            for name, peak in self._measure(_highest).items():
                self.peaks[name] = max(self.peaks.get(name, 0), peak)

    def _pids(self) -> dict[int, str]:
        """The processes of the stack, and what each is."""
        found = {}
        for pid, name in self._names.items():
            found[pid] = name
            if name == "broker":
                found |= dict.fromkeys(_children(pid), name)
            elif name.startswith("proplet"):
                for template in _children(pid):
                    found[template] = f"{name} template"
                    found |= dict.fromkeys(_children(template), f"{name} program")
        return found

    def _measure(self, of: Callable[[int], float | None]) -> dict[str, float]:
        measured: dict[str, float] = {}
        for pid, name in self._pids().items():
            size = of(pid)
            if size is not None:
                measured[name] = max(measured.get(name, 0), size)
        return measured


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []


def _processor_seconds(pid: int) -> float | None:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return None
    return times.user + times.system


def _resident(pid: int) -> int | None:
    return _status(pid, "VmRSS")


def _highest(pid: int) -> int | None:
    return _status(pid, "VmHWM")


def _status(pid: int, field: str) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def add_model(http: httpx.Client, up: Up, mebibytes: int) -> tuple[int, int]:
    """Store the model; its version, and its size in bytes."""
    model = large_models.specs(mebibytes)
    url = f"{up.url('model_registry')}/models"
    headers = {"content-type": SAFETENSORS}
    stored = http.post(url, content=large_models.pieces(model), headers=headers).raise_for_status().json()
    version = int(stored["version"])
    return version, int(http.get(f"{url}/{version}/info").json()["size"])


def run_experiment(http: httpx.Client, up: Up, program: str, version: int) -> dict[str, Any]:
    """The round of an experiment of one round, as its history has it."""
    body = {
        "program": program,
        "rounds": 1,
        "retries": 0,
        "model": {"version": version},
        "timeout_s": TIMEOUT_S,
    }
    answer = http.post(f"{up.url('coordinator')}/experiments", json=body).raise_for_status()
    place = f"{up.url('coordinator')}/experiments/{answer.json()['id']}"
    with http.stream("GET", f"{place}/events", timeout=TIMEOUT_S) as events:  # ends with the experiment
        for _line in events.iter_lines():
            pass
    state = http.get(place).json()
    history: dict[str, Any] = http.get(f"{place}/history").json()
    if state["state"] != "completed":
        raise RuntimeError(f"the experiment is {state['state']}: {state['reason']}\n{history['rounds']}")
    found: dict[str, Any] = history["rounds"][0]
    return found


def bound_of(name: str, mebibytes: int) -> int:
    """By how much a process may grow, in bytes."""
    if name.startswith("proplet"):
        return 2 * mebibytes * MIB
    chunk = PART_BYTES
    return chunk if name == "broker" else 3 * chunk + large_models.largest_tensor(mebibytes)


def report(peaks: Peaks, mebibytes: int) -> bool:
    """Print the table; whether every bound holds."""
    print(f"{'process':<20} {'before':>9} {'at most':>9} {'growth':>9} {'bound':>9} MiB {'processor':>11} s")
    held = True
    for name in sorted(peaks.peaks):
        # A program begins as a copy of its template.
        before = peaks.before.get(name.replace(" program", " template"), 0)
        growth, bound = peaks.peaks[name] - before, bound_of(name, mebibytes)
        held = held and growth <= bound
        figures = " ".join(f"{size / MIB:>9.1f}" for size in (before, peaks.peaks[name], growth, bound))
        seconds = f"{peaks.worked[name]:>15.1f}" if name in peaks.worked else ""
        print(f"{name:<20} {figures}{seconds}{'' if growth <= bound else '  EXCEEDED'}")
    return held


def main() -> int:
    """Print the figures; 1 if a bound is exceeded."""
    parser = argparse.ArgumentParser(description="Memory of a round with a large model.")
    parser.add_argument("--mib", type=int, default=1024, help="size of the model, a multiple of 32")
    parser.add_argument("--folder", type=Path, help="where the stack keeps its files")
    options = parser.parse_args()
    place = options.folder or Path(tempfile.gettempdir())
    if shutil.disk_usage(place).free < ROOM * options.mib * MIB:
        print(
            f"{place} has not the room of {ROOM} models of {options.mib} MiB: --folder DIR, or a smaller --mib"
        )
        return 1
    room = {"PROPLET_TASK_OUT_BYTES": str(2 * options.mib * MIB), "PROPLET_MAX_TASKS": "2"}
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        running_stack(Path(folder) / "state", env=room) as up,
        httpx.Client(timeout=TIMEOUT_S) as http,
    ):
        reference = f"{up.url('oci_registry').removeprefix('http://')}/blocks:latest"
        pushed = propeller("push", str(large_models.program()), reference)
        if pushed.returncode:
            raise RuntimeError(pushed.stderr)
        for slot, proplet_id in enumerate(up.ids()):
            dataset = {"data": [{"x": [slot], "y": 0}]}
            http.post(f"{up.url('data_store')}/datasets/{proplet_id}", json=dataset).raise_for_status()
        started = time.monotonic()
        version, size = add_model(http, up, options.mib)
        print(f"a model of {size / MIB:.0f} MiB stored in {time.monotonic() - started:.1f} s")
        peaks = Peaks(up)
        with peaks.sampling():
            found = run_experiment(http, up, reference, version)
        exported = Path(folder) / "new.safetensors"
        with (
            http.stream(
                "GET",
                f"{up.url('model_registry')}/models/{found['model_version']}",
                headers={"accept": SAFETENSORS},
            ) as answer,
            exported.open("wb") as file,
        ):
            for piece in answer.iter_bytes(MIB):
                file.write(piece)
        mean = large_models.STEP * sum(range(PROPLETS)) / PROPLETS
        large_models.check(exported, large_models.specs(options.mib), mean)
    moments = [_seconds(found["started_at"])]
    moments += sorted(_seconds(update["received_at"]) for update in found["updates"])
    moments.append(_seconds(found["ended_at"]))
    took = [f"{after - moments[0]:.1f}" for after in moments[1:]]
    print(
        f"updates after {', '.join(took[:-1])} s, the round's end after {took[-1]} s; the aggregate is exact"
    )
    held = report(peaks, options.mib)
    print(f"bounds: {'held' if held else 'EXCEEDED'}")
    return 0 if held else 1


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


if __name__ == "__main__":
    sys.exit(main())
