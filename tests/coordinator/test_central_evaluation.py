"""Evaluations by the coordinator itself: real Wasm in its sandbox, a real registry of programs and a real data store."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from propeller.coordinator.settings import CoordinatorSettings
from propeller.data_store.api import create_api
from propeller.data_store.service import DataStore
from propeller.errors import StartError
from propeller.native_program import NativeProgram
from propeller.oci.client import RegistryClient
from propeller.oci.reference import DefaultRegistry, Reference
from propeller.oci.signers import Signers
from propeller.oci.signing import SigningKey
from propeller.process.settings import SettingsError
from propeller.program_host.native_programs import NativePrograms
from propeller.protocol.requirements import Requirements
from propeller.protocol.topics import Channel
from support.coordinator import Peers, client, coordinating, environment, process, serving
from support.experiments import (
    FakeFleet,
    answering,
    events,
    history,
    in_state,
    spec,
    submit,
    variables,
)
from support.guests import command
from support.native_programs import interpreter
from support.net import eventually
from support.python_programs import COMPILED, TEMPLATE, built
from support.registries import embedded

pytestmark = pytest.mark.timeout(180)

CENTRAL = {"on": "central", "dataset": "test"}
SAY = "(drop (call $write (i32.const 1) (i32.const 64) (i32.const {size})))"

Push = Callable[[bytes], Awaitable[str]]


def saying(fields: dict[str, Any] | str) -> bytes:
    """A program that leaves a text, whatever it is asked."""
    text = fields if isinstance(fields, str) else json.dumps(fields)
    return command(SAY.format(size=len(text)), data=text.replace('"', '\\"'))


def measured(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "round_id": f"e.e{number}",
        "proplet_id": "coordinator",
        "num_samples": 4,
        "metrics": {"loss": 0.25},
        **fields,
    }


@pytest.fixture
def channel(tmp_path: Path) -> Channel:
    return Channel("d-1", f"c-{tmp_path.name}"[:100])


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[str]:
    """A registry's."""
    async with embedded(tmp_path / "artifacts") as address:
        yield address


@pytest.fixture
async def push(host: str) -> AsyncIterator[Push]:
    """Puts a program into the registry; gives the reference by digest."""
    async with RegistryClient() as registry:

        async def push(wasm: bytes) -> str:
            reference = Reference.parse(f"{host}/mine:v1")
            await registry.push(reference, wasm)
            return f"{host}/mine@{(await registry.resolve(reference)).digest}"

        yield push


@pytest.fixture
async def data_store(tmp_path: Path) -> AsyncIterator[str]:
    async with serving(create_api(DataStore(tmp_path / "datasets"))) as url:
        yield url


@pytest.fixture
def env(
    tmp_path: Path, peers: tuple[Peers, str], broker_port: int, channel: Channel, data_store: str, host: str
) -> dict[str, str]:
    mqtt = variables(broker_port, channel)
    return environment(
        tmp_path / "coordinator",
        peers[1],
        DATA_STORE_URL=data_store,
        COORDINATOR_PROGRAM_CACHE=str(COMPILED),
        COORDINATOR_ALLOWED_REGISTRIES=host,
        **mqtt,
    )


@pytest.fixture
async def http(env: dict[str, str], broker_port: int, channel: Channel) -> AsyncIterator[httpx.AsyncClient]:
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        keep_program(fleet)
        yield http


def keep_program(fleet: FakeFleet) -> None:
    """Have the rounds run the program that the experiment names."""
    fleet.choose = lambda start: {"participants": ["p-1", "p-2"], "program": start["task_wasm_image"]}


async def put_dataset(data_store: str, samples: list[dict[str, Any]]) -> None:
    async with httpx.AsyncClient(trust_env=False) as store:
        answer = await store.post(f"{data_store}/datasets/test", json={"data": samples})
        assert answer.status_code == 201, answer.text


