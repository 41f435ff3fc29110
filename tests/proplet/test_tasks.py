"""Tasks from start to result: real broker, real sandbox, scripted manager, proxy and services."""

import base64
import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from propeller.process.files import sync_folder
from propeller.proplet import device_states, large_files
from propeller.proplet.device_states import DeviceStates
from propeller.proplet.errors import TaskError
from propeller.proplet.inputs import (
    COORDINATOR,
    DATA_STORE,
    MODEL_REGISTRY,
    InputFetcher,
    ServiceClients,
)
from propeller.proplet.large_files import LargeFiles
from propeller.proplet.updates import UpdateSender
from propeller.protocol.models import SentModel
from propeller.protocol.topics import Kind
from propeller.wasm.task_inputs import TaskInputs
from support.net import eventually
from support.programs import echo
from support.proplet import MODEL, World, safetensors

MODEL_URI = "fl/models/global_model_v0"
FULL_DISK = Path("/dev/full")
Logged = Callable[[], list[dict[str, Any]]]


def update(me: str, round_id: str = "r-1", **fields: Any) -> dict[str, Any]:
    return {
        "round_id": round_id,
        "proplet_id": me,
        "base_model_uri": MODEL_URI,
        "num_samples": 64,
        "metrics": {"loss": 0.5},
        "update": {"w": [1.0, 2.0, 3.0], "b": 1.0},
        **fields,
    }


def federated(me: str, round_id: str = "r-1", **env: str) -> dict[str, Any]:
    reply = json.dumps(update(me, round_id))
    return {
        "name": f"fl-round-{round_id}-{me}",
        "env": {"ROUND_ID": round_id, "MODEL_URI": MODEL_URI, "REPLY": reply, **env},
    }


def logged(log_lines: Logged, event: str, task_id: str) -> bool:
    """Whether something was logged about a task."""
    return any(line["event"] == event and line.get("task_id") == task_id for line in log_lines())


def accepted(world: World) -> int:
    """How many tasks the proplet has accepted and not reported."""
    return len(list((world.folder / "outbox").glob("*.json")))


async def test_a_federated_task_delivers_its_update(world: World, log_lines: Logged) -> None:
    me = await world.join()
    task = await world.peers.start(me, **federated(me, SAY="DEBUG: Initial model\nDEBUG: Final model"))
    result = await world.peers.result_of(task)
    assert result["error"] is None
    assert world.services.updates == [update(me)]
    assert result["results"] == {
        "task_id": task,
        "round_id": "r-1",
        "proplet_id": me,
        "num_samples": 64,
        "update_b64": "",
        "format": "f32-delta",
        "metrics": {"loss": 0.5},
    }
    lines = {line["event"]: line for line in log_lines()}
    for phrase in (
        "Requesting binary from registry: registry.test/echo:latest",
        "Assembled binary",
        "Executing task",
        f"Task {task} completed successfully",
        f"Fetching dataset from Local Data Store: {world.services.url}/datasets/{me}",
        "Successfully fetched dataset with 64 samples and passed to client",
        "DEBUG: Final model",
    ):
        assert lines[phrase]["task_id"] == task
        assert lines[phrase]["round_id"] == "r-1"
    assert lines["Assembled binary"]["bytes"] == len(echo())


async def test_an_evaluation_goes_to_the_coordinator_without_an_update(world: World) -> None:
    me = await world.join()
    evaluated = {name: value for name, value in update(me).items() if name != "update"}
    start = federated(me, FL_MODE="evaluate", REPLY=json.dumps(evaluated))
    result = await world.peers.result_of(await world.peers.start(me, **start))
    assert (result["error"], result["results"]["metrics"]) == (None, {"loss": 0.5})
    assert world.services.updates == [evaluated]


async def test_a_program_that_trains_where_it_should_evaluate_is_told_so(world: World) -> None:
    me = await world.join()
    result = await world.peers.result_of(await world.peers.start(me, **federated(me, FL_MODE="evaluate")))
    assert result["error"].startswith("update: the task only evaluates")
    assert world.services.updates == []


def experiment_task(me: str, number: int, **env: str) -> dict[str, Any]:
    """A task of an experiment's round, whose program adds its round's number to what it keeps."""
    round_id = f"e-1.{number}"
    start = federated(me, round_id, EXPERIMENT_ID="e-1", FL_ROUND=str(number), KEEP=f"{number} ")
    start["env"] |= env
    return start


