"""What it costs to run a task in the sandbox, over the time the program itself takes: the programs in C, Go and Python.

    python benchmarks/sandbox.py [--tasks 200]

Prints for each program the time to verify and compile it (cold: once a device; for Python its runtime), and, cached, the milliseconds from asking for a task
until its outcome is there, less the time the program ran, on the guide's 64 samples: of the first task, of tasks with a pause between them
as in rounds, whose process was forked ahead, and of tasks that come at once after each other. Each task has a process of its own, forked
from the template, whose memory is printed. Last, what two tasks at once gain over one after another.
"""

import argparse
import asyncio
import json
import os
import runpy
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import wasmtime

from propeller.data import program_path
from propeller.digests import digest_of
from propeller.wasm.build import build as build_python
from propeller.wasm.runtimes import runtimes_folder
from propeller.wasm.sandbox import ProgramRun, Sandbox

ROOT = Path(__file__).parents[1]
GOALS_MS, GAIN = {"empty": 6, "C": 6, "Go": 8, "Python": 8}, 1.8
AT_ONCE_MS = 14
"""For tasks that come at once after each other, of any program."""
PAUSE_S = 0.03
"""Between tasks as in rounds: time enough to fork a process ahead."""
EMPTY = '(module (func (export "_start")))'
BUSY = """(module (func (export "_start") (local $i i64)
  (loop $l (br_if $l (i64.lt_u (local.tee $i (i64.add (local.get $i) (i64.const 1))) (i64.const 600000000))))))"""


async def main(tasks: int) -> bool:
    """Measure and print; whether the goal is met."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        async with Sandbox(Path(folder), runtimes=runtimes_folder()) as sandbox:
            print(f"template started in {(time.perf_counter() - begin) * 1000:.0f} ms")
            print(f"confined by {', '.join(await sandbox.protections())}")
            met = True
            for name, wasm in _programs(Path(folder)):
                begin = time.perf_counter()
                digest = await _add(sandbox, wasm)
                compiled = (time.perf_counter() - begin) * 1000
                (first,) = await _overhead(sandbox, digest, 1)
                next_one = await _overhead(sandbox, digest, tasks, pause_s=PAUSE_S)
                at_once = await _overhead(sandbox, digest, tasks)
                print(
                    f"{name:7} {len(wasm) / 1000:8.1f} kB  compiled in {compiled:5.0f} ms  over the program's own time: "
                    f"first {first:5.1f} ms, next {_spread(next_one)}, at once {_spread(at_once)}"
                )
                met = met and statistics.median(next_one) <= GOALS_MS[name]
                met = met and statistics.median(at_once) <= AT_ONCE_MS
            status = Path(f"/proc/{sandbox.template_pid}/smaps_rollup").read_text()
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines()[1:]}
            private = sizes["Private_Clean"] + sizes["Private_Dirty"]
            print(f"template: {sizes['Rss'] / 1000:.1f} MB resident, {private / 1000:.1f} MB of it its own")
            gain = await _parallel(sandbox)
    met = met and gain >= GAIN
    goals = ", ".join(f"{name} {goal} ms" for name, goal in GOALS_MS.items())
    print(
        f"goals for the next task: {goals}; {AT_ONCE_MS} ms at once; {GAIN} times for two at once: {'met' if met else 'MISSED'}"
    )
    return met


def _programs(folder: Path) -> Iterator[tuple[str, bytes]]:
    yield "empty", bytes(wasmtime.wat2wasm(EMPTY))
    yield "C", program_path("logreg").read_bytes()
    build_go = runpy.run_path(str(ROOT / "programs" / "build.py"))["build_logreg_go"]
    yield "Go", build_go(folder).read_bytes()
    yield (
        "Python",
        build_python(
            ROOT / "src/propeller/cli/template/linear/train.py", folder / "train.wasm"
        ).path.read_bytes(),
    )


async def _overhead(sandbox: Sandbox, digest: str, tasks: int, *, pause_s: float = 0.0) -> list[float]:
    data = [{"x": [n / 64, 1 - n / 64, 0.5], "y": n % 2} for n in range(64)]
    files = {
        "model.json": b'{"w":[0,0,0],"b":0}',
        "dataset.json": json.dumps({"data": data}).encode(),
        "hyperparams.json": b"{}",
    }
    env = {"ROUND_ID": "r", "PROPLET_ID": "p", "MODEL_URI": "fl/models/global_model_v0"}
    found = []
    for _ in range(tasks):
        await asyncio.sleep(pause_s)
        begin = time.perf_counter()
        outcome = await sandbox.run(ProgramRun("task", digest, env=env, files=files))
        took = (time.perf_counter() - begin) * 1000
        if outcome.error is not None:
            raise SystemExit(outcome.error)
        found.append(took - outcome.metrics["run_ms"])
    return found


async def _parallel(sandbox: Sandbox) -> float:
    digest = await _add(sandbox, bytes(wasmtime.wat2wasm(BUSY)))
    begin = time.perf_counter()
    for number in range(2):
        await sandbox.run(ProgramRun(str(number), digest))
    apart = time.perf_counter() - begin
    begin = time.perf_counter()
    await asyncio.gather(*(sandbox.run(ProgramRun(str(number), digest)) for number in range(2)))
    together = time.perf_counter() - begin
    print(f"two busy tasks at once: {apart / together:.2f} times one after another ({os.cpu_count()} cores)")
    return apart / together


async def _add(sandbox: Sandbox, wasm: bytes) -> str:
    digest = digest_of(wasm)
    await sandbox.add(digest, wasm)
    return digest


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):4.1f} ms (95 % {sorted(values)[int(0.95 * (len(values) - 1))]:4.1f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    raise SystemExit(0 if asyncio.run(main(parser.parse_args().tasks)) else 1)
