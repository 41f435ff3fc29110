"""How a stack does with many: proplets to start, tasks to list, and open rounds to go on with after a kill.

    python benchmarks/many.py [--proplets 200] [--tasks 100000] [--rounds 5000]

Prints how long each takes, and exits 1 if one is over its limit: a page of tasks within 100 ms, and the coordinator back within 5 s.
"""

import argparse
import os
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.stack import Up, end, running_stack, start_up

LIST_MS, BACK_S = 100.0, 5.0


def time_start(folder: Path, proplets: int) -> float:
    """Seconds until a stack with so many proplets is ready."""
    began = time.perf_counter()
    up = start_up(folder, "--ports", "auto", "--proplets", str(proplets))
    try:
        up.wait_ready(60 + 2 * proplets)
        return time.perf_counter() - began
    finally:
        end(up)


def time_lists(up: Up, tasks: int) -> dict[str, float]:
    """Milliseconds of some pages of the tasks, medians of five."""
    manager = up.url("manager")
    made = httpx.post(f"{manager}/tasks", json={"name": "t", "image_url": "x", "env": {"A": "b"}}).json()[
        "id"
    ]
    with sqlite3.connect(up.folder / "manager" / "manager.db", timeout=30) as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(tasks)")]
        chosen = ",".join({"id": "'t-'||n", "seq": "1000+n"}.get(name, name) for name in columns)
        database.execute(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM numbers WHERE n<?) "
            f"INSERT INTO tasks ({','.join(columns)}) SELECT {chosen} FROM tasks, numbers WHERE tasks.id=?",
            [tasks, made],
        )
    found = {}
    with httpx.Client(timeout=60) as http:
        for page in ("", "?limit=1000", f"?offset={tasks - 100}"):
            times = []
            for _ in range(5):
                began = time.perf_counter()
                http.get(f"{manager}/tasks{page}").raise_for_status()
                times.append((time.perf_counter() - began) * 1e3)
            found[page or "the first"] = statistics.median(times)
    return found


def time_comebacks(up: Up, rounds: int) -> list[float]:
    """Seconds from a kill of the coordinator with so many open rounds until it answers for the newest, three times."""
    coordinator, port = up.url("coordinator"), int(up.url("coordinator").rpartition(":")[2])
    body = {
        "experiment_id": "many",
        "model_ref": "fl/models/global_model_v0",
        "participants": up.ids(),
        "task_wasm_image": up.stack["images"]["fl-client-wasm"],
        "hyperparams": {},
        "k_of_n": len(up.ids()),
        "timeout_s": 3600,
    }
    with httpx.Client(timeout=60) as http:
        for number in range(rounds):
            http.post(
                f"{coordinator}/experiments", json={**body, "round_id": f"r-{number}"}
            ).raise_for_status()
        times = []
        for _ in range(3):
            listening = [
                one.pid
                for one in psutil.net_connections()
                if one.laddr and one.laddr.port == port and one.status == "LISTEN" and one.pid
            ]
            os.kill(listening[0], signal.SIGKILL)
            began = time.perf_counter()
            while True:
                try:
                    if http.get(f"{coordinator}/rounds/r-{rounds - 1}").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.01)
            times.append(time.perf_counter() - began)
            time.sleep(6)  # a process that lived 5 s is started again at once
    return times


def main() -> int:
    """Measure; 1 if a figure is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--proplets", type=int, default=200)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with running_stack(Path(folder) / "state") as up:
            pages = time_lists(up, given.tasks)
            back = time_comebacks(up, given.rounds)
        started = time_start(Path(folder) / "many", given.proplets)
    print(f"{given.proplets} proplets are ready after {started:.1f} s")
    for page, took in pages.items():
        print(f"{given.tasks} tasks, page {page}: {took:.1f} ms (limit {LIST_MS:g})")
    print(
        f"{given.rounds} open rounds: the coordinator is back after {', '.join(f'{one:.2f}' for one in back)} s (limit {BACK_S:g})"
    )
    return int(max(pages.values()) > LIST_MS or max(back) > BACK_S)


if __name__ == "__main__":
    sys.exit(main())