async def test_device_state_goes_from_round_to_round(world: World, log_lines: Logged) -> None:
    """It is kept when the coordinator has the update, and is as it was when the task has failed."""
    me = await world.join()

    async def run(number: int, **env: str) -> tuple[Any, str]:
        task = await world.peers.start(me, **experiment_task(me, number, **env))
        result = await world.peers.result_of(task)
        kept = [
            line["event"]
            for line in log_lines()
            if line.get("task_id") == task and line["component"] == "task"
        ]
        return result["error"], kept[kept.index("Executing task") + 1].strip()

    assert await run(1) == (None, "")
    assert await run(2) == (None, "1")
    error, found = await run(3, FAIL="1")
    assert (error is not None, found) == (True, "1 2")
    error, found = await run(3, REPLY="no update")
    assert (error is not None, found) == (True, "1 2")
    world.services.answers.append(409)
    error, found = await run(3)
    assert (error, found) == ("the update was refused: coordinator answered 409: no, because", "1 2")
    assert await run(3) == (None, "1 2")
    assert await run(3) == (None, "1 2")  # the round is done again
    assert await run(4) == (None, "1 2 3")
    assert await run(4, EXPERIMENT_ID="e-2") == (None, "")

    async def over_mqtt(number: int) -> tuple[Any, str]:
        world.services.answers += [503] * 20
        ended = await run(number)
        world.services.answers.clear()
        return ended

    # Without an answer the coordinator is asked before the next round whether the update counts.
    assert await over_mqtt(5) == (None, "1 2 3 4")
    assert await run(6) == (None, "1 2 3 4 5")  # it does not know the round
    refused = {"state": "completed", "received": [{"proplet_id": "another"}]}
    assert await over_mqtt(7) == (None, "1 2 3 4 5 6")
    world.services.rounds["e-1.7"] = refused
    assert await run(8) == (None, "1 2 3 4 5 6")
    assert await over_mqtt(9) == (None, "1 2 3 4 5 6 8")
    world.services.rounds["e-1.9"] = {**refused, "received": [{"proplet_id": me}]}
    assert await run(10) == (None, "1 2 3 4 5 6 8 9")
    assert list((world.folder / "states").glob(".*")) == []


