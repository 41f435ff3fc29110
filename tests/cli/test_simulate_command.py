"""``propeller simulate``: what it shows and writes, what it refuses, and Ctrl-C."""

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
import wasmtime
from typer.testing import CliRunner

from propeller.cli.app import app
from propeller.data import program_path
from propeller.errors import PropellerError
from propeller.process.file_lock import FileLock
from support.net import wait_until
from support.stack import PROPELLER, propeller

EXPERIMENT = """
program = "logreg.wasm"
rounds = 2
selection = { count = 2, seed = 1 }

[hyperparams]
lr = 0.1

[model]
w = [0.0, 0.0]
b = 0.0

[data]
files = ["1.json", "2.json", "3.json"]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    (tmp_path / "logreg.wasm").write_bytes(program_path("logreg").read_bytes())
    for number in (1, 2, 3):
        samples = [{"x": [at / 10, number], "y": int(at > 5)} for at in range(10)]
        (tmp_path / f"{number}.json").write_text(json.dumps({"data": samples}))
    return tmp_path


def simulate(project: Path, *arguments: str) -> Any:
    return propeller("simulate", str(project / "experiment.toml"), "--workers", "1", *arguments)


def refusal(project: Path, *arguments: str) -> str:
    """Why the command refuses: in this process, as one of its own takes longer than all that it does."""
    given = ["simulate", str(project / "experiment.toml"), "--workers", "1", *arguments]
    ended = CliRunner().invoke(app, given)
    assert isinstance(ended.exception, PropellerError), ended.output
    assert "round" not in ended.stdout
    return str(ended.exception)


def test_what_it_shows_and_writes(project: Path) -> None:
    ended = simulate(project, "--out", str(project / "out"), "--set", "rounds=3")
    assert ended.returncode == 0, ended.stderr
    assert "round   3  updates 2/2" in ended.stdout
    assert "completed: 3 rounds, 6 tasks" in ended.stdout
    written = json.loads((project / "out" / "history.json").read_text())
    assert [one["number"] for one in written["rounds"]] == [1, 2, 3]
    rows = (project / "out" / "history.csv").read_text().splitlines()
    assert len(rows) == 7
    assert rows[0].startswith("number,attempt,kind")
    assert sorted(file.name for file in (project / "out").iterdir()) == [
        "history.csv",
        "history.json",
        "latest.safetensors",
        "metrics.svg",
    ]


def test_results_of_an_earlier_simulation_are_replaced(project: Path) -> None:
    out = project / "out"
    assert simulate(project, "--out", str(out), "--set", "evaluate.every=1").returncode == 0
    assert (out / "best.safetensors").exists()
    (out / "mine.txt").write_text("kept")
    assert simulate(project, "--out", str(out)).returncode == 0
    assert not (out / "best.safetensors").exists()
    assert (out / "mine.txt").exists()


def test_two_simulations_with_one_folder(project: Path) -> None:
    (project / "out").mkdir()
    with FileLock(project / "out"):
        refused = refusal(project, "--out", str(project / "out"))
    assert "another simulation writes to it; name another folder" in refused


def test_a_folder_that_cannot_be_made_is_refused_at_once(project: Path) -> None:
    assert "name another folder" in refusal(project, "--out", str(project / "experiment.toml" / "out"))


def test_a_program_that_is_none_is_named(project: Path) -> None:
    assert "1.json: not a Wasm program" in refusal(project, "--program", str(project / "1.json"))


def test_devices_and_the_first_version(project: Path) -> None:
    (project / "devices.csv").write_text("seconds\n3\n")
    ended = simulate(project, "--devices", str(project / "devices.csv"), "--first-version", "7", "--json")
    told = json.loads(ended.stdout)
    assert [one["seconds"] for one in told["history"]] == [3, 3]
    assert told["model_version"] == 9


def test_as_json(project: Path) -> None:
    ended = simulate(project, "--json")
    told = json.loads(ended.stdout)
    assert (told["state"], told["done"], len(told["history"])) == ("completed", 2, 2)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--clients", "5"], "clients: 5, but there is data of 3"),
        (["--partition", "{"], "--partition: not JSON"),
        (["--devices", "{"], "--devices: not JSON"),
        (["--devices", "gone.csv"], "devices.trace: gone.csv: No such file"),
        (["--devices", '{"second": 1}'], "did you mean 'seconds'"),
        (["--data", "digit"], "digit"),
        (["--program", "gone.wasm"], "gone.wasm is not a file"),
        (["--labels"], "each client has a document"),
        (["--set", "simulation.client=3"], "did you mean 'clients'"),
    ],
)
def test_what_is_refused(project: Path, arguments: list[str], text: str) -> None:
    assert text in refusal(project, *arguments)


def test_an_experiment_that_fails(project: Path) -> None:
    asked = ["--set", "selection.count=9", "--set", "retries=0", "--set", "timeout_s=1"]
    ended = simulate(project, *asked)
    assert ended.returncode == 1
    assert "9 devices needed, 3 there" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_too_little_memory_names_the_setting(project: Path) -> None:
    (project / "train.py").write_text(
        "from propeller.program import train\n\n@train\ndef fit(model, data, hyperparams, ctx):\n    return bytes(10**9)\n"
    )
    ended = simulate(
        project, "--program", str(project / "train.py"), "--set", "retries=0", "--set", "rounds=1"
    )
    assert ended.returncode == 1
    assert "memory_bytes: over the limit" in ended.stderr
    assert "PROPLET_TASK_MEMORY=BYTES gives a task more memory" in ended.stderr


@pytest.mark.parametrize("busy", [False, True], ids=["starting", "busy"])
def test_ctrl_c_ends_it_and_its_workers(project: Path, busy: bool) -> None:
    never = '(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))'
    (project / "logreg.wasm").write_bytes(bytes(wasmtime.wat2wasm(never)))
    process = subprocess.Popen(
        [*PROPELLER, "simulate", str(project / "experiment.toml"), "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:

        def workers() -> list[psutil.Process]:
            children = psutil.Process(process.pid).children()
            with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # of another child
                return [one for one in children if "propeller.simulation.worker" in one.cmdline()]
            return []

        (worker,) = wait_until(workers, what="a worker", timeout=30)
        if busy:
            wait_until(lambda: worker.cpu_times().user > 1.2, what="a busy worker", timeout=30)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == 130
        assert not worker.is_running()
        output = process.stdout.read() if process.stdout is not None else b""
        assert b"Traceback" not in output
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
