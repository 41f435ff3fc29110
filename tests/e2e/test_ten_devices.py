"""Ten devices: what they do before a program runs, and whose it is that fails."""

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from propeller.cli.app import app
from propeller.data import program_path
from propeller.errors import InvalidError
from propeller.sdk import Experiment, ExperimentHandle, Propeller
from support.python_programs import TEMPLATE, built
from support.slow_to_compile import padded
from support.stack import Up, propeller, running_stack

pytestmark = pytest.mark.timeout(300)

DEVICES = 10
ENDED = {"completed", "failed", "stopped"}
DATA = [{"data": [{"x": [0.5, 1.0], "y": 1}, {"x": [-0.5, 1.0], "y": 0}]}] * DEVICES

ALL_COMPILE = (
    "deadline: 0 of 10 updates came in time, at least 10 needed: 10 of 10 were still compiling the program"
)
RAISES = """
from propeller.program import Update, train


@train
def fit(model, data, hyperparams, ctx):
    if data.samples[0]["x"][0] > 6:
        raise ValueError("no more than six, please")
    return Update(model, num_samples=len(data), metrics={"loss": 0.5})
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A stack whose devices have compiled nothing yet."""
    folder = tmp_path_factory.mktemp("ten")
    compiled = {"PROPLET_CACHE": str(folder / "compiled")}
    with running_stack(folder / ".propeller", "--proplets", str(DEVICES), env=compiled) as running:
        yield running


def told(handle: ExperimentHandle) -> dict[str, list[dict[str, Any]]]:
    """What happened, by its kind."""
    found = defaultdict(list)
    for event in handle.events():
        found[event.kind].append(dict(event.data))
    return found


def test_the_first_round_says_why_and_a_later_one_succeeds_without_a_second_compilation(
    up: Up, tmp_path: Path
) -> None:
    slow = tmp_path / "slow.wasm"
    slow.write_bytes(padded(program_path("logreg").read_bytes()))
    with Propeller.from_state(up.folder) as fl:
        made = Experiment(
            program=fl.push_program(slow, "slow").reference,
            rounds=1,
            retries=100,
            timeout_s=2.5,
            min_updates=DEVICES,
            model={"w": [0.0, 0.0], "b": 0.0},
            data=DATA,
        )
        handle = fl.run(made)
        looks = [status(up)]
        while handle.status()["state"] not in ENDED:
            time.sleep(0.25)  # the processors are for the devices
            looks.append(status(up))
        happened = told(handle)
        assert handle.status()["state"] == "completed"
    compiling = re.compile(r"(?m)^slow.*: preparing: compiling: proplet-1, proplet-2, ")
    assert any(map(compiling.search, looks)), looks
    *failed, last = happened["round_ended"]
    # A busy machine may have a device that is fetching still when the first round ends.
    assert any(one["reason"] == ALL_COMPILE for one in failed), failed
    assert (last["state"], last["updates"]) == ("completed", DEVICES)
    assert "devices to which the program is new are compiling it" in {
        one.get("reason") for one in happened["waiting"]
    }
    late = {
        one["name"]
        for one in happened["failure"]
        if one["reason"] == "no update by the deadline: it was still compiling the program"
    }
    assert late == {f"proplet-{number + 1}" for number in range(DEVICES)}
    lines = Counter[str]()
    for log in (up.folder / "logs").glob("proplet-*.log"):
        lines.update(json.loads(line).get("msg", "") for line in log.read_text().splitlines() if line)
    assert lines["compiled the program"] == 1


def status(up: Up) -> str:
    """In this process: a round lasts 2.5 s, and a new one would start up for as long on a busy machine."""
    return CliRunner().invoke(app, ["status", "--state", str(up.folder)]).stdout


def test_a_participant_that_is_not_there_is_skipped_and_said_so(up: Up) -> None:
    with Propeller.from_state(up.folder) as fl:
        alive = [one["id"] for one in fl.proplets(alive=True)][:2]
        done = fl.run_round(fl.image(), participants=[*alive, "nobody"], k_of_n=2)
    assert len(done.updates) == 2
    assert done.failures == {}
    assert list(done.skipped) == ["nobody"]
    assert done.skipped["nobody"].startswith("proplet not found")
    assert repr(done).endswith("; skipped: nobody>")


def test_a_program_sent_ahead_is_compiled_before_its_first_round(up: Up, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TEMPLATE.read_text() + "\n# sent ahead\n")
    pushed = propeller(
        "push", str(built(script)), "ahead:latest", "--prefetch", "--state", str(up.folder), timeout=120
    )
    assert pushed.returncode == 0, pushed.stderr
    assert re.search(r"(?m)^Prefetched: 10 devices in \d+\.\d s$", pushed.stdout)
    doing: list[dict[str, str]] = []
    with Propeller.from_state(up.folder) as fl:
        registry = up.url("oci_registry").removeprefix("http://")
        again = fl.prefetch(
            f"{registry}/ahead:latest", devices=["proplet-2"], on_change=lambda one: doing.append(dict(one))
        )
        assert (again.done, again.failures) == (("proplet-2",), {})
        assert doing[-1] == {"proplet-2": "done"}
        none = fl.prefetch(f"{registry}/none:latest", devices=["proplet-1", "proplet-2"])
        assert none.done == ()
        assert set(none.failures) == {"proplet-1", "proplet-2"}
        assert all("none:latest" in reason for reason in none.failures.values())
        with pytest.raises(InvalidError, match="devices: "):
            fl.prefetch(f"{registry}/ahead:latest", devices=["proplet-77"])
    (missing,) = {one["image_url"] for one in tasks(up) if one["state"] == 4}
    assert missing.endswith("/none:latest")


def tasks(up: Up) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(up.url("manager") + "/tasks?limit=1000").json()["tasks"]
    return [one for one in found if one["kind"] == "prefetch"]


def test_who_fails_is_named_with_file_line_and_message(up: Up, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(RAISES)
    for number in range(DEVICES):
        (tmp_path / f"{number}.json").write_text(json.dumps({"data": [{"x": [number - 0.5, 1.0], "y": 1}]}))
    files = [f"{number}.json" for number in range(DEVICES - 2)] + ["0.json", "0.json"]
    (tmp_path / "experiment.toml").write_text(
        f"""
name = "raises"
program = "train.py"
rounds = 1
timeout_s = 60
[model]
w = [0.0, 0.0]
[data]
files = {json.dumps(files)}
"""
    )
    arguments = ("run", str(tmp_path / "experiment.toml"), "--state", str(up.folder), "--prefetch")
    done = propeller(*arguments, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Prefetched: 10 devices" in done.stdout
    failed = [line for line in done.stdout.splitlines() if "failed:" in line]
    assert failed == [
        "  ✗ round  1: proplet-8 failed: the program exited with code 1: train.py:8: ValueError: no more than six, please",
        "devices that failed: proplet-8; made of fewer updates than were asked for: 1 round",
    ]
    assert "updates 9/10, 10 were asked for" in done.stdout
    strict = propeller(*arguments, "--strict", timeout=120)
    assert strict.returncode == 1
    assert strict.stderr.splitlines()[-1].startswith("error: --strict: devices that failed: proplet-8")