async def test_the_next_round_waits_until_the_state_of_the_last_one_is_kept(
    world: World, log_lines: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator has the update and starts it, while a slow disk has not taken what goes with the update."""
    disk = threading.Event()

    def slow(path: Path) -> None:
        if not path.name.startswith(".new-"):  # what the task left is on the disk before the update is sent
            disk.wait(30)
        sync_folder(path)

    monkeypatch.setattr(device_states, "sync_folder", slow)
    me = await world.join()
    first = await world.peers.start(me, **experiment_task(me, 1))
    await eventually(lambda: len(world.services.updates) == 1)
    second = await world.peers.start(me, **experiment_task(me, 2))
    fetched = "Successfully fetched dataset with 64 samples and passed to client"
    await eventually(lambda: logged(log_lines, fetched, second))
    assert not logged(log_lines, "Executing task", second)
    disk.set()
    for task in (first, second):
        assert (await world.peers.result_of(task))["error"] is None
    lines = [line["event"] for line in log_lines() if line.get("task_id") == second]
    assert lines[lines.index("Executing task") + 1].strip() == "1"


async def test_a_task_without_an_experiment_has_no_device_state(world: World) -> None:
    me = await world.join()
    result = await world.peers.result_of(
        await world.peers.start(me, **experiment_task(me, 1, EXPERIMENT_ID=""))
    )
    assert result["error"].startswith("the program exited with code 4")


async def test_a_proplet_or_an_experiment_can_do_without_device_state(world: World) -> None:
    me = await world.join(task_state_bytes=0)
    result = await world.peers.result_of(await world.peers.start(me, **experiment_task(me, 1)))
    assert result["error"].startswith("the program exited with code 4")


async def test_device_state_over_its_limit_fails_the_task(world: World) -> None:
    me = await world.join()
    start = experiment_task(me, 1, KEEP="x" * 100)
    result = await world.peers.result_of(await world.peers.start(me, **start, limits={"state_bytes": 99}))
    assert result["error"] == "state_bytes: over the limit of 99 bytes"


async def test_the_state_of_an_experiment_that_is_over_is_removed(world: World) -> None:
    world.services.experiments = {"e-1": "completed", "e-2": "running"}
    me = await world.join()
    for experiment in ("e-1", "e-2", "e-3"):
        task = await world.peers.start(me, **experiment_task(me, 1, EXPERIMENT_ID=experiment))
        assert (await world.peers.result_of(task))["error"] is None
    states = DeviceStates(world.folder / "states", 10**9, 1000)
    urls: dict[str, str | None] = {COORDINATOR: world.services.url}
    async with ServiceClients(urls) as services:
        await states.clean(UpdateSender(services, _no_mqtt).experiment_has_ended)
    left = {
        json.loads(file.read_bytes())["experiment_id"] for file in world.folder.glob("states/*/about.json")
    }
    assert left == {"e-2", "e-3"}


async def _no_mqtt(_round_id: str, _payload: bytes) -> None:
    raise AssertionError("nothing is published")


@pytest.mark.parametrize(("mode", "expected"), [("train", [1, 2, 3, 4]), ("evaluate", [0])])
async def test_a_split_gives_training_and_evaluation_their_parts(
    world: World, mode: str, expected: list[int]
) -> None:
    """The files, and the variable: programs in every language see it."""
    samples = [{"x": [number], "y": 0} for number in range(5)]
    inputs = await fetched(world, samples, FL_SPLIT='{"holdout": 0.2, "seed": 3}', FL_MODE=mode)
    document = json.loads(content(inputs.files["dataset.json"]))
    assert [sample["x"][0] for sample in document["data"]] == expected
    assert document["size"] == len(expected)
    assert json.loads(inputs.env["DATASET_DATA"]) == document


async def test_without_a_split_both_see_everything(world: World) -> None:
    samples = [{"x": [number], "y": 0} for number in range(5)]
    for mode in ("train", "evaluate"):
        inputs = await fetched(world, samples, FL_MODE=mode)
        assert json.loads(content(inputs.files["dataset.json"]))["data"] == samples


@pytest.mark.parametrize(
    ("samples", "split", "text"),
    [
        ([{"x": [1], "y": 0}], '{"holdout": 0.2}', "data.split: the dataset of me: 1 samples cannot be split: at least 2 are needed: give"),
        ([{"x": [1], "y": 0}] * 2, '{"holdout": 2}', "FL_SPLIT: holdout"),
        ([{"x": [1], "y": 0}] * 2, "no", "FL_SPLIT: Invalid JSON"),
    ],
)  # fmt: skip
async def test_a_split_that_cannot_be_made(world: World, samples: Any, split: str, text: str) -> None:
    with pytest.raises(TaskError, match=re.escape(text)):
        await fetched(world, samples, FL_SPLIT=split)


async def test_the_strategys_tensors_are_fetched_where_it_has_some(world: World) -> None:
    strategy = json.dumps({"name": "scaffold", "control": True, "tensors": True})
    world.services.states = {0: safetensors(b"abcd")}
    inputs = await fetched(world, [], MODEL_URI=MODEL_URI, FL_STRATEGY=strategy)
    assert inputs.files["strategy.safetensors"] == safetensors(b"abcd")
    for env in (
        {"FL_STRATEGY": '{"name": "fedprox", "mu": 0.1}'},
        {"FL_STRATEGY": strategy, "MODEL_URI": "v1"},
    ):
        world.services.models[1] = MODEL
        inputs = await fetched(world, [], **{"MODEL_URI": MODEL_URI, **env})
        assert "strategy.safetensors" not in inputs.files


async def test_a_model_that_came_with_the_start_is_not_asked_for(world: World) -> None:
    """Programs have it in the same forms as one that was fetched."""
    fetched_model = await fetched(world, [], MODEL_URI=MODEL_URI)
    sent = SentModel(text=json.dumps(MODEL), tensors=safetensors(b"abcd"))
    world.services.asked.clear()
    async with ServiceClients({DATA_STORE: world.services.url}) as services:
        fetcher = InputFetcher(services, "me", LargeFiles(world.folder / "fetched"))
        inputs = await fetcher.fetch({"ROUND_ID": "r-1", "MODEL_URI": MODEL_URI}, world.folder, sent)
    assert [path for path, _status in world.services.asked] == ["/datasets/me"]
    assert inputs.files["model.safetensors"] == safetensors(b"abcd")
    assert json.loads(content(inputs.files["model.json"])) == MODEL == json.loads(inputs.env["MODEL_DATA"])
    assert fetched_model.files.keys() - inputs.files.keys() == set()


async def test_services_that_are_away_for_a_while_are_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.proplet.inputs._RETRY_DELAYS_S", (0.01,))
    world.services.away = 30
    inputs = await fetched(world, [{"x": [1], "y": 0}], MODEL_URI=MODEL_URI)
    assert {"model.json", "dataset.json"} <= inputs.files.keys()
    assert sum(status == 503 for _path, status in world.services.asked) == 30


async def fetched(world: World, samples: Any, **env: str) -> TaskInputs:
    """The inputs of a task with this environment, on a device with these samples."""
    world.services.datasets["me"] = {"data": samples}
    urls: dict[str, str | None] = dict.fromkeys((MODEL_REGISTRY, DATA_STORE), world.services.url)
    async with ServiceClients(urls) as services:
        large = LargeFiles(world.folder / "fetched")
        fetcher = InputFetcher(services, "me", large)
        async with large.task_folder() as folder:
            first = await fetcher.fetch({"ROUND_ID": "r-1", **env}, folder)
            assert await fetcher.fetch({"ROUND_ID": "r-1", **env}, folder) == first  # from what is kept
            assert not folder.exists()
        return first


def content(file: bytes | Path) -> bytes:
    assert isinstance(file, bytes)
    return file


async def test_a_large_model_is_a_file_and_has_no_json(world: World) -> None:
    """It comes once while it is the newest; the folder of a task has its own link to it, and is removed."""
    models = world.services.models = {0: MODEL, 1: MODEL}
    world.services.tensors = {number: safetensors(bytes([number]) * 5_000_000) for number in models}
    urls: dict[str, str | None] = {MODEL_REGISTRY: world.services.url}
    large = LargeFiles(world.folder / "fetched")
    async with ServiceClients(urls) as services:
        fetcher = InputFetcher(services, "me", large)
        for version, status in ((0, 200), (0, 304), (1, 200), (0, 200)):
            world.services.asked.clear()
            async with large.task_folder() as folder:
                env = {"MODEL_URI": f"fl/models/global_model_v{version}"}
                inputs = await fetcher.fetch(env, folder)
                assert inputs.files == {"model.safetensors": folder / "model.safetensors"}
                assert (folder / "model.safetensors").read_bytes() == world.services.tensors[version]
            assert "MODEL_DATA" not in inputs.env
            assert (f"/models/{version}", status) in world.services.asked
            assert [file.name[:4] for file in (world.folder / "fetched").iterdir()] == ["kept"]
    LargeFiles(world.folder / "fetched")
    assert not (world.folder / "fetched").exists()


@pytest.mark.parametrize("fails", ["open", "write"])
async def test_a_large_model_for_which_there_is_no_room(
    world: World, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task fails with the folder and its setting; when there is room again, the next one runs."""
    me = await world.join()
    world.services.tensors[0] = safetensors(b"\0\0\x80\x3f" * 2_000_000)
    place = world.folder / "large"
    with monkeypatch.context() as broken:
        if fails == "open":
            place.touch()  # it is no folder
        else:
            broken.setattr(large_files, "_create", lambda _target: FULL_DISK.open("wb"))
        task = await world.peers.start(me, **federated(me, COPY="1"))
        error = (await world.peers.result_of(task))["error"]
        assert f"model.safetensors: it cannot be written to {place} (PROPLET_STATE): " in error
    if fails == "open":
        place.unlink()
    task = await world.peers.start(me, **federated(me, COPY="1"))
    assert (await world.peers.result_of(task))["error"] is None


async def test_a_manager_of_absmach_propeller_gets_a_copy_of_the_update(world: World) -> None:
    me = await world.join(compat=True)
    task = await world.peers.start(me, shared=True, **federated(me))
    result = await world.peers.result_of(task)
    assert json.loads(base64.b64decode(result["results"]["update_b64"])) == update(me)
    assert world.services.updates == [update(me)]


@pytest.mark.parametrize("count", [30_000, 2_000_000])
async def test_large_tensors_go_as_safetensors(world: World, count: int) -> None:
    """Those that are too large for memory from file to file, of which nothing is left but the model, for the next task."""
    me = await world.join()
    world.services.tensors[0] = safetensors(b"\0\0\x80\x3f" * count)
    start = federated(me, COPY="1")
    task = await world.peers.start(me, **start)
    assert (await world.peers.result_of(task))["error"] is None
    assert world.services.update_types == ["application/vnd.safetensors"]
    body = world.services.updates[0]
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    assert header["__metadata__"]["num_samples"] == "64"
    assert header["__metadata__"]["proplet_id"] == me
    assert body.endswith(b"\0\0\x80\x3f" * count)
    left = [file.name[:4] for file in world.folder.glob("large/*")]
    assert left == (["kept"] if count > 30_000 else [])


async def test_a_task_that_is_not_federated_gives_text_or_a_value(world: World) -> None:
    me = await world.join()
    text = await world.peers.start(me, env={"REPLY": "hello"})
    value = await world.peers.start(me, name="add", inputs=[3, 5])
    carried = await world.peers.start(
        me, image_url="", file=base64.b64encode(echo("carried")).decode(), env={"REPLY": "carried"}
    )
    for task, expected in ((text, "hello"), (value, "8"), (carried, "carried")):
        result = await world.peers.result_of(task)
        assert result.pop("usage")["total_ms"] > 0
        assert result == {"task_id": task, "proplet_id": me, "results": expected, "error": None}
    assert not any(path.startswith("/datasets") for path, _ in world.services.asked)
    assert [one["task_id"] for one in world.peers.messages(Kind.TASK_METRICS)] != []


async def test_a_compat_proplet_runs_only_its_own_starts(world: World) -> None:
    me, channel = await world.join(compat=True), world.peers.channel
    foreign = await world.peers.start(me, shared=True, proplet_id="other")
    nameless = {"id": "nameless", "name": "_start", "image_url": "x", "env": None, "inputs": None}
    await world.peers.publish(channel.topic(Kind.START), nameless)
    shared = await world.peers.start(me, shared=True, env={"REPLY": "shared"})
    everyone = await world.peers.start(me, "everyone", shared=True, proplet_id=None, broadcast=True)
    await world.peers.result_of(shared)
    await world.peers.result_of(everyone)
    assert world.peers.result(foreign) is None
    assert world.peers.result("nameless") is None


async def test_a_directed_proplet_hears_no_shared_start(world: World) -> None:
    me = await world.join()
    shared = await world.peers.start(me, shared=True, broadcast=True)
    own = await world.peers.start(me, env={"REPLY": "own"})
    assert (await world.peers.result_of(own))["results"] == "own"
    assert world.peers.result(shared) is None


async def test_a_start_of_s_is_run_once_though_it_comes_twice(world: World) -> None:
    me = await world.join(compat=True)
    base = {
        "cli_args": None,
        "daemon": False,
        "env": {"REPLY": "s"},
        "file": None,
        "id": "s-task",
        "image_url": "registry.test/echo:latest",
        "inputs": None,
        "monitoring_profile": None,
        "name": "_start",
        "state": 0,
    }
    topic = world.peers.channel.topic(Kind.START)
    await world.peers.publish(topic, {**base, "encrypted": False, "kbs_resource_path": ""})
    await world.peers.publish(topic, {**base, "proplet_id": me})
    assert (await world.peers.result_of("s-task"))["results"] == "s"
    assert len(world.peers.messages(Kind.PROPLET_RESULTS)) == 1
    # S tells only in the first message that a program is encrypted.
    await world.peers.publish(topic, {**base, "id": "secret", "encrypted": True, "kbs_resource_path": "k"})
    await world.peers.publish(topic, {**base, "id": "secret", "proplet_id": me})
    assert "encrypted programs are not supported" in (await world.peers.result_of("secret"))["error"]


async def test_a_running_task_is_not_started_again_a_finished_one_is(world: World) -> None:
    me = await world.join()
    task = await world.peers.start(me, env={"SPIN": "1"})
    await world.peers.start(me, task, env={"REPLY": "second"})
    await world.peers.publish(world.peers.channel.stop(me), {"id": task})
    assert "was stopped before completion" in (await world.peers.result_of(task))["error"]

    async def runs_again() -> bool:  # the stop may have come before both starts, and holds for a second then
        await world.peers.start(me, task, env={"REPLY": "third"})
        return bool((await world.peers.result_of(task))["results"] == "third")

    await eventually(runs_again)


async def test_a_stop_that_overtakes_its_start_holds(world: World, log_lines: Logged) -> None:
    me = await world.join()
    await world.peers.publish(world.peers.channel.stop(me), {"id": "overtaken"})
    await eventually(lambda: logged(log_lines, "stop of a task that is not here", "overtaken"))
    await world.peers.start(me, "overtaken", env={"SPIN": "1"})
    assert "was stopped before completion" in (await world.peers.result_of("overtaken"))["error"]


@pytest.mark.parametrize("when", ["running", "waiting", "fetching"])
async def test_stop_ends_a_task_at_once_and_reports_it(world: World, log_lines: Logged, when: str) -> None:
    me = await world.join(max_tasks=1)
    world.peers.silent = when == "fetching"
    first = await world.peers.start(me, env={"SPIN": "1"})
    task = await world.peers.start(me, env={"SPIN": "1"}) if when == "waiting" else first
    await eventually(
        {
            "running": lambda: logged(log_lines, "Executing task", task),
            "waiting": lambda: logged(log_lines, "Executing task", first) and accepted(world) == 2,
            "fetching": lambda: world.peers.requests,
        }[when]
    )
    begin = time.monotonic()
    await world.peers.publish(world.peers.channel.stop(me), {"id": task, "proplet_id": "other"})
    assert world.peers.result(task) is None
    await world.peers.publish(world.peers.channel.stop(me), {"id": task, "proplet_id": me})
    result = await world.peers.result_of(task)
    assert time.monotonic() - begin < 5  # far below the task's own end, which never comes
    assert result["error"] == f"Task {task} was stopped before completion"
    assert result["proplet_id"] == me


async def test_tasks_beyond_the_places_wait_in_order(world: World) -> None:
    me = await world.join(max_tasks=1)
    blocker = await world.peers.start(me, env={"SPIN": "1"})
    tasks = [await world.peers.start(me, env={"REPLY": str(number)}) for number in range(5)]
    await eventually(lambda: accepted(world) == 6)
    assert not world.peers.messages(Kind.PROPLET_RESULTS)
    await world.peers.publish(world.peers.channel.stop(me), {"id": blocker})
    await world.peers.result_of(tasks[-1])
    ended = [one["task_id"] for one in world.peers.messages(Kind.PROPLET_RESULTS)]
    assert ended == [blocker, *tasks]


async def test_a_daemon_is_reported_when_it_starts_and_runs_until_stopped(world: World) -> None:
    me = await world.join(max_tasks=1, task_wall_time=0.5)
    daemon = await world.peers.start(me, daemon=True, env={"SPIN": "1"})
    assert (await world.peers.result_of(daemon))["error"] is None
    spinning = await world.peers.start(me, env={"SPIN": "1"})
    assert "wall_time_s" in (await world.peers.result_of(spinning))["error"]  # which a daemon does not have
    one_more = await world.peers.start(me, daemon=True)
    assert "PROPLET_MAX_TASKS" in (await world.peers.result_of(one_more))["error"]
    beside = await world.peers.start(me, env={"REPLY": "beside"})
    assert (await world.peers.result_of(beside))["results"] == "beside"
    await world.peers.publish(world.peers.channel.stop(me), {"id": daemon})

    async def starts_again() -> bool:  # a stop is not acknowledged
        return (await world.peers.result_of(await world.peers.start(me, daemon=True)))["error"] is None

    await eventually(starts_again)
    assert len([one for one in world.peers.messages(Kind.PROPLET_RESULTS) if one["task_id"] == daemon]) == 1


async def test_limits_end_a_task_and_the_proplet_goes_on(world: World) -> None:
    me = await world.join(task_wall_time=0.3)
    spinning = await world.peers.start(me, env={"SPIN": "1"})
    assert "wall_time_s" in (await world.peers.result_of(spinning))["error"]
    failing = await world.peers.start(me, env={"SAY": "reading\nno labels\n", "FAIL": "1"})
    assert (await world.peers.result_of(failing))["error"] == "the program exited with code 3: no labels"
    good = await world.peers.start(me, env={"REPLY": "fine"})
    assert (await world.peers.result_of(good))["results"] == "fine"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"encrypted": True}, "encrypted programs are not supported"),
        ({"image_url": "", "file": None}, "one of image_url and file"),
        ({"image_url": "", "file": "***"}, "not valid base64"),
        ({"image_url": "", "file": "AAAA"}, "in the task's file"),
        ({"image_url": "registry.test/none:latest"}, "no such image"),
        ({"name": ""}, "name"),
        ({"inputs": {"a": 1}}, "inputs"),
        ({"name": "add", "inputs": [1]}, "takes 2"),
        ({"env": {"A=B": "x"}}, "env"),
        ({"env": {"A": "nul\0"}}, "env"),
    ],
)
async def test_a_start_that_cannot_run_is_answered(world: World, fields: dict[str, Any], reason: str) -> None:
    me = await world.join()
    task = await world.peers.start(me, **fields)
    result = await world.peers.result_of(task)
    assert reason in result["error"]
    assert result["results"] == ""
    assert result["proplet_id"] == me


