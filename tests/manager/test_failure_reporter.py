"""Failures of rounds' tasks are told to the coordinator, in the background and until it has them."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from propeller.manager.coordinator_client import RoundReporter
from propeller.protocol.topics import Kind
from support.manager import FakeCoordinator, RunningManager, open_manager, served, settings_for
from support.net import eventually

IMAGE = "localhost/fl:1"


def experiment(round_id: str = "r-1", **fields: Any) -> dict[str, Any]:
    return {
        "round_id": round_id,
        "model_ref": "fl/models/global_model_v0",
        "participants": ["p1", "p2"],
        "task_wasm_image": IMAGE,
        **fields,
    }


def reports(coordinator: FakeCoordinator) -> list[tuple[str, str, str]]:
    """Round, participant and reason of every report."""
    found = []
    for path, _query, _headers, body in coordinator.requests:
        if path.endswith("/failures"):
            fields = json.loads(body)
            found.append((path.split("/")[2], fields["proplet_id"], fields["reason"]))
    return found


async def reported(coordinator: FakeCoordinator, count: int) -> list[tuple[str, str, str]]:
    await eventually(lambda: len(reports(coordinator)) >= count, what=f"{count} reports")
    return reports(coordinator)


async def start(manager: RunningManager, **fields: Any) -> dict[str, str]:
    """Start a round; the ids of its tasks by participant."""
    answer = await manager.http.post("/fl/experiments", json=experiment(**fields))
    assert answer.status_code == 200, answer.text
    tasks = (await manager.http.get("/tasks")).json()["tasks"]
    return {task["proplet_id"]: task["id"] for task in tasks}


@pytest.fixture
async def fleet(fl_manager: RunningManager) -> RunningManager:
    await fl_manager.add_proplets("p1", "p2", directed=True)
    return fl_manager


async def test_the_stage_of_a_task_is_shown_and_told_to_the_coordinator(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    tasks = await start(fleet)

    async def say(task_id: str, proplet_id: str, stage: str) -> None:
        said = {"task_id": task_id, "proplet_id": proplet_id, "stage": stage}
        await fleet.mqtt.say(Kind.TASK_STAGE, proplet_id, said)

    await say(tasks["p1"], "p2", "running")  # not its task
    await say("no-task", "p1", "running")
    await say(tasks["p1"], "p1", "preparing: compiling")

    async def shown() -> bool:
        return (await fleet.task(tasks["p1"])).get("stage") == "preparing: compiling"

    await eventually(shown, what="the stage")
    listed = {task["id"]: task.get("stage") for task in (await fleet.http.get("/tasks")).json()["tasks"]}
    assert listed == {tasks["p1"]: "preparing: compiling", tasks["p2"]: None}

    def told() -> list[dict[str, str]]:
        return [
            json.loads(body) for path, *_, body in coordinator.requests if path == "POST /rounds/r-1/stages"
        ]

    await eventually(lambda: bool(told()), what="a report")
    assert told() == [{"proplet_id": "p1", "stage": "preparing: compiling"}]
    await fleet.mqtt.send_result(tasks["p1"], "p1")
    ended = await fleet.wait_for_state(tasks["p1"], 3)
    assert "stage" not in ended


async def test_errors_and_stops_are_reported_and_good_ends_and_other_tasks_are_not(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    alone = await fleet.create_task(image_url=IMAGE, proplet_id="p1")
    assert (await fleet.http.post(f"/tasks/{alone}/start")).status_code == 200
    await fleet.mqtt.send_result(alone, "p1", None, "its own fault")
    tasks = await start(fleet, round_id="r-good")
    await fleet.mqtt.send_result(tasks["p1"], "p1", "{}")
    await fleet.wait_for_state(tasks["p1"], 3)
    tasks = await start(fleet)
    await fleet.mqtt.send_result(tasks["p1"], "p1", None, "no such image")
    await fleet.mqtt.send_result(tasks["p1"], "p1", None, "no such image")
    assert await reported(coordinator, 1) == [("r-1", "p1", "no such image")]
    assert (await fleet.http.post(f"/tasks/{tasks['p2']}/stop")).status_code == 200
    assert await reported(coordinator, 2) == [
        ("r-1", "p1", "no such image"),
        ("r-1", "p2", "stopped by request"),
    ]


async def test_lost_proplets_and_skipped_participants_are_reported(
    broker_port: int, tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    async with open_manager(
        broker_port, tmp_path, coordinator_url=coordinator.url, MANAGER_LIVELINESS_INTERVAL="0.5"
    ) as manager:
        await manager.add_proplets("p1", directed=True, liveliness_interval=1)
        await start(manager, participants=["p1", "gone"], min_updates=1)
        (skipped,) = await reported(coordinator, 1)
        assert skipped[:2] == ("r-1", "gone")
        assert skipped[2].startswith("skipped: proplet not found")
        lost = (await reported(coordinator, 2))[1]
        assert lost[:2] == ("r-1", "p1")
        assert "no heartbeat" in lost[2]


async def test_what_is_stopped_because_its_round_is_over_is_not_reported(
    broker_port: int, tmp_path: Path, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.manager.housekeeping.LATE_TASK_GRACE_S", 0.0)
    settings = {"coordinator_url": coordinator.url, "MANAGER_LIVELINESS_INTERVAL": "0.5"}
    async with open_manager(broker_port, tmp_path, **settings) as manager:
        await manager.add_proplets("p1", directed=True, liveliness_interval=60)
        tasks = await start(manager, participants=["p1"], timeout_s=0.1)
        await manager.wait_for_state(tasks["p1"], 4)
        tasks = await start(manager, round_id="r-2", participants=["p1"])
        await manager.mqtt.send_result(tasks["p1"], "p1", None, "bad lr")
        assert await reported(coordinator, 1) == [("r-2", "p1", "bad lr")]


async def test_a_coordinator_that_fails_is_told_later_and_holds_nothing_up(
    fleet: RunningManager, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.manager.coordinator_client.REPORT_DELAYS_S", (0.05,) * 100)
    tasks = await start(fleet)
    coordinator.refusal = (500, "disk full")
    for name, task_id in tasks.items():
        await fleet.mqtt.send_result(task_id, name, None, "no such image")
        await fleet.wait_for_state(task_id, 4)
    await reported(coordinator, 4)
    coordinator.refusal = None
    coordinator.requests.clear()
    told = await reported(coordinator, 2)
    assert {proplet_id for _round, proplet_id, _reason in told} == {"p1", "p2"}


@pytest.mark.parametrize(
    ("status", "level"), [(404, "debug"), (405, "debug"), (403, "warning"), (400, "warning")]
)
async def test_a_coordinator_without_the_route_is_no_news_and_a_refusal_is(
    fleet: RunningManager, coordinator: FakeCoordinator, status: int, level: str
) -> None:
    tasks = await start(fleet)
    coordinator.refusal = (status, "no")
    with capture_logs() as logs:
        await fleet.mqtt.send_result(tasks["p1"], "p1", None, "no such image")
        said = await eventually(partial(_about_reports, logs))
    assert said is not None
    assert [one["log_level"] for one in said] == [level]
    assert len(reports(coordinator)) == 1


def _about_reports(logs: list[Any]) -> list[Any]:
    return [one for one in logs if one.get("proplet_id") == "p1" and str(one.get("reason")).endswith("no")]


async def test_what_was_not_told_before_the_end_is_told_at_the_next_start(
    broker_port: int, tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    settings = settings_for(broker_port, tmp_path, coordinator_url=coordinator.url)
    given = settings.model_dump(include={"http_port", "domain_id", "channel_id", "client_id"})
    async with open_manager(broker_port, tmp_path, coordinator_url=coordinator.url, **given) as manager:
        await manager.add_proplets("p1", "p2", directed=True)
        tasks = await start(manager, participants=["p1", "p2", "gone"], k_of_n=2)
        coordinator.refusal = (500, "disk full")
        await manager.mqtt.send_result(tasks["p1"], "p1", None, "no such image")
        await reported(coordinator, 2)
    coordinator.refusal = None
    coordinator.requests.clear()
    async with served(settings):
        told = await reported(coordinator, 2)
    assert {proplet_id for _round, proplet_id, _reason in told} == {"p1", "gone"}


async def test_without_a_coordinator_nothing_is_reported() -> None:
    reporter = RoundReporter(None)
    reporter.report("r-1", "p1", "lost")
    await reporter.close()
