"""How long a round takes with three proplets, alone and as the next one of an experiment, and what its parts cost bare.

    python benchmarks/round_latency.py [--rounds 50] [--limit-ms 100] [--next-limit-ms 50]

Starts a stack on free ports, runs one round to warm it up, then times rounds of the guide's program on the guide's data:

- alone: ``POST /fl/experiments`` until the new model can be read, one after the other;
- the next round of an experiment: from one round's end to the end of the next, in the coordinator's own times.

Then it measures in the same minute what a round cannot do without: QoS 1 messages, HTTP calls, writes that reach the disk, and the
program's own runs (``tests/support/floor.py``), and prints by stage what a round takes above these, and by process what it takes of
the processors: beside others on the machine that is the steadier figure. Exits 1 if a median is over its limit. For what a
round costs elsewhere: Flower 1.42 takes 6.2 s with three SuperNodes that do no training (2 cores, loopback).
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.floor import Floor, measure_floor
from support.stack import Up, running_stack

HYPERPARAMS = {"epochs": 1, "lr": 0.01, "batch_size": 16}
STAGES = ("configure", "launch and train", "merge and store", "read the model")


@dataclass(frozen=True)
class Stage:
    """A stage of an experiment's round, and how many of each part one after the other it cannot do without."""

    name: str
    messages: int = 0
    calls: int = 0
    commits: int = 0
    files: int = 0
    programs: int = 0

    def floor_ms(self, floor: Floor) -> float:
        """What these take bare."""
        return (
            self.messages * floor.message
            + self.calls * floor.call
            + self.commits * floor.commit
            + self.files * floor.file
            + self.programs * floor.programs
        )


NEXT_STAGES = (
    # The last round's end and this one's beginning are one transaction; then the start, and who takes part.
    Stage("choose participants", messages=1, calls=1, commits=2),
    # The manager's tasks, their start, model and data, the program, and the update.
    Stage("launch and train", messages=1, calls=2, commits=2, programs=1),
    # The aggregate is made, and stored as a file.
    Stage("merge and store", calls=2, files=1),
)


def one_round(http: httpx.Client, up: Up, base: int) -> tuple[dict[str, float], int]:
    """Milliseconds of each stage of one round, and the version that it made."""
    round_id = f"r-{uuid.uuid4().hex[:12]}"
    body = {
        "experiment_id": "bench",
        "round_id": round_id,
        "model_ref": f"fl/models/global_model_v{base}",
        "participants": up.ids(),
        "hyperparams": HYPERPARAMS,
        "k_of_n": 3,
        "timeout_s": 60,
        "task_wasm_image": up.stack["images"]["fl-client-wasm"],
    }
    posted = time.time()
    http.post(f"{up.url('manager')}/fl/experiments", json=body).raise_for_status()
    status = http.get(f"{up.url('coordinator')}/rounds/{round_id}/complete", params={"wait_s": 30}).json()
    version = int(status["model_version"])
    http.get(f"{up.url('model_registry')}/models/{version}").raise_for_status()
    read = time.time()
    detail = http.get(f"{up.url('coordinator')}/rounds/{round_id}").json()
    moments = [posted, *(_seconds(detail, name) for name in ("created_at", "closed_at", "ended_at")), read]
    return {name: 1000 * (moments[n + 1] - moments[n]) for n, name in enumerate(STAGES)}, version


def processor_ms(up: Up) -> dict[str, float]:
    """Milliseconds of the processors by process, since each began: those of proplets together, their sandboxes apart."""
    used: dict[str, float] = {}
    for name, pid in up.stack["processes"].items():
        service = "proplets" if name.startswith("proplet") else name
        top = psutil.Process(pid)
        below = [] if service == "up" else top.children(recursive=True)
        for process in (top, *below):
            group = "sandboxes" if service == "proplets" and process is not top else service
            used[group] = used.get(group, 0.0) + 1000 * sum(
                process.cpu_times()[:4]
            )  # with children that ended
    return used


