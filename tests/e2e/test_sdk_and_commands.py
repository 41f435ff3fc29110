"""Experiments on a whole stack, from Python and from the command line."""

import csv
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from propeller.data import program_path
from propeller.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    PropellerError,
    UnauthenticatedError,
)
from propeller.functions import with_functions
from propeller.sdk import AsyncPropeller, Experiment, ExperimentFailedError, Propeller
from support.net import free_port, wait_until
from support.service import start_service
from support.stack import PROPELLER, Up, propeller, running_stack

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]
MODEL = {"w": np.zeros(3), "b": np.float64(0)}
DATA = [
    {"data": [{"x": [shift, 1.0, -1.0], "y": 1}, {"x": [-shift, -1.0, 1.0], "y": 0}] * 8}
    for shift in (0.5, 1.0, 2.0)
]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("experiments") / "state"
    tags = ("--tag", "hospital=proplet-1,proplet-3", "--tag", "gpu=proplet-3")
    with running_stack(folder, *tags, env={"PROPLET_TAGS": "demo"}) as running:
        yield running


@pytest.fixture
def fl(up: Up) -> Iterator[Propeller]:
    with Propeller.from_state(up.folder) as client:
        yield client


def experiment(fl: Propeller, **fields: object) -> Experiment:
    return Experiment(**{"program": fl.image(), "rounds": 3, "model": MODEL, "data": DATA, **fields})  # type: ignore[arg-type]


def test_from_python_it_is_submitted_followed_and_read(fl: Propeller) -> None:
    handle = fl.run(
        experiment(fl, hyperparams={"epochs": 2, "lr": {"schedule": "linear", "start": 0.5, "end": 0.1}})
    )
    events = list(handle.events())
    kinds = [event.kind for event in events]
    assert kinds.count("round_started") == kinds.count("round_ended") == 3
    assert kinds.count("update") == 9
    assert [event.id for event in events] == [str(number) for number in range(1, len(events) + 1)]
    assert [event.id for event in handle.events(after=events[4].id)] == [event.id for event in events[5:]]
    result = handle.wait()
    assert (result.state, result.rounds, result.asked) == ("completed", 3, 3)
    history = handle.history()
    assert [one["model_version"] for one in history] == sorted(one["model_version"] for one in history)
    losses = [value for _, value in history.metric("loss")]
    assert losses == sorted(losses, reverse=True)
    rows = history.rows()
    assert [row["name"] for row in rows] == ["proplet-1", "proplet-2", "proplet-3"] * 3
    assert {event.data["name"] for event in events if event.kind == "update"} == {row["name"] for row in rows}
    assert [row["name"] for row in csv.DictReader(io.StringIO(handle.history_csv()))] == [
        row["name"] for row in rows
    ]
    model = handle.model()
    assert model["w"].shape == (3,)
    assert model["w"][1] > 0
    assert repr(fl.experiment(handle.id)) == f"<ExperimentHandle {handle.id}: completed, 3 of 3 rounds>"


async def test_in_an_event_loop(up: Up, fl: Propeller) -> None:
    async with AsyncPropeller.from_state(up.folder) as other:
        handle = await other.run(experiment(fl, rounds=1))
        kinds = [event.kind async for event in handle.events()]
        assert kinds[-1] == "state"
        assert (await handle.wait()).model_version is not None
        assert handle.id in [one["id"] for one in await other.experiments("completed")]


def test_the_same_id_is_the_same_experiment_or_none(fl: Propeller) -> None:
    version = fl.put_model(MODEL)
    one = experiment(fl, rounds=1, model=version, data=None, id="twice")
    first = fl.run(one).wait()
    assert fl.run(one).wait() == first
    with pytest.raises(ConflictError, match="twice"):
        fl.run(experiment(fl, rounds=2, model=version, data=None, id="twice"))


def test_the_newest_of_a_name_is_found_by_it(up: Up, fl: Propeller) -> None:
    handles = [fl.run(experiment(fl, rounds=1, name="named")) for _ in range(2)]
    assert fl.experiment("named").id == handles[1].id
    assert fl.experiment(handles[0].id).id == handles[0].id
    assert handles[1].wait().model_version == fl.models.info("named/latest")["version"]
    assert fl.model("named/latest")["w"].tolist() == handles[1].model()["w"].tolist()
    shown = propeller("experiment", "show", "named", "--state", str(up.folder)).stdout
    assert handles[1].id in shown
    assert handles[1].id in propeller("status", "--state", str(up.folder)).stdout
    with pytest.raises(NotFoundError, match="there is no experiment nobodys"):
        fl.experiment("nobodys")


