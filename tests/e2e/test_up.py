"""``propeller up`` as a person meets it: the guide's steps on it, and every way it can end."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from propeller.sdk import Propeller, PropellerError
from propeller.stack.state_folder import StateFolder
from support.net import wait_until
from support.stack import OWN_PROGRAMS, PROPELLER, Up, end, propeller, running_stack, start_up, up_at

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("up") / "state", env=OWN_PROGRAMS) as running:
        yield running


def experiment(up: Up, name: str, **changes: Any) -> dict[str, Any]:
    """The body of the guide's step 7A."""
    return {
        "experiment_id": f"exp-{name}",
        "round_id": name,
        "model_ref": "fl/models/global_model_v0",
        "participants": up.ids(),
        "hyperparams": {"epochs": 1, "lr": 0.01, "batch_size": 16},
        "k_of_n": 3,
        "timeout_s": 60,
        "task_wasm_image": up.stack["images"]["fl-client-wasm"],
        **changes,
    }


def wait_completed(up: Up, round_id: str, timeout: float = 30.0) -> dict[str, Any]:
    end_at = time.monotonic() + timeout
    while time.monotonic() < end_at:
        answer = httpx.get(
            f"{up.url('coordinator')}/rounds/{round_id}/complete", params={"wait_s": 5}, timeout=30
        )
        status: dict[str, Any] = answer.json()
        if status.get("completed") or status.get("state") == "failed":
            return status
    raise AssertionError(f"round {round_id} did not end")


def test_stack_json_is_private_and_names_what_the_guide_needs(up: Up) -> None:
    mode = stat.S_IMODE((up.folder / "stack.json").stat().st_mode)
    assert mode == 0o600
    assert set(up.stack["clients"]) == {
        "manager",
        "fl-coordinator",
        "proxy",
        "operator",
        "proplet-1",
        "proplet-2",
        "proplet-3",
    }
    for service in (
        "identity",
        "manager",
        "coordinator",
        "aggregator",
        "model_registry",
        "data_store",
        "oci_registry",
    ):
        assert httpx.get(
            f"{up.url(service)}/health" if service != "oci_registry" else f"{up.url(service)}/v2/"
        ).is_success


def test_the_guides_steps_6_to_8(up: Up) -> None:
    registry = up.url("model_registry")
    stored = httpx.post(f"{registry}/models", json={"version": 0, "model": {"w": [0.0, 0.0, 0.0], "b": 0.0}})
    assert stored.status_code == 201, stored.text
    assert httpx.get(f"{registry}/models/0").json() == {"w": [0, 0, 0], "b": 0}
    answer = httpx.post(f"{up.url('manager')}/fl/experiments", json=experiment(up, "r-guide"))
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"experiment_id": "exp-r-guide", "round_id": "r-guide", "status": "configured"}
    status = wait_completed(up, "r-guide")
    assert status["num_updates"] == 3
    assert status["model_version"] == 1
    model = httpx.get(f"{registry}/models/1").json()
    assert all(model["w"])
    assert model["b"] != 0
    phrases = {
        "manager": ["launched task for FL round participant"],
        "proplet-1": [
            "Requesting binary from registry",
            "Executing task",
            "completed successfully",
            "DEBUG: Final model after training",
        ],
        "coordinator": [
            "Received experiment configuration",
            "Received update",
            "Round complete: received k_of_n updates",
            "Aggregated model stored",
        ],
    }
    for service, expected in phrases.items():
        shown = propeller(
            "logs", "--state", str(up.folder), "--service", service, "--round", "r-guide"
        ).stdout
        for phrase in expected:
            assert phrase in shown, f"{service}: {phrase}\n{shown}"
    proxy = propeller("logs", "--state", str(up.folder), "--service", "proxy").stdout
    assert "successfully sent all chunks" in proxy
    store = propeller("logs", "--state", str(up.folder), "--service", "data-store").stdout
    assert store.count("Dataset seeded") == 3
    assert "Dataset missing" not in store


def test_the_same_round_again_starts_nothing(up: Up) -> None:
    with Propeller.from_state(up.folder) as fl:
        first = fl.run_round(fl.image(), round_id="r-twice", base_version=0)
        fl.start_round(fl.image(), round_id="r-twice-other", base_version=0)
        body = experiment(up, "r-twice", model_ref="fl/models/global_model_v0", k_of_n=2)
        answer = httpx.post(f"{up.url('manager')}/fl/experiments", json=body)
        assert answer.status_code == 409, answer.text
        assert "r-twice" in answer.json()["error"]
        assert len(first.updates) == 3


