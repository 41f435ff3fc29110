"""Rounds: started once each, over HTTP and MQTT, on the participants that can take part."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from propeller.protocol.topics import ROUND_START, Kind
from support.manager import FakeCoordinator, RunningManager, open_manager
from support.net import eventually

IMAGE = "ghcr.io/u/fl-client-wasm:latest"
MODEL = "fl/models/global_model_v0"
HYPERPARAMS = {"epochs": 1, "lr": 0.01, "batch_size": 16}


def experiment(round_id: str = "r-1", **fields: Any) -> dict[str, Any]:
    return {
        "experiment_id": f"exp-{round_id}",
        "round_id": round_id,
        "model_ref": MODEL,
        "participants": ["p1", "p2", "p3"],
        "hyperparams": HYPERPARAMS,
        "k_of_n": 3,
        "timeout_s": 60,
        "task_wasm_image": IMAGE,
        **fields,
    }


def round_start(round_id: str = "r-1", **fields: Any) -> dict[str, Any]:
    return {
        "round_id": round_id,
        "model_uri": MODEL,
        "task_wasm_image": IMAGE,
        "participants": ["p1", "p2", "p3"],
        "hyperparams": HYPERPARAMS,
        **fields,
    }


@pytest.fixture
async def fleet(fl_manager: RunningManager) -> RunningManager:
    await fl_manager.add_proplets("p1", "p2", "p3", directed=True)
    return fl_manager


async def post(manager: RunningManager, body: dict[str, Any]) -> httpx.Response:
    return await manager.http.post("/fl/experiments", json=body)


async def tasks(manager: RunningManager) -> list[dict[str, Any]]:
    return list((await manager.http.get("/tasks")).json()["tasks"])


async def test_an_experiment_configures_the_coordinator_and_launches_every_participant(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    with capture_logs() as logs:
        answer = await post(fleet, experiment())
    assert answer.status_code == 200
    assert answer.json() == {"experiment_id": "exp-r-1", "round_id": "r-1", "status": "configured"}
    (configured,) = coordinator.experiments
    assert configured == {**experiment(), "min_updates": 1}
    assert isinstance(configured["timeout_s"], int)

    await eventually(lambda: len(fleet.mqtt.received) == 4)
    for proplet_id in ("p1", "p2", "p3"):
        message = dict(fleet.mqtt.received)[f"{Kind.START}/{proplet_id}"]
        assert message["name"] == f"fl-round-r-1-{proplet_id}"
        assert message["proplet_id"] == proplet_id
        assert message["image_url"] == IMAGE
        assert message["env"] == {
            "ROUND_ID": "r-1",
            "MODEL_URI": MODEL,
            "HYPERPARAMS": '{"epochs":1,"lr":0.01,"batch_size":16}',
        }
    announced = dict(fleet.mqtt.received)[Kind.ROUND_START]
    assert (announced["round_id"], announced["model_uri"], announced["k_of_n"]) == ("r-1", MODEL, 3)
    assert [(task["state"], task["proplet_id"]) for task in await tasks(fleet)] == [
        (2, "p1"),
        (2, "p2"),
        (2, "p3"),
    ]
    launched = [log for log in logs if log["event"] == "launched task for FL round participant"]
    assert sorted(log["proplet_id"] for log in launched) == ["p1", "p2", "p3"]
    assert all(log["round_id"] == "r-1" and log["task_id"] for log in launched)


async def test_the_same_experiment_again_changes_nothing_and_another_one_is_refused(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    first = await post(fleet, experiment())
    again = await post(fleet, experiment())
    assert (again.status_code, again.json()) == (200, first.json())
    other = await post(fleet, experiment(k_of_n=2, hyperparams=None))
    assert other.status_code == 409
    assert "hyperparams" in other.json()["error"]
    assert "k_of_n" in other.json()["error"]
    assert len(coordinator.experiments) == 1
    assert len(await tasks(fleet)) == 3


@pytest.mark.parametrize("prefixed", [False, True])
async def test_a_round_starts_over_mqtt_with_its_quorum_and_timeout(
    fleet: RunningManager, coordinator: FakeCoordinator, prefixed: bool
) -> None:
    topic = Kind.ROUND_START if prefixed else ROUND_START
    round_id = f"r-{fleet.settings.channel_id}"
    await fleet.mqtt.publish(topic, round_start(round_id, k_of_n=2, timeout_s=30))
    await eventually(lambda: len(fleet.mqtt.starts()) == 3)
    assert coordinator.experiments[0]["k_of_n"] == 2
    assert coordinator.experiments[0]["timeout_s"] == 30
    assert coordinator.experiments[0]["participants"] == ["p1", "p2", "p3"]


async def test_what_s_senders_leave_out_is_filled_in(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    await fleet.mqtt.publish(Kind.ROUND_START, round_start(hyperparams=None))
    starts = await eventually(lambda: fleet.mqtt.starts() if len(fleet.mqtt.starts()) == 3 else None)
    assert starts is not None
    assert "HYPERPARAMS" not in starts[0]["env"]
    assert (coordinator.experiments[0]["k_of_n"], coordinator.experiments[0]["timeout_s"]) == (3, 60)


async def test_http_and_mqtt_at_the_same_time_start_a_round_once(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    rounds = [f"{fleet.settings.channel_id}-{number}" for number in range(5)]
    posts = [post(fleet, experiment(one)) for one in rounds for _ in range(4)]
    says = [
        fleet.mqtt.publish(topic, round_start(one))
        for one in rounds
        for topic in (ROUND_START, Kind.ROUND_START, ROUND_START, Kind.ROUND_START)
    ]
    answers, _ = await asyncio.gather(asyncio.gather(*posts), asyncio.gather(*says))
    assert {answer.status_code for answer in answers} == {200}
    # The marker round comes after all the others on both topics, which are taken in order.
    for number, topic in enumerate((ROUND_START, Kind.ROUND_START)):
        await fleet.mqtt.publish(topic, round_start(f"{fleet.settings.channel_id}-last-{number}"))
    await eventually(lambda: len(coordinator.experiments) == 7)
    await eventually(lambda: len(fleet.mqtt.starts()) == 21)
    names = [task["name"] for task in await tasks(fleet)]
    assert len(names) == len(set(names)) == 21


async def test_unknown_and_dead_participants_are_skipped_with_the_remedy(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    await fleet.mqtt.send_heartbeat("p3", status="offline")
    await eventually(lambda: _dead(fleet, "p3"))
    with capture_logs() as logs:
        answer = await post(fleet, experiment(participants=["p1", "p2", "p3", "proplet-1"], k_of_n=2))
    assert answer.status_code == 200
    skipped = answer.json()["skipped"]
    assert [one["proplet_id"] for one in skipped] == ["p3", "proplet-1"]
    assert "not alive" in skipped[0]["reason"]
    assert "client ids, not instance names" in skipped[1]["reason"]
    assert len(await tasks(fleet)) == 2
    assert (await post(fleet, experiment(participants=["p1", "p2", "p3", "proplet-1"], k_of_n=2))).json() == (
        answer.json()
    )
    assert coordinator.experiments[0]["participants"] == ["p1", "p2", "p3", "proplet-1"]
    warned = {log["event"]: log for log in logs if log["log_level"] == "warning"}
    not_found = warned["skipping participant: proplet not found"]
    assert (not_found["proplet_id"], not_found["round_id"]) == ("proplet-1", "r-1")
    assert "GET /proplets" in not_found["remedy"]
    assert warned["skipping participant: proplet is not alive"]["proplet_id"] == "p3"


async def _dead(manager: RunningManager, proplet_id: str) -> bool:
    return not await manager.is_alive(proplet_id)


@pytest.mark.parametrize("participants", [["proplet-1", "proplet-2", "proplet-3"], ["p1", "p2", "proplet-3"]])
async def test_a_round_that_cannot_reach_its_quorum_is_refused_and_not_configured(
    fleet: RunningManager, coordinator: FakeCoordinator, participants: list[str]
) -> None:
    answer = await post(fleet, experiment(participants=participants))
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert "proplet-3: proplet not found" in error
    assert "client ids, not instance names" in error
    assert coordinator.requests == []
    assert await tasks(fleet) == []
    # Nothing was started, so the same id may be used for the corrected experiment.
    assert (await post(fleet, experiment())).status_code == 200


async def test_hyperparameters_that_no_message_carries_are_refused_at_once(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    """A quote is two characters in a message."""
    for text in ("x" * 9_000_000, '"' * 3_000_000):
        answer = await post(fleet, experiment(hyperparams={"blob": text}))
        assert answer.status_code == 413
        assert answer.json()["error"].startswith("hyperparams: ")
        assert "MANAGER_MAX_MESSAGE_BYTES" in answer.json()["error"]
    assert coordinator.requests == []
    assert await tasks(fleet) == []
    assert (await post(fleet, experiment(hyperparams={"blob": "x" * 7_000_000}))).status_code == 200


async def test_who_sets_min_updates_may_start_with_fewer_than_the_quorum(fleet: RunningManager) -> None:
    body = experiment(participants=["p1", "p2", "gone"], min_updates=2)
    assert (await post(fleet, body)).status_code == 200
    assert len(await tasks(fleet)) == 2


async def test_over_mqtt_a_round_below_its_quorum_is_started_with_a_warning(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    with capture_logs() as logs:
        await fleet.mqtt.publish(Kind.ROUND_START, round_start("r-none", participants=["gone"]))
        await fleet.mqtt.publish(Kind.ROUND_START, round_start("r-few", participants=["p1", "gone"]))
        await eventually(lambda: len(fleet.mqtt.starts()) == 1)
    assert [one["round_id"] for one in coordinator.experiments] == ["r-few"]
    events = {log["event"]: log for log in logs if log["log_level"] == "warning"}
    assert "no participant" in events["round is not started"]["reason"]
    assert "fewer participants than k_of_n" in next(event for event in events if "quorum" in event)


BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"round_id": ""}, "round_id"),
    ({"round_id": "../x"}, "round_id"),
    ({"round_id": "a/b"}, "round_id"),
    ({"model_ref": ""}, "model_ref"),
    ({"task_wasm_image": None}, "task_wasm_image"),
    ({"participants": []}, "participants"),
    ({"participants": "p1"}, "participants"),
    ({"participants": ["p1", "p1"]}, "p1"),
    ({"participants": ["p1", "a b"]}, "participants"),
    ({"k_of_n": 4}, "k_of_n"),
    ({"k_of_n": -1}, "k_of_n"),
    ({"k_of_n": "many"}, "k_of_n"),
    ({"timeout_s": -1}, "timeout_s"),
    ({"timeout_s": 1e12}, "timeout_s"),
    ({"hyperparams": [1]}, "hyperparams"),
    ({"min_updates": 4}, "min_updates"),
)


async def test_what_outlives_its_round_is_stopped_and_other_tasks_run_on(
    broker_port: int, tmp_path: Path, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.manager.housekeeping.LATE_TASK_GRACE_S", 0.0)
    settings = {"coordinator_url": coordinator.url, "MANAGER_LIVELINESS_INTERVAL": "0.5"}
    async with open_manager(broker_port, tmp_path, **settings) as manager:
        await manager.add_proplets("p1", directed=True, liveliness_interval=60)
        alone = await manager.create_task(image_url=IMAGE, proplet_id="p1")
        assert (await manager.http.post(f"/tasks/{alone}/start")).status_code == 200
        for round_id, timeout_s in (("r-short", 0.1), ("r-long", 600)):
            fields = {"participants": ["p1"], "k_of_n": 1, "timeout_s": timeout_s}
            assert (await post(manager, experiment(round_id, **fields))).status_code == 200
        by_name = {task["name"]: task["id"] for task in await tasks(manager)}
        late = await manager.wait_for_state(by_name["fl-round-r-short-p1"], 4)
        assert late["error"].startswith("stopped: it still ran when its round ended at ")
        await eventually(lambda: f"{Kind.STOP}/p1" in dict(manager.mqtt.received))
        assert dict(manager.mqtt.received)[f"{Kind.STOP}/p1"]["id"] == late["id"]
        for task_id in (alone, by_name["fl-round-r-long-p1"]):
            assert (await manager.task(task_id))["state"] == 2


async def test_bad_experiments_are_named(fl_manager: RunningManager) -> None:
    for change, word in BAD:
        answer = await post(fl_manager, experiment(**change))
        assert answer.status_code == 400, change
        assert word in answer.json()["error"]


async def test_unknown_fields_are_named_and_not_passed_on(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    with capture_logs() as logs:
        answer = await post(fleet, experiment(timeout=5, kofn=2))
        await fleet.mqtt.publish(Kind.ROUND_START, round_start("r-2", model_ref=MODEL, k_of_n=2))
        await eventually(lambda: len(coordinator.experiments) == 2)
    assert (answer.status_code, answer.json()["ignored"]) == (200, ["kofn", "timeout"])
    assert coordinator.experiments[0] == {**experiment(), "min_updates": 1}
    warned = {log["round_id"]: log["fields"] for log in logs if "unknown fields" in log["event"]}
    assert warned == {"r-1": ["kofn", "timeout"], "r-2": ["model_ref"]}


async def test_the_coordinator_s_refusal_is_the_answer_and_nothing_is_launched(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    coordinator.refusal = (409, "round r-1 exists with another k_of_n")
    answer = await post(fleet, experiment())
    assert (answer.status_code, answer.json()) == (409, {"error": "round r-1 exists with another k_of_n"})
    coordinator.refusal = (500, "disk full")
    answer = await post(fleet, experiment())
    assert answer.status_code == 502
    assert "coordinator answered 500: disk full" in answer.json()["error"]
    assert await tasks(fleet) == []
    coordinator.refusal = None
    assert (await post(fleet, experiment())).status_code == 200


async def test_without_a_coordinator_fl_is_off_and_says_what_to_set(manager: RunningManager) -> None:
    http = manager.http
    answers = [
        await post(manager, experiment()),
        await http.get("/fl/task?round_id=r-1"),
        await http.post("/fl/update", json={}),
        await http.post("/fl/update_cbor", content=b"\xa0", headers={"content-type": "application/cbor"}),
        await http.get("/fl/rounds/r-1/complete"),
        await http.get("/fl/rounds/next"),
    ]
    for answer in answers:
        assert answer.status_code == 503
        assert "COORDINATOR_URL" in answer.json()["error"]


async def test_a_coordinator_that_is_away_is_named(broker_port: int, tmp_path: Any) -> None:
    away = FakeCoordinator()
    async with open_manager(broker_port, tmp_path, coordinator_url=away.url) as manager:
        await manager.add_proplets("p1", "p2", "p3")
        answer = await post(manager, experiment())
        assert answer.status_code == 502
        assert away.url in answer.json()["error"]
        assert await tasks(manager) == []


async def test_the_rest_goes_through_to_the_coordinator(
    fl_manager: RunningManager, coordinator: FakeCoordinator
) -> None:
    http = fl_manager.http
    status = await http.get("/fl/rounds/r-1/complete?wait_s=1.5")
    assert status.json()["num_updates"] == status.json()["status"]["num_updates"] == 3
    assert coordinator.requests[-1][:2] == ("GET /rounds/r-1/complete", "wait_s=1.5")
    await http.get("/fl/rounds/r-1/complete?wait_s=90&updates=2")
    assert coordinator.requests[-1][:2] == ("GET /rounds/r-1/complete", "wait_s=60&updates=2")
    assert (await http.get("/fl/rounds/r-1/complete?wait_s=nan")).status_code == 400
    assert (await http.get("/fl/rounds/a%20b/complete")).status_code == 400
    assert (await http.get("/fl/rounds/next")).is_success
    assert coordinator.requests[-1][:2] == ("GET /rounds/next", "")

    await http.get("/fl/task?round_id=r-1&proplet_id=p1")
    assert coordinator.requests[-1][:2] == ("GET /task", "round_id=r-1&proplet_id=p1")
    missing = await http.get("/fl/task")
    assert (missing.status_code, "round_id" in missing.json()["error"]) == (400, True)

    update = json.dumps({"round_id": "r-1", "proplet_id": "p1", "num_samples": 64, "update": {"w": [1.0]}})
    answer = await http.post("/fl/update", content=update, headers={"authorization": "Basic cDE6aw=="})
    assert answer.json() == {"status": "accepted"}
    _, _, headers, body = coordinator.requests[-1]
    assert (body.decode(), headers["authorization"]) == (update, "Basic cDE6aw==")
    assert "content-encoding" not in headers
    await http.post("/fl/update", content=b"\x28\xb5", headers={"content-encoding": "zstd"})
    _, _, headers, body = coordinator.requests[-1]
    assert (body, headers["content-encoding"]) == (b"\x28\xb5", "zstd")

    for kind in ("application/cbor", "application/cbor-seq"):
        cbor = b"\xa1\x68round_id\x63r-1"
        await http.post("/fl/update_cbor", content=cbor, headers={"content-type": kind})
        path, _, headers, body = coordinator.requests[-1]
        assert (path, headers["content-type"], body) == ("POST /update_cbor", kind, cbor)
    wrong = await http.post("/fl/update_cbor", content=b"{}", headers={"content-type": "application/json"})
    assert wrong.status_code == 415

    for refusal in (400, 401, 403, 404, 405, 409, 410, 413, 415, 422, 429):
        coordinator.refusal = (refusal, "p9 is not a participant of round r-1")
        answer = await http.post("/fl/update", content=update)
        assert (answer.status_code, answer.json()["error"]) == coordinator.refusal
    coordinator.refusal = (500, "oops")
    answer = await http.post("/fl/update", content=update)
    assert (answer.status_code, answer.json()["error"]) == (502, "coordinator answered 500: oops")


async def test_a_start_over_mqtt_that_the_coordinator_refuses_does_not_hold_up_the_next(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    with capture_logs() as lines:
        for status in (400, 401, 403):
            coordinator.refusal = (status, "no")
            await fleet.mqtt.publish(Kind.ROUND_START, round_start(f"r-{status}", timeout_s=600))
            await eventually(partial(_is_logged, lines, event="round is not started", round_id=f"r-{status}"))
    assert await tasks(fleet) == []


def _is_logged(lines: Sequence[Mapping[str, Any]], **fields: str) -> bool:
    return any(fields.items() <= line.items() for line in lines)


async def test_a_start_over_mqtt_waits_for_a_coordinator_that_is_away(
    broker_port: int, tmp_path: Path
) -> None:
    away = FakeCoordinator()
    async with open_manager(broker_port, tmp_path, coordinator_url=away.url) as manager:
        await manager.add_proplets("p1", "p2", "p3")
        with capture_logs() as lines:
            await manager.mqtt.publish(Kind.ROUND_START, round_start(timeout_s=60))
            await eventually(lambda: "trying again" in str(lines) and "not started yet" in str(lines), 20)
        assert await tasks(manager) == []
        async with away.running():
            await eventually(lambda: len(manager.mqtt.starts()) == 3, 30)


@pytest.mark.parametrize("over_mqtt", [False, True])
async def test_limits_reach_every_participant(
    fleet: RunningManager, coordinator: FakeCoordinator, over_mqtt: bool
) -> None:
    limits = {"wall_time_s": 1.5, "fuel": 1000}
    round_id = f"r-{fleet.settings.channel_id}"
    if over_mqtt:
        await fleet.mqtt.publish(ROUND_START, round_start(round_id, limits=limits))
    else:
        assert (await post(fleet, experiment(round_id, limits=limits))).status_code == 200
    await eventually(lambda: len(fleet.mqtt.starts()) == 3)
    assert [message["limits"] for message in fleet.mqtt.starts()] == [limits] * 3
    assert coordinator.experiments[0]["limits"] == limits
    assert [task["limits"] for task in await tasks(fleet)] == [limits] * 3
    other = await post(fleet, experiment(round_id, experiment_id=None, limits={"fuel": 1001}))
    assert (other.status_code, "limits" in other.json()["error"]) == (409, True)


async def test_a_task_s_limits_are_checked_kept_and_sent(manager: RunningManager) -> None:
    await manager.add_proplets("p1", directed=True)
    wrong = await manager.http.post("/tasks", json={"name": "t", "image_url": IMAGE, "limits": {"fuel": -1}})
    assert (wrong.status_code, wrong.json()["error"]) == (
        400,
        "limits: fuel must be above 0 and at most 9007199254740991",
    )
    body = {"name": "t", "image_url": IMAGE, "limits": {"fuel": 5}}
    made = (await manager.http.post("/tasks", json=body)).json()
    assert made["limits"] == {"fuel": 5}
    await manager.http.post(f"/tasks/{made['id']}/start")
    await eventually(manager.mqtt.starts)
    assert manager.mqtt.starts()[0]["limits"] == {"fuel": 5}
