"""A program whose compilation takes longer than a round: the round says so, and a later one finds it compiled."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from propeller.sdk import Experiment, ExperimentHandle, Propeller
from support.python_programs import TEMPLATE, built
from support.stack import running_stack

pytestmark = pytest.mark.timeout(300)

DATA = [{"data": [{"x": [0.5, 1.0], "y": 1}, {"x": [-0.5, 1.0], "y": 0}]}] * 3


def told(handle: ExperimentHandle) -> dict[str, list[dict[str, Any]]]:
    """What happened, by its kind."""
    found = defaultdict(list)
    for event in handle.events():
        found[event.kind].append(dict(event.data))
    return found


def test_the_first_round_says_why_and_a_later_one_succeeds_without_a_second_compilation(
    tmp_path: Path,
) -> None:
    program = built(TEMPLATE)
    # Nobody has compiled the Python runtime for counting instructions, and the folder for what is compiled is empty.
    with (
        running_stack(tmp_path / "state", env={"PROPLET_CACHE": str(tmp_path / "compiled")}) as up,
        Propeller.from_state(up.folder) as fl,
    ):
        made = Experiment(
            program=fl.push_program(program, "slow").reference,
            rounds=1,
            retries=100,
            timeout_s=2.5,
            limits={"fuel": 10**12},
            model={"w": [0.0, 0.0], "b": 0.0},
            data=DATA,
        )
        handle = fl.run(made)
        happened = told(handle)
        assert handle.status()["state"] == "completed"
    first, last = happened["round_ended"][0], happened["round_ended"][-1]
    assert (first["state"], first["reason"]) == (
        "failed",
        "deadline: 0 of 3 updates came in time, at least 1 needed: 3 of 3 were still compiling the program",
    )
    assert (last["state"], last["updates"]) == ("completed", 3)
    assert "devices to which the program is new are compiling it" in {
        one.get("reason") for one in happened["waiting"]
    }
    late = {(one["name"], one["reason"]) for one in happened["failure"] if one["attempt"] == 1}
    assert late == {
        (f"proplet-{number}", "no update by the deadline: it was still compiling the program")
        for number in (1, 2, 3)
    }
    lines = Counter[str]()
    for log in (tmp_path / "state" / "logs").glob("proplet-*.log"):
        lines.update(json.loads(line).get("msg", "") for line in log.read_text().splitlines() if line)
    assert lines["compiled the program"] == 1