async def test_what_a_federated_task_lacks_is_told(world: World, log_lines: Logged) -> None:
    me = await world.join()
    del world.services.datasets[me]
    no_data = await world.peers.start(me, **federated(me))
    assert "404 Not Found" in (await world.peers.result_of(no_data))["error"]
    world.services.datasets[me] = {"data": []}
    start = federated(me)
    start["env"]["MODEL_URI"] = "fl/models/global_model_v7"
    no_model = await world.peers.start(me, **start)
    assert "no such model" in (await world.peers.result_of(no_model))["error"]
    assert any(
        line["event"].startswith("Failed to fetch dataset from Local Data Store: HTTP 404")
        for line in log_lines()
    )
    assert world.services.updates == []


async def test_without_addresses_a_federated_task_says_what_to_set(world: World) -> None:
    me = await world.join(coordinator_url=None, model_registry_url=None)
    task = await world.peers.start(me, **federated(me))
    assert "COORDINATOR_URL is not set" in (await world.peers.result_of(task))["error"]
    task = await world.peers.start(me, **federated(me, COORDINATOR_URL=world.services.url))
    assert "MODEL_REGISTRY_URL is not set" in (await world.peers.result_of(task))["error"]
    urls = {"COORDINATOR_URL": world.services.url, "MODEL_REGISTRY_URL": world.services.url + "/"}
    task = await world.peers.start(me, **federated(me, **urls))
    assert (await world.peers.result_of(task))["error"] is None


