"""Limits that a task asks for, from a client's JSON to the proplet's own."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from propeller.cli.experiment_file import ExperimentFile
from propeller.errors import StartError
from propeller.manager.task import TaskChange, TaskSpec
from propeller.protocol.rounds import Experiment, RoundStart
from propeller.protocol.task import LIMIT_NAMES, TaskStart
from propeller.protocol.wire import MalformedMessageError, decode_object
from propeller.wasm.program_run import Limits

ROUND = {"round_id": "r", "model_uri": "v0", "task_wasm_image": "i", "participants": ["a"]}


def test_every_limit_of_a_run_can_be_asked_for() -> None:
    assert set(LIMIT_NAMES) == {one.name for one in fields(Limits)} - {"compile_s", "compile_memory_bytes"}


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (
            {"wall_time": 1},
            "limits: 'wall_time' is no limit; did you mean 'wall_time_s'? There are wall_time_s, fuel",
        ),
        ({"compile_s": 1}, "limits: 'compile_s' is no limit"),
        ({"fuel": 0}, "limits: fuel must be above 0"),
        ({"memory_bytes": -1}, "limits: memory_bytes must be above 0"),
        ({"memory_bytes": 1.5}, "limits: memory_bytes must be a whole number"),
        ({"out_files": True}, "limits: out_files must be a whole number"),
        ({"wall_time_s": "60"}, "limits: wall_time_s must be a number of seconds"),
        ({"fuel": 10**400}, "limits: fuel must be above 0 and at most 9007199254740991"),
        ([60], "limits: must be an object"),
    ],
)
@pytest.mark.parametrize(
    ("message", "others"),
    [
        (TaskSpec, {"name": "n"}),
        (TaskStart, {"id": "t", "name": "n", "image_url": "i"}),
        (RoundStart, ROUND),
        (Experiment, {"round_id": "r", "participants": ["a"]}),
    ],
)
def test_what_is_wrong_is_named(message: Any, others: dict[str, Any], limits: Any, says: str) -> None:
    with pytest.raises(MalformedMessageError) as caught:
        message.decode({**others, "limits": limits})
    assert str(caught.value).startswith(says)


def test_a_start_without_limits_is_as_other_proplets_know_it() -> None:
    start = TaskStart(id="t", name="n", image_url="i")
    assert "limits" not in decode_object(start.encode())
    asked = start.model_copy(update={"limits": {"fuel": 5}})
    assert TaskStart.decode(asked.encode()).limits == {"fuel": 5}


def test_limits_of_a_task_can_be_taken_back() -> None:
    assert TaskChange.decode({"limits": {}}).model_dump(exclude_unset=True) == {"limits": None}


def test_only_lower_ones_are_taken() -> None:
    mine = Limits(wall_time_s=10.0, memory_bytes=1000)
    assert mine.lowered(None) is mine
    assert mine.lowered({"wall_time_s": 60, "memory_bytes": 1000}) == mine
    assert mine.lowered({"wall_time_s": 3, "memory_bytes": 2000, "fuel": 7}) == replace(
        mine, wall_time_s=3, fuel=7
    )


def test_an_experiment_file_has_them_too(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text('image = "i"\n[limits]\nwall_time_s = 1.5\nfuel = 7\n')
    assert ExperimentFile.load(file).limits == {"wall_time_s": 1.5, "fuel": 7}
    file.write_text('image = "i"\n[limits]\nwall_time = 1.5\n')
    with pytest.raises(StartError, match=r"experiment\.toml: limits: 'wall_time' is no limit"):
        ExperimentFile.load(file)
