"""What an edit of a training script costs: from a changed line to the first updates of three devices, and its share by stage.

    python benchmarks/edit.py [--edits 5]

A stack with three devices that have the runtime; each edit makes another script of the example, and `push_program` and `run` of the Python client do what
`propeller run` does. Beside it the same with ``--standalone`` programs, once: what each edit cost before programs shared a runtime. Exits 1 if
the median edit takes more than 2 s.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from propeller.sdk import Experiment, Propeller  # noqa: E402
from propeller.wasm.build import build  # noqa: E402
from support.stack import OWN_PROGRAMS, running_stack  # noqa: E402

BOUND_S = 2.0
DATA = [{"data": [{"x": [n / 64, 1 - n / 64], "y": n % 2} for n in range(64)]}] * 3
MODEL = {"w": [0.0, 0.0], "b": 0.0}


def main(edits: int) -> bool:
    """Measure and print; whether the bound is met."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "train.py"
        script.write_text((ROOT / "src/propeller/cli/template/linear/train.py").read_text())
        build(script, folder / "once.wasm")  # makes the runtime, unless that was done before
        with (
            running_stack(folder / "state", env=OWN_PROGRAMS) as up,
            Propeller.from_state(up.folder) as fl,
        ):
            first = _edit_and_run(fl, script, 0)
            print(f"the first run of a script, whose runtime was made before: {_told(first)}")
            found = [_edit_and_run(fl, script, number) for number in range(1, edits + 1)]
            medians = [statistics.median(values) for values in zip(*found, strict=True)]
            print(f"an edit, median of {edits}: {_told(medians)} (bound {BOUND_S:g} s)")
            began = time.perf_counter()
            _edit(script, edits + 1)
            program = build(script, folder / "standalone.wasm", standalone=True).path
            built = time.perf_counter() - began
            _build, pushed, updated = _run(fl, program)
            print(f"standalone, as before: {_told([built, pushed, updated])}")
    return bool(sum(medians) <= BOUND_S)


def _edit_and_run(fl: Propeller, script: Path, number: int) -> list[float]:
    _edit(script, number)
    return _run(fl, script)


def _edit(script: Path, number: int) -> None:
    """A change that no earlier run has made: what is built is kept by its content."""
    script.write_text(f"{script.read_text()}\nEDIT = {number}, {time.time_ns()}\n")


def _run(fl: Propeller, program: Path) -> list[float]:
    """Seconds to build, to push, and from then to the last update of the first round."""
    pushed = fl.push_program(program)
    began = time.perf_counter()
    handle = fl.run(
        Experiment(program=pushed.reference, rounds=1, model=MODEL, data=DATA, hyperparams={"lr": 0.1})
    )
    updates = 0
    for event in handle.events():
        updates += event.kind == "update"
        if updates == len(DATA):
            break
    took = time.perf_counter() - began
    result = handle.wait()
    if result.state != "completed":
        raise SystemExit(result.reason)
    return [pushed.build_s, pushed.push_s, took]


def _told(stages: list[float]) -> str:
    build_s, push_s, run_s = stages
    return f"{sum(stages):.2f} s: build {build_s:.2f}, push {push_s:.2f}, to the updates {run_s:.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=5)
    sys.exit(0 if main(parser.parse_args().edits) else 1)