async def test_what_the_program_measures_is_in_the_history(
    http: httpx.AsyncClient, push: Push, data_store: str
) -> None:
    await put_dataset(data_store, [{"x": [1, 2, 3], "y": 1}, {"x": [0, 1, 0], "y": 0}])
    program = await push(built(TEMPLATE).read_bytes())
    split = {"split": {"holdout": 0.5}}  # of devices' data: all of the data set is used
    fields = {
        "evaluate": {**CENTRAL, "every": 2},
        "stop": {"metric": "loss"},
        "data": split,
        "timeout_s": 140,
    }
    await submit(http, program=program, rounds=2, **fields)
    found = await in_state(http, "completed", "failed", timeout=150)
    assert (found["state"], found["reason"]) == ("completed", None)
    rounds = await history(http)
    assert [(one["round_id"], one["kind"]) for one in rounds] == [
        ("e.1", "train"),
        ("e.2", "train"),
        ("e.e2", "evaluate"),
    ]
    last = rounds[-1]
    assert (last["participants"], last["num_samples"], last["base_version"]) == (["coordinator"], 2, 2)
    assert set(last["metrics"]) == {"loss", "accuracy"}
    assert last["updates"][0]["metrics"] == last["metrics"]
    assert found["best"] == {"version": 2, "metric": "loss", "value": last["metrics"]["loss"]}
    told = [name for _seq, name, data in await events(http) if data.get("round_id") == "e.e2"]
    assert told[:2] == ["round_started", "update"]


@pytest.mark.parametrize(
    ("wasm", "limits", "named"),
    [
        (command("(call $proc_exit (i32.const 3))"), None, "the program exited with code 3"),
        (saying("hello"), None, "not an evaluation: .*it begins 'hello'"),
        (saying(measured(update={"w": [1]})), None, "update: the task only evaluates"),
        (saying(measured(metrics={})), None, "metrics: an evaluation has one or more"),
        (
            saying(measured(metrics={"loss": "low"})),
            None,
            "metrics: .* none that is a finite number: 'loss' is text",
        ),
        (saying(measured(round_id="other")), None, "names the round_id 'other'"),
        (command("(loop $l (br $l))"), {"wall_time_s": 0.2}, "wall_time_s: over the limit of 0.2 s"),
    ],
)
async def test_what_goes_wrong_is_the_reason_of_the_experiments_end(
    http: httpx.AsyncClient,
    push: Push,
    data_store: str,
    wasm: bytes,
    limits: dict[str, float] | None,
    named: str,
) -> None:
    await put_dataset(data_store, [])
    await submit(http, program=await push(wasm), rounds=1, evaluate=CENTRAL, retries=0, limits=limits)
    found = await in_state(http, "completed", "failed")
    assert found["state"] == "failed"
    assert re.search(named, found["reason"]), found["reason"]


async def test_a_program_that_nobody_has_signed_who_is_believed(
    env: dict[str, str], tmp_path: Path, broker_port: int, channel: Channel, push: Push, data_store: str
) -> None:
    key = SigningKey.make()
    key.write(tmp_path / "acme.key", tmp_path / "acme.pub", b"")
    env["COORDINATOR_SIGNERS"] = str(tmp_path / "acme.pub")
    await put_dataset(data_store, [])
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        keep_program(fleet)
        program = await push(saying(measured()))
        await submit(http, program=program, rounds=1, evaluate=CENTRAL, retries=0)
        found = await in_state(http, "completed", "failed")
        assert "must be signed: it has no signature (believed: acme)" in found["reason"]
        assert "the coordinator's COORDINATOR_SIGNERS names who is believed" in found["reason"]


NATIVE = """
@train
def fit(model, data, hyperparams, ctx):
    return Update(model, len(data))


@evaluate
def score(model, data, hyperparams, ctx):
    import os, sys
    for file in sys.argv[1:] + FILES:
        try:
            raise AssertionError(open(file).read())
        except PermissionError:
            pass
    return Evaluation(len(data), {"mean": float(data.x.mean()), "variables": float("COORDINATOR_STATE" in os.environ)})
"""