async def test_a_program_that_prints_no_update_fails_by_name(world: World) -> None:
    me = await world.join()
    task = await world.peers.start(me, **federated(me, REPLY='{"round_id": "r-1"}'))
    error = (await world.peers.result_of(task))["error"]
    assert "proplet_id: Field required" in error
    assert world.services.updates == []


async def test_a_refusal_of_the_coordinator_is_final(world: World) -> None:
    me = await world.join()
    world.services.answers = [409]
    task = await world.peers.start(me, **federated(me))
    assert "answered 409: no, because" in (await world.peers.result_of(task))["error"]
    assert not world.peers.messages(Kind.UPDATE)


async def test_a_coordinator_that_stumbles_is_asked_again(world: World) -> None:
    me = await world.join()
    world.services.answers = [503, 502]
    task = await world.peers.start(me, **federated(me))
    assert (await world.peers.result_of(task))["error"] is None
    assert len(world.services.updates) == 1


async def test_a_coordinator_that_is_away_gets_the_update_over_mqtt(world: World) -> None:
    me = await world.join(coordinator_url="http://127.0.0.1:1")
    sent: list[bytes] = []

    async def take(_topic: str, payload: bytes) -> None:
        sent.append(payload)

    await world.peers.session.unsubscribe(f"{world.peers.channel.prefix}/fl/#")
    await world.peers.session.subscribe(world.peers.channel.update("r-1", me), take)
    tasks = [await world.peers.start(me, **federated(me, **env)) for env in ({}, {"COPY": "1"})]
    for task in tasks:
        assert (await world.peers.result_of(task))["error"] is None
    text, tensors = sorted(sent, key=lambda body: body[:1] != b"{")
    assert json.loads(text) == update(me)
    assert b'"num_samples":"64"' in tensors