def test_instance_names_are_refused_with_the_remedy(up: Up) -> None:
    body = experiment(up, "r-names", participants=["proplet-1", "proplet-2", "proplet-3"])
    answer = httpx.post(f"{up.url('manager')}/fl/experiments", json=body)
    assert 400 <= answer.status_code < 500
    assert "client id" in answer.json()["error"]
    shown = propeller("logs", "--state", str(up.folder), "--service", "manager", "--round", "r-names").stdout
    assert "skipping participant: proplet not found" in shown


def test_an_unknown_image_fails_the_round_at_once_and_is_named(up: Up) -> None:
    image = f"127.0.0.1:{up.url('oci_registry').rsplit(':', 1)[1]}/no-such-program:latest"
    begun = time.monotonic()
    httpx.post(
        f"{up.url('manager')}/fl/experiments", json=experiment(up, "r-none", task_wasm_image=image)
    ).raise_for_status()
    status = wait_completed(up, "r-none")
    assert time.monotonic() - begun < 30  # and not its 60 s
    assert status["state"] == "failed"
    assert status["reason"].startswith("no update can come any more: 3 of 3 participants failed: ")
    assert "no-such-program" in status["reason"]
    detail = httpx.get(f"{up.url('coordinator')}/rounds/r-none").json()
    assert sorted(one["proplet_id"] for one in detail["failures"]) == sorted(up.ids())
    tasks = httpx.get(f"{up.url('manager')}/tasks", params={"limit": 1000}).json()["tasks"]
    errors = [task["error"] for task in tasks if task["name"].startswith("fl-round-r-none")]
    assert len(errors) == 3
    assert all("no-such-program" in error for error in errors)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"k_of_n": 4}, "k_of_n"),
        ({"k_of_n": -1}, "k_of_n"),
        ({"participants": []}, "participants"),
        ({"round_id": "../../etc"}, "round_id"),
        ({"round_id": None}, "round_id"),
        ({"timeout_s": "soon"}, "timeout_s"),
        ({"model_ref": "fl/models/global_model_v99"}, "99"),
        ({"task_wasm_image": ""}, "task_wasm_image"),
        ({"hyperparams": [1]}, "hyperparams"),
    ],
)
def test_bad_experiments_name_the_field(up: Up, changes: dict[str, Any], field: str) -> None:
    answer = httpx.post(f"{up.url('manager')}/fl/experiments", json=experiment(up, "r-bad", **changes))
    assert 400 <= answer.status_code < 500, answer.text
    assert field in answer.json()["error"]


def test_status_shows_services_proplets_rounds_and_versions(up: Up) -> None:
    shown = propeller("status", "--state", str(up.folder))
    assert shown.returncode == 0, shown.stderr
    assert "proplet-3" in shown.stdout
    assert "Model versions: 0" in shown.stdout
    document = json.loads(propeller("status", "--state", str(up.folder), "--json").stdout)
    assert [one["name"] for one in document["proplets"]] == ["proplet-1", "proplet-2", "proplet-3"]
    assert [one["answers"] for one in document["services"]] == [True] * 9
    assert document["versions"][0] == 0
    assert document["state"] == "running"
    assert {"experiments", "rounds"} <= set(document)


def test_status_is_readable_in_a_narrow_terminal(up: Up) -> None:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 100, 50, 0, 0))
    command = [*PROPELLER, "status", "--state", str(up.folder)]
    environment = {name: one for name, one in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    environment["TERM"] = "xterm"
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        shown = b""
        with contextlib.suppress(OSError):  # how its end is told
            while piece := os.read(parent, 65536):
                shown += piece
        assert process.wait(30) == 0
    os.close(parent)
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()]
    begin, end = lines.index("Services"), lines.index("no room for: client id")
    assert all(len(line) <= 50 for line in lines[begin:end])
    assert [line.split()[:2] for line in lines if line.startswith("proplet-")] == [
        [f"proplet-{number}", "yes"] for number in (1, 2, 3)
    ]


def test_status_without_a_stack(tmp_path: Path) -> None:
    shown = propeller("status", "--state", str(tmp_path), "--json")
    assert (shown.returncode, json.loads(shown.stdout)) == (1, {"state": "absent"})


def test_a_second_stack_on_the_folder_is_refused(up: Up) -> None:
    second = propeller("up", "--state", str(up.folder), "--ports", "auto")
    assert second.returncode == 1
    assert "already runs" in second.stderr
    assert (up.folder / "stack.json").exists()


@pytest.mark.parametrize(
    "service", ["manager", "coordinator", "model-registry", "proxy", "proplet-2", "broker", "identity"]
)
def test_a_killed_service_is_started_again_and_rounds_go_on(up: Up, service: str) -> None:
    pid = up.stack["processes"][service]
    target = next((p for p in up.processes() if p.pid == pid), None)
    if target is None:
        pytest.fail(f"{service} does not run")
    target.kill()
    with Propeller.from_state(up.folder) as fl:

        def a_round_has_all() -> bool:
            try:
                # A proplet that was killed may be known to be away only now: then the round is without it.
                return (
                    len(fl.proplets(alive=True)) == 3
                    and len(fl.run_round(fl.image(), base_version=0, timeout_s=15).updates) == 3
                )
            except PropellerError:
                return False

        wait_until(a_round_has_all, 60, f"a round with all three after {service} was killed")