def experiment_rounds(
    http: httpx.Client, up: Up, base: int, rounds: int
) -> tuple[list[list[float]], dict[str, float]]:
    """Of each round but the first of an experiment whose events are followed, milliseconds by stage; and of the processors a round."""
    before_all = processor_ms(up)
    body = {
        "program": up.stack["images"]["fl-client-wasm"],
        "rounds": rounds + 1,
        "model": {"version": base},
        "hyperparams": HYPERPARAMS,
    }
    answer = http.post(f"{up.url('coordinator')}/experiments", json=body).raise_for_status()
    place = f"{up.url('coordinator')}/experiments/{answer.json()['id']}"
    with http.stream("GET", f"{place}/events") as events:  # ends with the experiment
        for _line in events.iter_lines():
            pass
    used = {
        name: (after - before_all.get(name, 0.0)) / (rounds + 1) for name, after in processor_ms(up).items()
    }
    state = http.get(place).json()
    if state["state"] != "completed":
        raise RuntimeError(f"the experiment is {state['state']}: {state['reason']}")
    found = http.get(f"{place}/history").json()["rounds"]
    stages = []
    for before, this in itertools.pairwise(found):
        last_update = max(_seconds(update, "received_at") for update in this["updates"])
        moments = [
            _seconds(before, "ended_at"),
            _seconds(this, "started_at"),
            last_update,
            _seconds(this, "ended_at"),
        ]
        stages.append([1000 * (later - earlier) for earlier, later in itertools.pairwise(moments)])
    return stages, used


def floor(http: httpx.Client, up: Up, folder: Path) -> Floor:
    """The bare costs, while the stack is there and has nothing to do."""
    proplet_id = up.ids()[0]
    files = {
        "model.json": http.get(f"{up.url('model_registry')}/models/0").content,
        "dataset.json": http.get(f"{up.url('data_store')}/datasets/{proplet_id}").content,
    }
    env = {
        "ROUND_ID": "floor",
        "PROPLET_ID": proplet_id,
        "MODEL_URI": "fl/models/global_model_v0",
        "HYPERPARAMS": '{"epochs": 1, "lr": 0.01, "batch_size": 16}',
        "MODEL_DATA": files["model.json"].decode(),
        "DATASET_DATA": files["dataset.json"].decode(),
    }
    folder.mkdir()
    return asyncio.run(measure_floor(folder, f"{up.url('coordinator')}/health", files, env))


def main() -> int:
    parser = argparse.ArgumentParser(description="Latency of a round.")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--limit-ms", type=float, default=100.0)
    parser.add_argument("--next-limit-ms", type=float, default=50.0)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running_stack(Path(folder) / "state") as up,
        httpx.Client(timeout=60) as http,
    ):
        _stages, base = one_round(http, up, 0)
        rounds = []
        for _ in range(options.rounds):
            stages, base = one_round(http, up, base)
            rounds.append(stages)
        following, used = experiment_rounds(http, up, base, options.rounds)
        bare = floor(http, up, Path(folder) / "floor")
    totals = sorted(sum(stages.values()) for stages in rounds)
    median = statistics.median(totals)
    print(f"{len(rounds)} rounds alone, 3 proplets: {_spread(totals)}")
    for name in STAGES:
        share = statistics.median(stages[name] for stages in rounds)
        print(f"  {name:<20} {share:6.1f} ms  {100 * share / median:3.0f} %")
    next_totals = sorted(sum(stages) for stages in following)
    next_median = statistics.median(next_totals)
    print(f"{len(following)} next rounds of an experiment: {_spread(next_totals)}")
    for number, stage in enumerate(NEXT_STAGES):
        took, least = statistics.median(stages[number] for stages in following), stage.floor_ms(bare)
        print(f"  {stage.name:<20} {took:6.1f} ms, {least:5.1f} ms of it floor, {took - least:5.1f} ms above")
    shares = ", ".join(
        f"{name} {ms:.1f}" for name, ms in sorted(used.items(), key=lambda item: -item[1]) if ms >= 0.5
    )
    print(f"  processors {sum(used.values()):.1f} ms a round: {shares}")
    lowest = sum(stage.floor_ms(bare) for stage in NEXT_STAGES)
    print(
        f"floor of a next round {lowest:.1f} ms: a QoS 1 message {bare.message:.2f}, an HTTP call {bare.call:.2f}, "
        f"a transaction {bare.commit:.2f}, a file {bare.file:.2f}, three programs at once {bare.programs:.2f} ms"
    )
    met = median <= options.limit_ms and next_median <= options.next_limit_ms
    print(
        f"limits {options.limit_ms:.0f} ms alone, {options.next_limit_ms:.0f} ms for the next round: "
        f"{'reached' if met else 'MISSED'}"
    )
    return 0 if met else 1


def _spread(totals: list[float]) -> str:
    return (
        f"median {statistics.median(totals):.1f} ms, p95 {totals[int(0.95 * len(totals))]:.1f} ms, "
        f"worst {totals[-1]:.1f} ms"
    )


def _seconds(detail: dict[str, Any], name: str) -> float:
    return datetime.fromisoformat(detail[name]).timestamp()


if __name__ == "__main__":
    sys.exit(main())