def native(*, files: tuple[str, ...] = (), dependencies: tuple[str, ...] = ()) -> bytes:
    """A native program that measures, and fails if it can read one of some files."""
    source = f"from propeller.program import Evaluation, Update, evaluate, train\nFILES = {list(files)!r}\n{NATIVE}"
    return NativeProgram("mine", {"mine": source}, ("train", "evaluate"), "", dependencies).encode()


@pytest.fixture
def native_env(env: dict[str, str], host: str) -> dict[str, str]:
    env["COORDINATOR_NATIVE_PYTHON"] = str(interpreter().command)
    env["COORDINATOR_NATIVE_REPOSITORIES"] = f"ghcr.io/acme/*, {host}/mine"
    return env


async def test_a_native_program_is_evaluated_where_the_owner_allows_it(
    native_env: dict[str, str],
    tmp_path: Path,
    broker_port: int,
    channel: Channel,
    push: Push,
    data_store: str,
) -> None:
    (tmp_path / "coordinator").mkdir(exist_ok=True)
    secret = tmp_path / "coordinator" / "secret"
    secret.write_text("secret")
    await put_dataset(data_store, [{"x": [1, 2], "y": 1}, {"x": [3, 4], "y": 0}])
    async with coordinating(native_env) as http, answering(http, broker_port, channel) as fleet:
        keep_program(fleet)
        program = await push(native(files=(str(secret), "/etc/passwd"), dependencies=("numpy>=1.20",)))
        await submit(http, program=program, rounds=1, evaluate=CENTRAL, retries=0)
        found = await in_state(http, "completed", "failed", timeout=60)
        assert (found["state"], found["reason"]) == ("completed", None)
        last = (await history(http))[-1]
    assert (last["participants"], last["num_samples"]) == (["coordinator"], 2)
    assert last["metrics"] == {"mean": 2.5, "variables": 0.0}


@pytest.mark.parametrize(
    ("changed", "dependencies", "reason"),
    [
        (
            {"COORDINATOR_NATIVE_PYTHON": None, "COORDINATOR_NATIVE_REPOSITORIES": None},
            (),
            r"evaluate.on: the coordinator evaluates native programs where .* sets COORDINATOR_NATIVE_PYTHON, and it is not set .*: evaluate on devices",
        ),
        (
            {"COORDINATOR_NATIVE_REPOSITORIES": "ghcr.io/acme/*"},
            (),
            r"native programs of [\d.:]+/mine do not run here, only those of ghcr.io/acme/\* \(COORDINATOR_NATIVE_REPOSITORIES\)",
        ),
        (
            {},
            ("no-such-package>=2",),
            r"cannot run it: it lacks no-such-package>=2\. Install that there, or name another interpreter \(COORDINATOR_NATIVE_PYTHON\)",
        ),
    ],
    ids=["not switched on", "another repository", "packages"],
)
async def test_a_native_program_that_is_not_evaluated(
    native_env: dict[str, str],
    broker_port: int,
    channel: Channel,
    push: Push,
    data_store: str,
    changed: dict[str, str | None],
    dependencies: tuple[str, ...],
    reason: str,
) -> None:
    env = {name: value for name, value in {**native_env, **changed}.items() if value is not None}
    await put_dataset(data_store, [])
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        keep_program(fleet)
        program = await push(native(dependencies=dependencies))
        await submit(http, program=program, rounds=1, evaluate=CENTRAL, retries=0)
        found = await in_state(http, "completed", "failed", timeout=60)
    assert found["state"] == "failed"
    assert re.search(reason, found["reason"]), found["reason"]