def test_sigterm_ends_every_process_and_a_restart_goes_on(tmp_path: Path) -> None:
    with running_stack(tmp_path / "state", command=up_at(tmp_path / "state")) as first:
        with Propeller.from_state(first.folder) as fl:
            version = fl.run_round(fl.image()).model_version
            model = fl.model(version)
        ids, services, below = first.ids(), first.stack["services"], first.processes()
        first.process.send_signal(signal.SIGTERM)
        _gone, alive = psutil.wait_procs(below, timeout=15)
        assert not alive, alive
        assert first.process.wait() == 0
        assert not (first.folder / "stack.json").exists()
    with running_stack(tmp_path / "state") as second, Propeller.from_state(second.folder) as fl:
        assert second.ids() == ids
        assert second.stack["services"] == services
        again = fl.model(version)
        assert again.keys() == model.keys()
        assert all(np.array_equal(again[name], array) for name, array in model.items())
        assert fl.run_round(fl.image()).model_version == version + 1


def test_nothing_is_left_when_it_is_killed(tmp_path: Path) -> None:
    with running_stack(tmp_path / "state", command=up_at(tmp_path / "state")) as up:
        below = up.processes()
        up.process.kill()
        _gone, alive = psutil.wait_procs(below, timeout=15)
        assert not alive, alive


@pytest.mark.parametrize("after", [0.2, 0.7, 1.2, 2.0])
def test_ctrl_c_while_starting_ends_everything(tmp_path: Path, after: float) -> None:
    up = start_up(tmp_path / "state", "--ports", "auto", command=up_at(tmp_path / "state"))
    try:
        time.sleep(after)  # the moment of the interruption is what is tested
        below = up.processes()
        os.killpg(up.process.pid, signal.SIGINT)
        up.process.wait(15)
        _gone, alive = psutil.wait_procs(below, timeout=15)
        assert not alive, alive
        # Before a line of ours runs, Python says itself that it was interrupted.
        assert f"{os.sep}propeller{os.sep}" not in up.output
    finally:
        end(up)


def test_a_taken_port_is_named_with_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        env = {**os.environ, "REGISTRY_PORT": str(port), "MODELS_DIR": str(tmp_path), "PROPELLER_AUTH": "off"}
        result = subprocess.run(
            [sys.executable, "-m", "propeller", "serve", "model-registry"],
            env=env, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert f"port {port} is already in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_temporary_folder_of_too_long_a_name_is_said_so(tmp_path: Path) -> None:
    long = tmp_path / ("long-" * 20)
    long.mkdir()
    up = start_up(tmp_path / "state", "--ports", "auto", env={"TMPDIR": str(long)})
    try:
        assert up.process.wait(30) == 1
    finally:
        end(up)
    assert f"error: {long}: too long a path for a socket" in up.output
    assert "TMPDIR" in up.output


def test_an_unknown_service_lists_the_known_ones() -> None:
    result = propeller("serve", "nothing")
    assert result.returncode == 1
    assert "model-registry" in result.stderr


def test_the_demo(tmp_path: Path) -> None:
    result = propeller("demo", "--state", str(tmp_path / "demo"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "federated" in result.stdout
    assert "held-out accuracy" in result.stdout
    assert json.loads((tmp_path / "demo" / "secrets.json").read_text())["clients"]


def test_the_demo_does_not_clear_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    result = propeller("demo", "--state", str(tmp_path))
    assert result.returncode == 1
    assert (tmp_path / "thesis.txt").exists()


def test_a_stack_is_not_taken_for_a_demo(tmp_path: Path) -> None:
    """What the demo writes beside a stack's state does not make that state the demo's."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "secrets.json").write_text("{}")
    result = propeller("demo", "--state", str(tmp_path))
    assert result.returncode == 1
    assert "not a demo's folder" in result.stderr
    assert (tmp_path / "secrets.json").exists()


def test_folders_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for command in ("up", "demo"):
        result = propeller(command, "--state", str(tmp_path / "file" / "state"))
        assert result.returncode == 1
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1


def test_a_log_that_cannot_be_written_is_one_line_and_the_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("")
    result = propeller("up", "--state", str(tmp_path), "--ports", "auto")
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"error: cannot log to {tmp_path / 'logs' / 'up.log'}: File exists; choose another folder with --state"
    ]
    assert StateFolder(tmp_path).running_process() is None