async def test_inputs_are_fetched_again_only_when_they_changed(world: World) -> None:
    me = await world.join()
    for number in range(2):
        await world.peers.result_of(await world.peers.start(me, **federated(me, f"r-{number}")))
    world.services.models[0] = {**MODEL, "b": 1.0}
    await world.peers.result_of(await world.peers.start(me, **federated(me, "r-3")))
    model = [status for path, status in world.services.asked if path == "/models/0"]
    data = [status for path, status in world.services.asked if path.startswith("/datasets")]
    assert model == [200, 304, 200]
    assert data == [200, 304, 304]


async def test_garbage_on_every_topic_changes_nothing(world: World) -> None:
    me, channel = await world.join(compat=True), world.peers.channel
    deep = b"[" * 100_000
    for topic in (
        channel.topic(Kind.START),
        channel.start(me),
        channel.topic(Kind.STOP),
        channel.stop(me),
        channel.answers(me),
        channel.topic(Kind.REGISTRY_CHUNK),
    ):
        for garbage in (
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff\xfe",
            deep,
            b'{"id": {}}',
            b'{"id": "../x"}',
            b'{"id": NaN}',
        ):
            await world.peers.publish(topic, garbage)
    traversal = {"id": "../../etc/passwd", "name": "_start", "image_url": "x", "proplet_id": me}
    await world.peers.publish(channel.start(me), traversal)
    task = await world.peers.start(me, env={"REPLY": "alive"})
    assert (await world.peers.result_of(task))["results"] == "alive"


