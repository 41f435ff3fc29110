"""examples/experiments on a stack of ten devices: every strategy learns, and robust ones do so beside three devices that send noise."""

import json
import math
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.cli.experiment_file import ExperimentFile
from propeller.sdk import ExperimentFailedError, ExperimentHandle, Propeller
from propeller.simulation import simulate
from support.python_programs import built
from support.stack import Up, propeller, running_stack
from support.strategies import learning_strategies

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "experiments"
STRATEGY = re.compile(r"^(?:# )?(strategy = .+)$", re.MULTILINE)
"""A line of a file that names a strategy: the one that is used, and the others as comments."""

FILES = sorted(file.name for file in EXAMPLES.glob("*.toml"))
FLEET = "fleet.toml"
"""Has a test of its own."""

LINES = [
    (name, line)
    for name in FILES
    for line in STRATEGY.findall((EXAMPLES / name).read_text())
    if name != FLEET
]
TAGGED = ("--tag", f"calibrated={','.join(f'proplet-{number}' for number in range(1, 8))}")
THREE = 'selection.names=["proplet-1", "proplet-2", "proplet-3"]'
"""The files for three devices are run on the first three of ten."""

SLOW = {"fedadagrad", "fedadam", "fedyogi", "qfedavg"}
"""Strategies that need all rounds of a file to reach what is asked here."""

pytestmark = pytest.mark.timeout(240)


