"""How long a round takes: ``POST /fl/experiments`` until the new model can be read, with three proplets.

    python benchmarks/round_latency.py [--rounds 50] [--limit-ms 100]

Starts a stack on free ports, runs one round to warm it up, then times rounds of the guide's program on the guide's data, one
after the other. Prints the median and the share of each stage; exits 1 if the median is over the limit. For what a round costs
elsewhere: Flower 1.42 takes 6.2 s with three SuperNodes that do no training (2 cores, loopback).
"""

import argparse
import statistics
import sys
import tempfile
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.stack import Up, running_stack

STAGES = ("configure", "launch and train", "merge and store", "read the model")


def one_round(http: httpx.Client, up: Up, base: int) -> tuple[dict[str, float], int]:
    """Milliseconds of each stage of one round, and the version that it made."""
    round_id = f"r-{uuid.uuid4().hex[:12]}"
    body = {
        "experiment_id": "bench",
        "round_id": round_id,
        "model_ref": f"fl/models/global_model_v{base}",
        "participants": up.ids(),
        "hyperparams": {"epochs": 1, "lr": 0.01, "batch_size": 16},
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


def main() -> int:
    parser = argparse.ArgumentParser(description="Latency of a round.")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--limit-ms", type=float, default=100.0)
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
    totals = sorted(sum(stages.values()) for stages in rounds)
    median = statistics.median(totals)
    print(
        f"{len(rounds)} rounds, 3 proplets: median {median:.1f} ms, p95 {totals[int(0.95 * len(totals))]:.1f} ms, worst {totals[-1]:.1f} ms"
    )
    for name in STAGES:
        share = statistics.median(stages[name] for stages in rounds)
        print(f"  {name:<18} {share:6.1f} ms  {100 * share / median:3.0f} %")
    print(f"limit {options.limit_ms:.0f} ms: {'reached' if median <= options.limit_ms else 'MISSED'}")
    return 0 if median <= options.limit_ms else 1


def _seconds(detail: dict[str, Any], name: str) -> float:
    return datetime.fromisoformat(detail[name]).timestamp()


if __name__ == "__main__":
    sys.exit(main())