async def test_a_task_asks_for_lower_limits_and_gets_no_higher_ones(world: World) -> None:
    me = await world.join(task_wall_time=30.0, task_stdout_bytes=2048)
    for asked, met in (
        ({"wall_time_s": 0.2, "fuel": 10**12}, "wall_time_s: over the limit of 0.2 s"),
        ({"fuel": 10_000}, "fuel: over the limit of 10000 instructions"),
        ({"module_bytes": 100}, "module_bytes: over the limit of 100 bytes"),
    ):
        task = await world.peers.start(me, limits=asked, env={"SPIN": "1"})
        assert (await world.peers.result_of(task))["error"] == met
    large = await world.peers.start(me, limits={"stdout_bytes": 10**6}, env={"REPLY": "x" * 4000})
    error = (await world.peers.result_of(large))["error"]
    assert error.startswith("stdout_bytes: over the limit of 2048 bytes (PROPLET_TASK_STDOUT_BYTES)")
    unknown = await world.peers.start(me, limits={"speed": 1})
    assert "limits: 'speed' is no limit" in (await world.peers.result_of(unknown))["error"]


async def test_proplets_of_one_machine_fetch_a_program_once(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "programs"
    both = [await world.join(state=tmp_path / name, cache=cache) for name in ("one", "two")]
    tasks = [await world.peers.start(me, env={"REPLY": "fine"}) for me in both]
    assert [(await world.peers.result_of(task))["results"] for task in tasks] == ["fine", "fine"]
    assert len([one for one in world.peers.requests if one.digest]) == 1
    assert not (tmp_path / "one" / "sandbox" / "programs").exists()


async def test_what_is_only_to_be_fetched_is_not_run_as_a_daemon_either(world: World) -> None:
    me = await world.join()
    for daemon in (False, True):
        fetched = await world.peers.start(me, prefetch=True, daemon=daemon, env={"FAIL": "1"})
        result = await world.peers.result_of(fetched)
        assert (result["error"], result["results"]) == (None, "the program is here and compiled")
    latent = await world.peers.start(me, prefetch=True, latent=True)
    assert "latent tasks are not supported" in (await world.peers.result_of(latent))["error"]


async def test_what_a_task_took_is_in_its_result_and_its_metrics(world: World) -> None:
    me = await world.join()
    stages = {"prepare_ms", "start_ms", "run_ms", "total_ms", "cpu_ms", "memory_peak_bytes"}
    trained = await world.peers.start(me, **federated(me), limits={"fuel": 10**9})
    usage = (await world.peers.result_of(trained))["usage"]
    assert stages | {"send_ms", "fuel", "compile_ms"} == set(usage)
    assert all(value > 0 for value in usage.values())
    failed = await world.peers.start(me, env={"FAIL": "1"})
    # Compiled once more, for what is not counted.
    assert stages | {"compile_ms"} == set((await world.peers.result_of(failed))["usage"])
    refused = await world.peers.start(me, image_url="registry.test/none:latest")
    assert "usage" not in await world.peers.result_of(refused)  # it did not run
    sent = await eventually(
        lambda: found if len(found := world.peers.messages(Kind.TASK_METRICS)) == 2 else None
    )
    assert sent is not None
    by_task = {one["task_id"]: one["metrics"] for one in sent}
    assert set(by_task) == {trained, failed}
    assert by_task[trained]["fuel"] == usage["fuel"]
    assert {"cpu_percent", "memory_bytes", "memory_percent", "uptime_seconds"} <= set(by_task[trained])
    assert by_task[trained]["memory_percent"] > 0