@pytest.mark.parametrize(
    ("changed", "dependencies", "reason"),
    [
        (
            {"COORDINATOR_NATIVE_PYTHON": None, "COORDINATOR_NATIVE_REPOSITORIES": None},
            [],
            "COORDINATOR_NATIVE_PYTHON, and it is not set",
        ),
        ({}, ["no-such-package>=2"], "it lacks no-such-package>=2"),
        ({}, ["numpy"], None),
    ],
)
async def test_what_its_artifact_says_is_looked_at_before_the_first_round(
    native_env: dict[str, str],
    broker_port: int,
    channel: Channel,
    push: Push,
    data_store: str,
    changed: dict[str, str | None],
    dependencies: list[str],
    reason: str | None,
) -> None:
    env = {name: value for name, value in {**native_env, **changed}.items() if value is not None}
    await put_dataset(data_store, [{"x": [1, 2], "y": 1}])
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        program = await push(native())
        fleet.choose = lambda _start: {
            "participants": ["p-1", "p-2"],
            "program": program,
            "requirements": {"dependencies": dependencies},
        }
        await submit(http, program=program, rounds=1, evaluate=CENTRAL, retries=0)
        found = await in_state(http, "completed", "failed", timeout=60)
        rounds = [(one["kind"], one["state"]) for one in await history(http)]
    if reason is None:
        assert (found["state"], rounds) == ("completed", [("train", "completed"), ("evaluate", "completed")])
    else:
        assert reason in found["reason"]
        assert (found["state"], rounds) == ("failed", [("train", "failed")])


def test_repositories_without_an_interpreter(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**env, "COORDINATOR_NATIVE_REPOSITORIES": "ghcr.io/*"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        SettingsError, match=r"COORDINATOR_NATIVE_PYTHON.*name the interpreter that runs them, or unset"
    ):
        CoordinatorSettings.load()


DEFAULT = DefaultRegistry.parse("http://local:5000/ours")


def allowed(repositories: str, signers: str = "") -> NativePrograms:
    believed = Signers.read(signers, "coordinator")
    return NativePrograms.find(believed, interpreter().command, repositories, DEFAULT, [])


@pytest.mark.parametrize("signers", ["", " "])
def test_somebody_must_be_named_whose_native_programs_run(signers: str) -> None:
    with pytest.raises(
        StartError, match="COORDINATOR_NATIVE_PYTHON: say whose native programs the coordinator runs"
    ):
        allowed(" , ", signers)


@pytest.mark.parametrize(
    "pattern", ["http://local:5000/*", "GHCR.io/acme/*", "acme", "localhost:5000"], ids=str
)
def test_a_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(
        StartError, match=r"COORDINATOR_NATIVE_REPOSITORIES: .* matches no repository: write its registry"
    ):
        allowed(f"ghcr.io/acme/*, {pattern}")


def test_a_kernel_that_does_not_confine_native_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("propeller.program_host.native_programs.available_protections", lambda: ("rlimits",))
    with pytest.raises(
        StartError, match=r"COORDINATOR_NATIVE_PYTHON: this kernel .* lacks landlock, seccomp: unset it"
    ):
        allowed("*")


@pytest.mark.parametrize(
    ("pattern", "reference", "runs"),
    [
        ("local:5000/ours/*", f"mine@sha256:{'0' * 64}", True),
        ("local:5000/ours/*", "http://local:5000/ours/mine:v1", True),
        ("local:5000/ours/*", "local:5000/other/mine:v1", False),
        ("local:5000/ours/*", "docker.io/ours/mine", False),
        ("[::1]:5000/*", "[::1]:5000/mine:v1", True),
        ("[::1]:5000/*", "1:5000/mine:v1", False),
        ("*", "ghcr.io/acme/mine", True),
    ],
)
def test_whose_native_programs_run(pattern: str, reference: str, runs: bool) -> None:
    reason = allowed(pattern).explain(reference, Requirements())
    assert (reason is None) == runs, reason


async def test_a_data_set_that_is_not_there(http: httpx.AsyncClient, data_store: str) -> None:
    missing = "evaluate.dataset: the data store has no data set 'test'; POST one to /datasets/test"
    for route in ("/experiments/check", "/experiments"):
        answer = await http.post(route, json=spec(evaluate=CENTRAL))
        assert (answer.status_code, answer.json()["error"]) == (404, missing)
    # One that is stored before it is submitted is asked for with this.
    brought = await http.post("/experiments/check?brings_dataset=true", json=spec(evaluate=CENTRAL))
    assert brought.status_code == 200
    await put_dataset(data_store, [])
    assert (await http.post("/experiments/check", json=spec(evaluate=CENTRAL))).status_code == 200