def name_in(line: str) -> str | None:
    """The strategy's name; ``None`` of one that is a program."""
    found = re.search(r'"(\w+)"', line)
    return None if found is None else found[1]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples with their data."""
    copy = tmp_path_factory.mktemp("copy") / "experiments"
    shutil.copytree(EXAMPLES, copy)
    subprocess.run([sys.executable, copy / "digits.py"], check=True, capture_output=True)
    return copy


def prepare(up: Up) -> None:
    """Do what README.md says before the first run."""
    registry = up.url("oci_registry").removeprefix("http://")
    for script, reference in (("softmax", "softmax:latest"), ("clipped_momentum", "clipped-momentum:v1")):
        program = built(ROOT / "programs" / "python" / f"{script}.py")
        pushed = propeller("push", str(program), f"{registry}/{reference}")
        assert pushed.returncode == 0, pushed.stderr


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("examples") / "state"
    with running_stack(folder, "--proplets", "10", *TAGGED) as running:
        prepare(running)
        yield running


def submit(
    fl: Propeller, up: Up, folder: Path, name: str, line: str | None = None, *changes: str
) -> ExperimentHandle:
    """Submit a file, with another one of its strategies where ``line`` is given."""
    registry = up.url("oci_registry").removeprefix("http://")
    text = (folder / name).read_text()
    if line is not None:
        assert len(re.findall(f"^(# )?{re.escape(line)}$", text, re.MULTILINE)) == 1
        text = STRATEGY.sub(lambda found: found[1] if found[1] == line else "", text)
    text = text.replace("127.0.0.1:5000", registry)
    file = folder / f"{up.process.pid}.toml"
    file.write_text(text)
    return fl.run(ExperimentFile.load(file, changes).to_experiment())


def accuracies(handle: ExperimentHandle) -> list[float]:
    """By its evaluations, once it is over."""
    result = handle.wait(timeout=200)
    assert (result.state, result.reason) == ("completed", None)
    found = [value for _, value in handle.history().metric("accuracy", "evaluate")]
    assert result.best is not None
    assert result.best["value"] == pytest.approx(max(found))
    return found


@pytest.mark.parametrize(("name", "line"), LINES, ids=lambda value: value)
def test_it_learns(up: Up, written: Path, name: str, line: str) -> None:
    with Propeller.from_state(up.folder) as fl:
        changes = [] if name == "robust.toml" else [THREE]
        text = (EXAMPLES / name).read_text()
        if (
            f"# {line}" in text
        ):  # with others than the one in use, half of the rounds, unless they need more, and one evaluation
            rounds = tomllib.loads(text)["rounds"]
            rounds = rounds if name_in(line) in SLOW else math.ceil(rounds / 2)
            changes += [f"rounds={rounds}", f"evaluate.every={rounds}"]
        handle = submit(fl, up, written, name, line, *changes)
        found = accuracies(handle)
        assert found[-1] > 0.8, found
        trained = [one for one in handle.history() if one["kind"] == "train"]
    assert all("loss" in one["metrics"] for one in trained), trained


def test_every_strategy_has_a_line() -> None:
    assert {name_in(line) for _, line in LINES} - {None} == set(learning_strategies())


def test_the_readme_names_every_file_and_every_strategy() -> None:
    text = (EXAMPLES / "README.md").read_text()
    assert sorted(set(re.findall(r"\[(\w+\.toml)\]", text))) == FILES
    assert " ".join(TAGGED) in text
    assert set(re.findall(r"strategies\.md#(\w+)\)", text)) == set(learning_strategies())


def test_a_round_asks_some_of_the_devices_with_a_tag(up: Up, written: Path) -> None:
    with Propeller.from_state(up.folder) as fl:
        handle = submit(fl, up, written, FLEET)
        assert accuracies(handle)[-1] > 0.8
        names = fl.device_names()
        asked = [[names[id_] for id_ in one["participants"]] for one in handle.history()]
        trained = [one for one in handle.history() if one["kind"] == "train"]
    assert {name for one in asked for name in one} == {f"proplet-{number}" for number in range(1, 8)}
    assert {len(one) for one in asked} == {4}
    assert [len(one["updates"]) for one in trained] == [3] * 8


def test_three_devices_that_send_noise_spoil_a_mean(up: Up, written: Path) -> None:
    with Propeller.from_state(up.folder) as fl:
        found = accuracies(submit(fl, up, written, "robust.toml", None, "strategy=fedavg"))
    assert max(found) < 0.5, found


def test_whoever_sends_noise_is_left_out_of_a_mean_by_its_norm_on_a_fleet_as_in_a_simulation(
    up: Up, written: Path
) -> None:
    bounded = ("strategy=fedavg", "update.max_norm=30", "update.max_share=0.13", "retries=0", "rounds=3")
    with Propeller.from_state(up.folder) as fl:
        handle = submit(fl, up, written, "robust.toml", None, *bounded)
        assert accuracies(handle)[-1] > 0.8
        rounds, model = list(handle.history()), handle.model()
    left_out = failures(rounds)
    assert list(left_out) == [1, 2, 3]
    for reasons in left_out.values():
        assert reasons.keys() == {"proplet-8", "proplet-9", "proplet-10"}
        assert all("of update.max_norm" in reason for reason in reasons.values())
    assert any("counted_samples" in update for one in rounds for update in one["updates"])
    made = ExperimentFile.load(written / "robust.toml", bounded).to_experiment()
    ended = simulate(made, program=built(ROOT / "programs" / "python" / "softmax.py"))
    same = ended.model()
    assert all(np.array_equal(same[name], array) for name, array in model.items())
    assert failures(list(ended.history())) == left_out


def failures(rounds: list[dict[str, Any]]) -> dict[int, dict[str, str]]:
    """Who failed in rounds of training, and why: by the names of a fleet, without what the device itself says before it."""
    found = {}
    for one in rounds:
        if one["kind"] == "train":
            reasons = {}
            for each in one["failures"]:
                name = each["name"].replace("client", "proplet")
                reason = each["reason"].replace(each["proplet_id"], name)
                reasons[name] = reason[reason.index("update: the norm") :]
            found[one["number"]] = reasons
    return found


def test_bulyan_holds_against_as_many_as_it_promises_and_refuses_more(up: Up, written: Path) -> None:
    """Of eight devices one may be bad, and seven would do; for three bad ones there would have to be fifteen."""
    eight = json.dumps([f"proplet-{number}" for number in range(1, 9)])
    files = [f'proplet-{number} = "robust/{number}.json"' for number in range(1, 9)]
    of_eight = (f"selection.names={eight}", f"data.files={{{', '.join(files)}, test = 'data/test.json'}}")
    bulyan = 'strategy={name = "bulyan", byzantine = %d}'
    with Propeller.from_state(up.folder) as fl:
        found = accuracies(submit(fl, up, written, "robust.toml", None, bulyan % 1, *of_eight))
        assert found[-1] > 0.8, found
        handle = submit(fl, up, written, "robust.toml", None, bulyan % 3, "timeout_s=1", "retries=0")
        with pytest.raises(ExperimentFailedError, match="15 devices needed, 10 there"):
            handle.wait(timeout=60)


def test_the_same_experiment_on_another_stack_gives_the_same_model(
    up: Up, written: Path, tmp_path: Path
) -> None:
    """Ids are others there, and so is the number of devices; names decide, and the seed."""

    def run(on: Up, *changes: str) -> tuple[list[set[str]], dict[str, Any]]:
        with Propeller.from_state(on.folder) as fl:
            chosen = ("selection.count=2", "selection.seed=3", "rounds=4", *changes)
            handle = submit(fl, on, written, "digits.toml", None, *chosen)
            accuracies(handle)
            names = fl.device_names()
            asked = [
                {names[update["proplet_id"]] for update in one["updates"]}
                for one in handle.history()
                if one["kind"] == "train"
            ]
            return asked, handle.model()

    with running_stack(tmp_path / "state") as other:
        prepare(other)
        participants, model = run(other)
        assert set(other.ids()).isdisjoint(up.ids())
    assert len({frozenset(one) for one in participants}) > 1
    again, same = run(up, THREE)
    assert again == participants
    assert all(np.array_equal(same[name], array) for name, array in model.items())
