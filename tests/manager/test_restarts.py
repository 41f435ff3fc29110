"""Tasks of open rounds whose proplet went away while they ran are started again when it is back."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from propeller.manager.task_runner import MAX_RESTARTS
from support.manager import FakeCoordinator, RunningManager, is_connected, open_manager, served, settings_for
from support.net import eventually

INTERRUPTED = "interrupted: the proplet was stopped"


@pytest.fixture
async def fleet(fl_manager: RunningManager) -> RunningManager:
    await fl_manager.add_proplets("p1", directed=True)
    return fl_manager


async def launched(manager: RunningManager) -> str:
    """Start a round of one participant; the id of its task."""
    body = {
        "round_id": "r-1",
        "model_ref": "fl/models/global_model_v0",
        "participants": ["p1"],
        "task_wasm_image": "localhost/fl:1",
    }
    answer = await manager.http.post("/fl/experiments", json=body)
    assert answer.status_code == 200, answer.text
    await eventually(manager.mqtt.starts)
    return str(manager.mqtt.starts()[0]["id"])


async def interrupted(manager: RunningManager, task_id: str) -> None:
    """The task's proplet ends, and its task with it."""
    await manager.mqtt.send_result(task_id, "p1", None, INTERRUPTED)
    await manager.mqtt.send_heartbeat("p1", "offline")


def failures(coordinator: FakeCoordinator) -> list[bytes]:
    return [body for path, _, _, body in coordinator.requests if path.endswith("/failures")]


async def test_each_time_its_proplet_returns_up_to_the_limit(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    task_id = await launched(fleet)
    for again in range(MAX_RESTARTS):
        await interrupted(fleet, task_id)
        waiting = await fleet.wait_for_state(task_id, 1)
        assert "error" not in waiting or not waiting["error"]
        assert len(fleet.mqtt.starts(task_id)) == 1 + again
        await fleet.mqtt.send_heartbeat("p1")
        await fleet.wait_for_state(task_id, 2)
        await eventually(partial(_has_starts, fleet, task_id, 2 + again))
    first, *others = fleet.mqtt.starts(task_id)
    assert all(one == first for one in others)
    assert failures(coordinator) == []
    await interrupted(fleet, task_id)
    assert (await fleet.wait_for_state(task_id, 4))["error"] == INTERRUPTED
    await eventually(lambda: failures(coordinator))


async def test_the_result_of_a_restarted_task_counts(fleet: RunningManager) -> None:
    task_id = await launched(fleet)
    await interrupted(fleet, task_id)
    await fleet.mqtt.send_heartbeat("p1")
    await fleet.wait_for_state(task_id, 2)
    await fleet.mqtt.send_result(task_id, "p1", {"w": 1})
    assert (await fleet.wait_for_state(task_id, 3))["results"] == {"w": 1}


async def test_not_for_a_round_that_has_ended_before_its_deadline(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    task_id = await launched(fleet)
    await interrupted(fleet, task_id)
    await fleet.wait_for_state(task_id, 1)
    coordinator.completed = True
    await fleet.mqtt.send_heartbeat("p1")
    assert "round ended" in (await fleet.wait_for_state(task_id, 4))["error"]
    assert len(fleet.mqtt.starts(task_id)) == 1


async def test_not_a_task_without_a_round_nor_one_that_failed_by_itself(
    fleet: RunningManager, coordinator: FakeCoordinator
) -> None:
    alone = await fleet.create_task()
    assert (await fleet.http.post(f"/tasks/{alone}/start")).status_code == 200
    await interrupted(fleet, alone)
    assert (await fleet.wait_for_state(alone, 4))["error"] == INTERRUPTED
    await fleet.mqtt.send_heartbeat("p1")
    await eventually(lambda: fleet.is_alive("p1"))
    fleet.mqtt.received.clear()
    task_id = await launched(fleet)
    await fleet.mqtt.send_result(task_id, "p1", None, "trap: unreachable")
    await fleet.wait_for_state(task_id, 4)
    await eventually(lambda: failures(coordinator))


async def test_across_a_restart_of_the_manager(
    broker_port: int, tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    given: dict[str, Any] = {"coordinator_url": coordinator.url}
    settings = settings_for(broker_port, tmp_path, **given)
    async with open_manager(broker_port, tmp_path, **settings_fields(settings)) as before:
        await before.add_proplets("p1", directed=True)
        task_id = await launched(before)
        await interrupted(before, task_id)
        await before.wait_for_state(task_id, 1)
        await eventually(lambda: _offline(before))
    with capture_logs() as logs:
        async with served(settings) as http, before.mqtt as mqtt:
            after = RunningManager(settings, http, mqtt)
            assert (await after.task(task_id))["state"] == 1
            await eventually(lambda: is_connected(http))  # a heartbeat before is nobody's
            await mqtt.send_heartbeat("p1")
            await after.wait_for_state(task_id, 2)
            await eventually(lambda: len(mqtt.starts(task_id)) == 2)
    assert [log["task_id"] for log in logs if log["event"].startswith("launched task")] == [task_id]
    assert failures(coordinator) == []


def _has_starts(manager: RunningManager, task_id: str, count: int) -> bool:
    return len(manager.mqtt.starts(task_id)) == count


async def _offline(manager: RunningManager) -> bool:
    return not await manager.is_alive("p1")


def settings_fields(settings: Any) -> dict[str, Any]:
    """What makes a manager the same one again."""
    names = ("domain_id", "channel_id", "client_id", "database", "coordinator_url")
    return {name: getattr(settings, name) for name in names}