def test_devices_are_chosen_by_their_tags(up: Up, fl: Propeller) -> None:
    shown = propeller("status", "--state", str(up.folder)).stdout
    assert re.findall(r"^(proplet-\d).*  ((?:\w+, )*demo) *$", shown, re.MULTILINE) == [
        ("proplet-1", "hospital, demo"),
        ("proplet-2", "demo"),
        ("proplet-3", "hospital, gpu, demo"),
    ]
    names = fl.device_names()
    for tags, devices in (
        (["demo", "hospital"], {"proplet-1", "proplet-3"}),
        (["hospital", "gpu"], {"proplet-3"}),
    ):
        handle = fl.run(experiment(fl, rounds=1, selection={"tags": tags}))
        handle.wait()
        assert {names[row["proplet_id"]] for row in handle.history().rows()} == devices
    with pytest.raises(ExperimentFailedError, match=r"no device that is alive has 'hospitl'.*hospital"):
        fl.run(experiment(fl, rounds=1, timeout_s=1, retries=0, selection={"tags": ["hospitl"]})).wait()


def test_paused_resumed_and_stopped(fl: Propeller) -> None:
    handle = fl.run(experiment(fl, rounds=10_000))
    events = handle.events()
    next(event for event in events if event.kind == "round_ended")
    handle.pause()
    next(event for event in events if event.kind == "state" and event.data["state"] == "paused")
    handle.resume()
    next(event for event in events if event.kind == "round_started")
    handle.stop()
    result = handle.wait()
    assert result.state == "stopped"
    assert result.rounds >= 1
    with pytest.raises(ConflictError):
        handle.resume()


def test_a_strategy_that_does_not_exist_is_refused(fl: Propeller) -> None:
    with pytest.raises(InvalidError, match="fedadam"):
        fl.run(experiment(fl, strategy="fedadm"))
    with pytest.raises(InvalidError, match=r"server_lr"):
        fl.run(experiment(fl, strategy={"name": "fedadam", "server_rl": 0.1}))


def test_a_program_that_does_not_exist_fails_the_experiment(fl: Propeller) -> None:
    missing = fl.image().replace(":latest", ":none")
    with pytest.raises(ExperimentFailedError, match="none"):
        fl.run(experiment(fl, program=missing, retries=0)).wait()


def test_a_program_that_says_it_cannot_evaluate_trains_no_round(
    up: Up, fl: Propeller, tmp_path: Path
) -> None:
    file = tmp_path / "trains.wasm"
    file.write_bytes(with_functions(program_path("logreg").read_bytes(), ["train"]))
    image = f"{up.url('oci_registry').removeprefix('http://')}/trains:v1"
    assert propeller("push", str(file), image).returncode == 0
    handle = fl.run(experiment(fl, program=image, evaluate={"every": 3}))
    with pytest.raises(ExperimentFailedError, match=f"evaluate: {image} has no function for evaluations"):
        handle.wait()
    assert handle.status()["done"] == 0
    assert fl.run(experiment(fl, program=image, rounds=1)).wait().state == "completed"


def test_a_program_that_does_not_say_whether_it_does_its_part_is_noted(fl: Propeller) -> None:
    handle = fl.run(experiment(fl, rounds=2, strategy="fedprox", evaluate={}))
    notes = [event.data["reason"] for event in handle.events() if event.kind == "note"]
    assert len(notes) == 1
    assert "3 of 3 devices does not say whether it adds what fedprox needs" in notes[0]
    best = handle.status()["best"]  # by the loss, as no metric is named
    assert best["metric"] == "loss"
    assert handle.model("best")["w"].shape == (3,)


