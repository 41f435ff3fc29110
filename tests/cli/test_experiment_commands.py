"""``propeller run``, ``propeller experiments`` and ``propeller experiment``: what they show and how they end."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.fake_stack import PASSWORD, USER, FakeStack
from support.net import wait_until
from support.stack import PROPELLER, propeller


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[FakeStack]:
    with FakeStack().running() as running:
        services: dict[str, Any] = {name: {"url": url} for name, url in running.urls().items()}
        services["identity"] = {"users": running.url, "url": running.url}
        (tmp_path / "stack.json").write_text(
            json.dumps({"services": services, "clients": {"proplet-1": {"id": "id-1", "key": "k"}}})
        )
        (tmp_path / "experiment.toml").write_text(
            'program = "localhost:5000/digits:v1"\nid = "exp"\nrounds = 2\n[hyperparams]\nlr = 0.1\n'
        )
        yield running


TROUBLE = "devices that failed: proplet-1, brave-fox-7; made of fewer updates than were asked for: 1 round"


@pytest.fixture
def state(tmp_path: Path) -> tuple[str, str]:
    return ("--state", str(tmp_path))


def happen(stack: FakeStack, *, failed: bool = False) -> None:
    """Two rounds, of which the second has a device that fails, and an evaluation."""
    stack.happen("state", state="queued")
    stack.happen("state", state="running")
    stack.happen("note", reason="strategy: it is [plain] averaging")
    place = {"attempt": 1, "kind": "train"}
    for number in (1, 2):
        where = {"round_id": f"exp.{number}", "number": number, **place}
        stack.happen(
            "round_started", **where, participants=["id-1", "id-2"], k_of_n=2, base_version=number - 1
        )
        stack.happen(
            "update", **where, proplet_id="id-1", num_samples=30, metrics={"loss": 1 / number}, updates=1
        )
        if number == 1:
            stack.happen(
                "update", **where, proplet_id="id-2", num_samples=10, metrics={"loss": 0.2}, updates=2
            )
        else:
            stack.happen("failure", **where, proplet_id="id-1", reason="no memory [left]")
            stack.happen("failure", **where, proplet_id="id-2", reason="it is broken")
        stack.happen("round_ended", **where, state="completed", model_version=number, seconds=0.25)
    where = {"round_id": "exp.e2", "number": 2, "attempt": 1, "kind": "evaluate"}
    stack.happen("waiting", reason="2 of 3 devices are alive")
    stack.happen("waiting", reason="2 of 3 devices are alive")
    stack.happen("round_started", **where, participants=["id-1"], k_of_n=1, base_version=2)
    stack.happen("update", **where, proplet_id="id-1", num_samples=5, metrics={"accuracy": 0.9}, updates=1)
    stack.happen("round_ended", **where, state="completed", seconds=0.1)
    stack.best = {"version": 2, "metric": "accuracy", "value": 0.9}
    stack.happen("best", **stack.best)
    if failed:
        where = {"round_id": "exp.3", "number": 3, **place}
        stack.happen("round_started", **where, participants=["id-1"], k_of_n=1, base_version=2)
        stack.happen("round_ended", **where, state="failed", reason="no update came")
        stack.happen("state", state="failed", reason="round exp.3: no update came")
    else:
        stack.happen("state", state="completed")


def test_a_run_shows_rounds_failures_and_the_result(
    stack: FakeStack, tmp_path: Path, state: tuple[str, str]
) -> None:
    happen(stack)
    done = propeller("run", str(tmp_path / "experiment.toml"), *state, "--set", "lr=0.5", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    assert stack.specs["exp"]["hyperparams"] == {"lr": 0.5}
    where = f"{stack.url}/models"
    assert done.stdout.splitlines() == [
        "Experiment exp: localhost:5000/digits:v1, 2 rounds of fedavg",
        "  note: strategy: it is [plain] averaging",
        "  round  1  updates 2/2  loss 0.8000  v1, 250 ms, exp.1",
        "  ✗ round  2: proplet-1 failed: no memory [left]",
        "  ✗ round  2: brave-fox-7 failed: it is broken",
        "  round  2  updates 1/2, 2 were asked for  loss 0.5000  v2, 250 ms, exp.2",
        "  waiting: 2 of 3 devices are alive",
        "   eval  2  updates 1/1  accuracy 0.9000  v2, 100 ms, exp.e2",
        TROUBLE,
        "Completed after 0 of 2 rounds in 2.0 s",
        f"Model v2, the best by accuracy 0.9000, is at {where}/2  (propeller model export 2 v2.safetensors --state {tmp_path})",
    ]
    assert done.stderr == ""


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
def test_strict_is_an_error_if_a_device_failed(
    stack: FakeStack, tmp_path: Path, state: tuple[str, str], form: tuple[str, ...]
) -> None:
    happen(stack)
    done = propeller("run", str(tmp_path / "experiment.toml"), *state, "--strict", *form)
    assert done.returncode == 1
    named = TROUBLE.replace("brave-fox-7", "id-2").replace("proplet-1", "id-1") if form else TROUBLE
    assert done.stderr == f"error: --strict: {named}\n"


def test_strict_is_fine_if_none_failed(stack: FakeStack, tmp_path: Path, state: tuple[str, str]) -> None:
    stack.happen("state", state="completed")
    assert propeller("run", str(tmp_path / "experiment.toml"), *state, "--strict").returncode == 0
    both = propeller("run", str(tmp_path / "experiment.toml"), *state, "--strict", "--detach")
    assert both.returncode == 1
    assert both.stderr.startswith("error: --strict: ")


def test_a_failed_experiment_is_an_error_with_the_reason(
    stack: FakeStack, tmp_path: Path, state: tuple[str, str]
) -> None:
    happen(stack, failed=True)
    done = propeller("run", str(tmp_path / "experiment.toml"), *state)
    assert done.returncode == 1
    assert "  round  3  failed: no update came" in done.stdout
    assert done.stderr == "error: experiment exp failed after 0 of 2 rounds: round exp.3: no update came\n"


def test_strategies_are_listed_and_one_is_shown(stack: FakeStack, state: tuple[str, str]) -> None:
    header, fedavg, broken = propeller("strategies", *state).stdout.splitlines()
    assert header.split() == ["strategy", "mode", "parameters", "what"]
    assert fedavg.split()[:6] == ["fedavg", "sync", "async", "weighting,", "trained,", "personal"]
    assert broken.split() == ["broken", "cannot", "be", "loaded"]
    shown = propeller("strategies", "qfedavg", *state).stdout
    assert "mode      sync" in shown
    assert re.search(r"^lr +required +> 0 +number +the learning rate", shown, re.MULTILINE)
    found = json.loads(propeller("strategies", "fedbuff", "--json", *state).stdout)
    assert (found["modes"], found["parameters"][0]["name"]) == (["async"], "server_lr")


def test_events_as_lines_of_json(stack: FakeStack, tmp_path: Path, state: tuple[str, str]) -> None:
    happen(stack, failed=True)
    done = propeller("run", str(tmp_path / "experiment.toml"), *state, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["id"] for one in events] == [str(number) for number in range(1, len(events) + 1)]
    assert events[-1]["event"] == "state"
    assert events[-1]["state"] == "failed"
    assert done.returncode == 1


def test_an_evaluation_on_training_data_is_noticed(
    stack: FakeStack, tmp_path: Path, state: tuple[str, str]
) -> None:
    command = ("run", str(tmp_path / "experiment.toml"), *state, "-d", "--set", "evaluate.every=1")
    done = propeller(*command)
    assert done.returncode == 0
    assert "evaluate: devices evaluate on what they train on" in done.stderr
    assert propeller(*command, "--set", "data.split.holdout=0.2").stderr == ""


def test_detached_it_goes_on(stack: FakeStack, tmp_path: Path, state: tuple[str, str]) -> None:
    done = propeller("run", str(tmp_path / "experiment.toml"), *state, "--detach")
    assert done.returncode == 0, done.stderr
    follow, stop = done.stdout.splitlines()[1:]
    assert follow == f"  follow it: propeller experiment follow exp --state {tmp_path}"
    assert stop == f"  end it:    propeller experiment stop exp --state {tmp_path}"
    done = propeller(*stop.split()[3:])
    assert done.stdout == "exp is stopped; its model versions stay\n"
    assert stack.steered == ["stop"]
    asked = propeller("run", str(tmp_path / "experiment.toml"), *state, "--detach", "--json")
    assert json.loads(asked.stdout)["id"] == "exp"


def test_ctrl_c_says_that_it_goes_on_and_how_to_end_it(
    stack: FakeStack, tmp_path: Path, state: tuple[str, str]
) -> None:
    stack.happen("state", state="running")
    stack.happen("waiting", reason="nobody is there")
    with subprocess.Popen(
        [*PROPELLER, "run", str(tmp_path / "experiment.toml"), *state],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert any("waiting" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "Experiment exp goes on without this terminal." in said
    assert f"propeller experiment stop exp --state {tmp_path}" in said
    assert "Traceback" not in said


def test_ctrl_c_while_it_is_submitted_says_how_to_see_whether_it_was(
    stack: FakeStack, tmp_path: Path, state: tuple[str, str]
) -> None:
    stack.keeps_silent = True
    with subprocess.Popen(
        [*PROPELLER, "run", str(tmp_path / "experiment.toml"), *state], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        wait_until(lambda: stack.specs, 30, "the experiment is submitted")
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert f"Whether it runs: propeller experiment show exp --state {tmp_path}" in said
    assert "Traceback" not in said


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_terminal_has_a_table_of_what_runs(
    stack: FakeStack, tmp_path: Path, state: tuple[str, str]
) -> None:
    import os
    import pty

    stack.happen("state", state="running")
    where = {"round_id": "exp.1", "number": 1, "attempt": 1, "kind": "train"}
    stack.happen("round_started", **where, participants=["id-1", "id-2"], k_of_n=2, base_version=0)
    stack.happen("update", **where, proplet_id="id-1", num_samples=30, metrics={"loss": 0.7}, updates=1)
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    with subprocess.Popen(
        [*PROPELLER, "run", str(tmp_path / "experiment.toml"), *state],
        stdin=child,
        stdout=child,
        stderr=child,
        env=environment,
    ) as process:
        os.close(child)
        shown = ""

        def has(text: str) -> bool:
            nonlocal shown
            shown += os.read(parent, 4096).decode(errors="replace")
            return text in shown

        wait_until(lambda: has("loss 0.7000"), 20, "the table shows the update")
        assert "1/2" in shown
        assert "Ctrl-C leaves it running" in shown
        stack.happen("round_ended", **where, state="completed", model_version=1, seconds=0.25)
        stack.happen("state", state="completed")
        wait_until(lambda: has("Completed after"), 20, "the result is shown")
        assert process.wait(20) == 0
    os.close(parent)


def test_an_experiment_elsewhere(stack: FakeStack, tmp_path: Path, state: tuple[str, str]) -> None:
    stack.wants_login = True
    done = propeller("experiments", *state, "--user", USER)
    assert done.stderr == "error: --user is only for --url: a stack on this machine is used as its operator\n"
    done = propeller("experiments", "--url", stack.url)
    assert "url: give the host alone" in done.stderr
    assert "as --url manager=http://fleet.example:7070" in done.stderr
    services = ("manager", "coordinator", "model-registry", "data_store", "identity")
    named = [word for name in services for word in ("--url", f"{name}={stack.url}")]
    done = propeller("experiments", *named, "--user", USER, env={"PROPELLER_PASSWORD": PASSWORD})
    assert (done.stdout, done.stderr) == ("No experiments.\n", "")
    urls = {"PROPELLER_URL": " ".join(named[1::2]), "PROPELLER_PASSWORD": PASSWORD}
    done = propeller("experiments", "--user", USER, env=urls)
    assert (done.stdout, done.stderr) == ("No experiments.\n", "")
    for wrong, said in (
        (["manger=http://a"], "there is no service 'manger'; did you mean manager?"),
        (["manager=a"], "manager: 'a' is not an address"),
        (["a", "b"], "a and b are two hosts"),
        (
            ["manager=http://a"],
            "no address of coordinator, model_registry, data_store: give it as --url coordinator=URL",
        ),
    ):
        done = propeller("experiments", *(word for one in wrong for word in ("--url", one)))
        assert said in done.stderr
    done = propeller("experiments", "--url", "http://127.0.0.1", "--user", "nobody")
    assert done.stderr == "error: no password of nobody; set PROPELLER_PASSWORD\n"
    assert PASSWORD not in done.stdout


def test_lists_details_history_and_comparison(
    stack: FakeStack, tmp_path: Path, state: tuple[str, str]
) -> None:
    for name in ("one", "two"):
        assert (
            propeller(
                "run", str(tmp_path / "experiment.toml"), *state, "-d", "--set", f"id={name}"
            ).returncode
            == 0
        )
    stack.history = [
        {
            "number": 1,
            "attempt": 2,
            "kind": "train",
            "round_id": "one.1.2",
            "state": "completed",
            "model_version": 1,
            "seconds": 0.5,
            "metrics": {"loss": 0.25},
            "num_samples": 30,
            "participants": ["id-1", "id-2", "id-3"],
            "names": {"id-1": "ward-1"},
            "updates": [{"proplet_id": "id-1", "num_samples": 30, "metrics": {"loss": 0.25}, "bytes": 1000}],
            "failures": [{"proplet_id": "id-2", "reason": "no memory\nleft"}],
            "bytes": 1000,
            "bytes_saved": 0,
        }
    ]
    listed = propeller("experiments", *state).stdout
    assert "one" in listed
    assert "two" in listed
    assert [one["id"] for one in json.loads(propeller("experiments", *state, "--json").stdout)] == [
        "two",
        "one",
    ]
    assert json.loads(propeller("experiments", "--name", "nobodys", *state, "--json").stdout) == []
    assert propeller("experiments", "--name", "nobodys", *state).stdout == "No experiments called nobodys.\n"
    shown = propeller("experiment", "show", "one", *state).stdout
    assert "localhost:5000/digits:v1" in shown
    assert '"lr": 0.1' in shown
    assert json.loads(propeller("experiment", "show", "one", *state, "--json").stdout)["id"] == "one"
    table = propeller("experiment", "history", "one", *state).stdout
    head, first = (line.split() for line in table.splitlines()[:2])
    assert head == ["round", "kind", "state", "updates", "samples", "loss", "model", "seconds"]
    assert first == ["1", "(2)", "train", "completed", "1", "30", "0.2500", "v1", "0.500"]
    assert "✗ round 1 (train): brave-fox-7 failed: no memory" in table
    devices = propeller("experiment", "history", "one", "--devices", *state).stdout
    assert [line.split() for line in devices.splitlines()] == [
        ["round", "kind", "device", "outcome", "samples", "loss", "sent", "why"],
        ["1", "(2)", "train", "ward-1", "update", "30", "0.2500", "1.0", "kB"],
        ["1", "(2)", "train", "brave-fox-7", "failure", "no", "memory", "left"],
        ["1", "(2)", "train", "old-crow-2", "missing"],
    ]
    assert propeller("experiment", "history", "one", "--devices", "--csv", *state).returncode == 2
    assert (
        json.loads(propeller("experiment", "history", "one", *state, "--json").stdout)["rounds"]
        == stack.history
    )
    stack.history[0]["bytes_saved"] = 9000
    head, first = (
        line.split() for line in propeller("experiment", "history", "one", *state).stdout.splitlines()[:2]
    )
    assert head == ["round", "kind", "state", "updates", "samples", "loss", "sent", "model", "seconds"]
    assert first[7:11] == ["1.0", "kB", "(-90", "%)"]
    assert propeller("experiment", "history", "one", *state, "--csv").stdout.startswith("number,")
    assert propeller("experiment", "history", "one", *state, "--csv", "--json").returncode == 2
    compared = propeller("experiment", "compare", "one", "two", *state).stdout
    assert "loss (train)" in compared
    assert compared.count("0.2500") == 2
    [document] = json.loads(propeller("experiment", "compare", "one", "two", *state, "--json").stdout)
    assert document["experiments"] == {"one": {"1": 0.25}, "two": {"1": 0.25}}
    unknown = propeller("experiment", "compare", "one", *state, "--metric", "los")
    assert unknown.stderr == "error: --metric: no round has 'los'; there are loss\n"
    for verb in ("pause", "resume"):
        assert propeller("experiment", verb, "one", "two", *state).returncode == 0
    assert stack.steered == ["pause", "pause", "resume", "resume"]
    missing = propeller("experiment", "show", "three", *state)
    assert missing.returncode == 1
    assert missing.stderr == (
        "error: there is no experiment three: 'propeller experiments' lists those there are\n"
    )
    near = propeller("experiment", "stop", "onee", *state)
    assert near.stderr.startswith("error: there is no experiment onee; did you mean one? ")


def test_followed_from_the_beginning(stack: FakeStack, tmp_path: Path, state: tuple[str, str]) -> None:
    assert propeller("run", str(tmp_path / "experiment.toml"), *state, "-d").returncode == 0
    happen(stack)
    done = propeller("experiment", "follow", "exp", *state)
    assert done.returncode == 0, done.stderr
    assert "  round  1  updates 2/2" in done.stdout


def test_shells_complete_commands_and_options(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = propeller("--install-completion", "bash", env=home)
    assert done.returncode == 0, done.stderr
    [written] = [file for file in tmp_path.rglob("*") if file.suffix == ".sh"]
    assert str(written) in (tmp_path / ".bashrc").read_text()
    assert "complete -o default -F" in written.read_text()
    asked = {
        "_PROPELLER_COMPLETE": "complete_bash",
        "COMP_WORDS": "propeller experiment st",
        "COMP_CWORD": "2",
    }
    assert propeller(env=asked).stdout.split() == ["stop"]


def test_the_command_line_starts_without_the_client() -> None:
    code = "import sys, propeller.cli.app; print([m for m in ('httpx', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_commands_that_ask_a_stack_load_nothing_of_its_services() -> None:
    """SQLAlchemy alone takes as long as the rest of ``propeller status``."""
    code = (
        "import sys; from propeller.cli import artifacts, device, doctor, join, login, logs, model, run, status, user; "
        "print([m for m in ('alembic', 'fastapi', 'numpy', 'sqlalchemy', 'uvicorn', 'wasmtime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_round_that_there_is_not_is_named_with_the_one_that_may_be_meant(
    stack: FakeStack, state: tuple[str, str]
) -> None:
    def error(*words: str) -> str:
        done = propeller("round", *words, *state)
        assert done.returncode == 1, done.stdout
        return done.stderr

    assert error("cancel", "nope") == "error: there is no round nope; there is none yet\n"
    stack.rounds = ["by-hand-2", "by-hand-1"]
    assert error("retry", "nope") == "error: there is no round nope: 'propeller status' lists the newest\n"
    assert (
        error("cancel", "by-hnd-2")
        == "error: there is no round by-hnd-2; did you mean by-hand-2? 'propeller status' lists the newest\n"
    )
    assert propeller("round", "cancel", "by-hand-2", *state).returncode == 0
    assert stack.steered == ["by-hand-2 cancel"]