async def test_a_data_set_that_is_removed_while_it_runs(
    env: dict[str, str], tmp_path: Path, broker_port: int, channel: Channel, push: Push, data_store: str
) -> None:
    def choose(start: dict[str, Any]) -> dict[str, Any]:
        (tmp_path / "datasets" / "test.json").unlink(missing_ok=True)
        return {"participants": ["p-1", "p-2"], "program": start["task_wasm_image"]}

    await put_dataset(data_store, [])
    async with coordinating(env) as http, answering(http, broker_port, channel) as fleet:
        fleet.choose = choose
        program = await push(saying(measured()))
        await submit(http, program=program, rounds=1, evaluate=CENTRAL, retries=1)
        found = await in_state(http, "completed", "failed")
        _train, first, second = await history(http)
    assert "the evaluation after round 1 failed 2 times" in found["reason"]
    assert "evaluate.dataset: the data store has no data set 'test'; POST one to" in found["reason"]
    assert [one["attempt"] for one in (first, second)] == [1, 2]
    assert first["failures"][0]["proplet_id"] == "coordinator"


async def test_it_is_stopped_with_the_experiment(
    http: httpx.AsyncClient, push: Push, data_store: str
) -> None:
    await put_dataset(data_store, [])
    await submit(http, program=await push(command("(loop $l (br $l))")), rounds=1, evaluate=CENTRAL)

    async def evaluation() -> str | None:
        last = (await history(http))[-1]
        return str(last["state"]) if last["kind"] == "evaluate" else None

    async def is_in(state: str) -> bool:
        return await evaluation() == state

    await eventually(lambda: is_in("collecting"), timeout=30)
    assert (await http.post("/experiments/e/stop")).status_code == 202
    await in_state(http, "stopped")
    await eventually(lambda: is_in("failed"), timeout=30)


async def test_without_a_data_store_it_is_refused(
    tmp_path: Path, peers: tuple[Peers, str], broker_port: int, channel: Channel
) -> None:
    env = environment(tmp_path, peers[1], **variables(broker_port, channel))
    async with coordinating(env) as http:
        answer = await http.post("/experiments", json=spec(evaluate=CENTRAL))
    assert answer.status_code == 400
    assert "evaluate.on: central evaluation needs a data store: set DATA_STORE_URL" in answer.json()["error"]


async def test_kill_9_in_the_middle_does_it_again(
    env: dict[str, str], tmp_path: Path, broker_port: int, channel: Channel, push: Push, data_store: str
) -> None:
    """The data set is asked for, and not given before the coordinator was killed."""
    await put_dataset(data_store, [])
    asked, gate = asyncio.Event(), asyncio.Event()

    async def answer(request: Request) -> Response:
        if "if-none-match" in request.headers:  # whether it is there, before the experiment begins
            return Response(status_code=304)
        asked.set()
        await gate.wait()
        async with httpx.AsyncClient(trust_env=False) as store:
            found = await store.get(f"{data_store}{request.url.path}")
        return Response(found.content, found.status_code)

    waiting_store = Starlette(routes=[Route("/datasets/test", answer)])
    program = await push(saying(measured()))
    async with serving(waiting_store) as url:
        with process({**env, "DATA_STORE_URL": url}, tmp_path / "log") as coordinator:
            async with client(env) as http, answering(http, broker_port, channel) as fleet:
                keep_program(fleet)
                await submit(http, program=program, rounds=1, evaluate=CENTRAL, retries=0)
                await asyncio.wait_for(asked.wait(), 60)
                await asyncio.to_thread(coordinator.kill)
                gate.set()
                await asyncio.to_thread(coordinator.start)
                with contextlib.suppress(httpx.TransportError):  # of the killed process's connection
                    await history(http)
                found = await in_state(http, "completed", "failed")
                assert (found["state"], found["reason"]) == ("completed", None)
                assert (await history(http))[-1]["metrics"] == {"loss": 0.25}