def test_ctrl_c_leaves_it_running_and_says_how_to_end_it(up: Up, fl: Propeller, tmp_path: Path) -> None:
    """The case ``interrupted_run``."""
    file = tmp_path / "e.toml"
    file.write_text(f'image = "{fl.image()}"\nrounds = 10000\n[model]\nw = [0.0, 0.0, 0.0]\nb = 0.0\n')
    with subprocess.Popen(
        [*PROPELLER, "run", str(file), "--state", str(up.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert any("round  1" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "image is now program" in said
    assert "goes on without this terminal" in said
    [end] = [line.partition("propeller ")[2].split() for line in said.splitlines() if "end it:" in line]
    handle = fl.experiment(end[2])
    assert handle.status()["state"] == "running"
    events = handle.events()
    next(event for event in events if event.kind == "round_ended" and event.data["number"] > 1)
    done = propeller(*end)
    assert done.returncode == 0, done.stderr
    assert handle.wait().state == "stopped"
    assert all(one["state"] in {"completed", "failed"} for one in handle.history())


def test_a_device_that_does_not_exist_is_refused(up: Up, fl: Propeller, tmp_path: Path) -> None:
    """The case ``ghost_participant``, and a misspelling with the name that was meant."""
    file = tmp_path / "e.toml"
    for name, said in (("proplet-typo", "'proplet-typo'"), ("proplet-22", "did you mean 'proplet-2'")):
        file.write_text(f'image = "{fl.image()}"\nrounds = 2\nparticipants = ["{up.ids()[0]}", "{name}"]\n')
        done = propeller("run", str(file), "--state", str(up.folder))
        assert done.returncode == 1
        assert "selection.names" in done.stderr
        assert said in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: ")
    # By HTTP, where no client looks for the names.
    spec = {
        "program": fl.image(),
        "rounds": 2,
        "selection": {"names": ["proplet-1", "proplet-22"], "count": 1},
    }
    submitted = httpx.post(f"{up.url('coordinator')}/experiments", json=spec)
    assert submitted.status_code == 201, submitted.text
    with pytest.raises(ExperimentFailedError, match=r"'proplet-22'; did you mean 'proplet-2'"):
        fl.experiment(submitted.json()["id"]).wait(timeout=30)


def test_a_round_of_its_own_says_who_did_not_take_part(up: Up, fl: Propeller) -> None:
    fl.put_model(MODEL)
    known = up.ids()[0]
    result = fl.run_round(fl.image(), participants=[known, "proplet-typo"], k_of_n=1, timeout_s=30)
    assert list(result.skipped) == ["proplet-typo"]
    assert (result.failures, result.missing) == ({}, [])


def test_a_round_that_is_stuck_is_cancelled_and_goes_on_later(up: Up, fl: Propeller) -> None:
    state = ["--state", str(up.folder)]
    aggregator = psutil.Process(up.stack["processes"]["aggregator"])
    aggregator.suspend()
    try:
        name = fl.start_round(fl.image())
        wait_until(lambda: {one["round_id"]: one["state"] for one in fl.rounds()}[name] == "aggregating")
        cancelled = propeller("round", "cancel", name, *state)
        assert (cancelled.returncode, cancelled.stdout) == (0, f"{name} is cancelled\n"), cancelled.stderr
        again = propeller("round", "cancel", name, *state)
        assert (again.returncode, f"round {name} cannot be cancelled: it is failed" in again.stderr) == (
            1,
            True,
        )
    finally:
        aggregator.resume()
    with pytest.raises(PropellerError, match="cancelled by "):
        fl.wait_round(name)
    retried = propeller("round", "retry", name, *state)
    assert retried.stdout == f"{name} is aggregated again\n", retried.stderr
    assert len(fl.wait_round(name).updates) == 3
    audit = propeller("audit", "show", "--service", "coordinator", "--json", *state).stdout
    assert f"/rounds/{name}/cancel" in audit


def test_followed_listed_and_compared_by_command(up: Up, fl: Propeller) -> None:
    ids = [fl.run(experiment(fl, rounds=2, name=name)).id for name in ("one", "two")]
    state = ("--state", str(up.folder))
    for one in ids:
        done = propeller("experiment", "follow", one, *state)
        assert done.returncode == 0, done.stderr
        assert "round  2  updates 3/3" in done.stdout
    listed = json.loads(propeller("experiments", "--only", "completed", "--json", *state).stdout)
    assert {one["id"] for one in listed} >= set(ids)
    compared = json.loads(
        propeller("experiment", "compare", *ids, "--metric", "loss", "--json", *state).stdout
    )
    assert [sorted(one["experiments"]) for one in compared] == [sorted(ids)]
    devices = propeller("experiment", "history", ids[0], "--devices", *state).stdout
    assert [line.split()[2] for line in devices.splitlines()[1:]] == [
        "proplet-1",
        "proplet-2",
        "proplet-3",
    ] * 2
    for verb in ("show", "history"):
        assert ids[0][:3] in propeller("experiment", "show", ids[0], *state).stdout
        assert propeller("experiment", verb, ids[0], *state).returncode == 0


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        ("sdk.py", r"evaluate 6: \{.*\nproduction is v\d+: accuracy 0\.9\d+ on data that no device has\n$"),
        (
            "sdk_async.py",
            r"round 4, loss 0\.\d+\n.*best: lr [\d.]+, loss 0\.\d+\n\d+ experiments still run\n$",
        ),
    ],
)
def test_an_example_in_python(up: Up, script: str, shown: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / script), str(up.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(shown, done.stdout, re.DOTALL), done.stdout


def test_a_user_where_services_want_to_know_who_calls(up: Up, tmp_path: Path) -> None:
    port, identity = free_port(), up.stack["services"]["identity"]["users"]
    environment = {
        "REGISTRY_PORT": str(port),
        "MODELS_DIR": str(tmp_path),
        "PROPELLER_IDENTITY_URL": identity,
        "PROPELLER_DOMAIN_ID": up.stack["domain_id"],
    }
    urls = {"model_registry": f"http://127.0.0.1:{port}", "identity": identity}
    admin = up.stack["admin"]
    with start_service("model-registry", environment, port, tmp_path / "log"):
        with Propeller(**urls) as fl:  # who runs it is its operator, and needs no name
            assert fl.versions() == [0]
        with Propeller(**urls, user=admin["username"], password=admin["password"]) as fl:
            assert fl.model(fl.put_model(MODEL))["w"].shape == (3,)
        with (
            Propeller(**urls, user=admin["username"], password="not this one") as fl,
            pytest.raises(UnauthenticatedError, match="cannot log in"),
        ):
            fl.versions()
