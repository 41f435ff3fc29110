"""Tasks for every proplet: a part for each that is alive, and one end made of theirs."""

import base64
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from propeller.manager.task import Task, TaskSpec, TaskState
from propeller.manager.task_repository import TaskRepository
from propeller.protocol.topics import Kind
from propeller.store.database import Database
from support.manager import WASM, RunningManager, open_manager
from support.net import eventually

MOMENT = datetime(2026, 1, 21, 16, 12, 11, 123456, tzinfo=UTC)


async def begin(
    manager: RunningManager, *proplets: str, **fields: Any
) -> tuple[str, dict[str, dict[str, Any]]]:
    """A task for every proplet, which are alive, started; its id, and its parts by proplet."""
    await manager.add_proplets(*proplets, directed=True)
    task_id = await manager.create_task(broadcast=True, **fields)
    assert (await manager.http.post(f"/tasks/{task_id}/start")).json() == {"started": True}
    return task_id, await parts(manager, task_id)


async def parts(manager: RunningManager, task_id: str) -> dict[str, dict[str, Any]]:
    return {part["proplet_id"]: part for part in (await manager.task(task_id))["parts"]}


async def results(manager: RunningManager, task_id: str) -> Any:
    return (await manager.http.get(f"/tasks/{task_id}/results")).json()["results"]


async def test_each_proplet_that_is_alive_has_a_part(manager: RunningManager) -> None:
    await manager.add_proplets("p3", directed=True)
    await manager.mqtt.send_heartbeat("p3", "offline")

    async def is_away() -> bool:
        return not await manager.is_alive("p3")

    await eventually(is_away)
    task_id, found = await begin(manager, "p1", "p2", inputs=[3, 5], metadata={"owner": "me"})
    assert set(found) == {"p1", "p2"}
    for name, part in found.items():
        [start] = await eventually(partial(manager.mqtt.starts, part["id"]))
        assert (start["proplet_id"], start["inputs"], start["broadcast"]) == (name, ["3", "5"], False)
    listed = (await manager.http.get("/tasks")).json()
    assert (listed["total"], [one["id"] for one in listed["tasks"]]) == (1, [task_id])
    assert listed["tasks"][0]["broadcast"] is True
    assert {part["id"] for part in listed["tasks"][0]["parts"]} == {part["id"] for part in found.values()}
    mine = (await manager.http.get("/tasks", params={"metadata": '{"owner": "me"}'})).json()
    assert mine["total"] == 1

    await manager.mqtt.send_result(found["p1"]["id"], "p1", "8")
    await manager.wait_for_state(found["p1"]["id"], 3)
    task = await manager.task(task_id)
    assert (task["state"], await results(manager, task_id)) == (2, {"p1": "8", "p2": None})
    await manager.mqtt.send_result(found["p2"]["id"], "p2", "9")
    task = await manager.wait_for_state(task_id, 3)
    assert task["results"] == await results(manager, task_id) == {"p1": "8", "p2": "9"}
    assert task["finish_time"] > task["start_time"] > task["created_at"]
    assert (await manager.task(found["p2"]["id"]))["parent_id"] == task_id


async def test_a_failed_part_fails_the_task_and_names_itself(manager: RunningManager) -> None:
    task_id, found = await begin(manager, "p1", "p2", "p3")
    for name, error in (("p1", None), ("p2", "no such image"), ("p3", None)):
        await manager.mqtt.send_result(found[name]["id"], name, "8", error)
    task = await manager.wait_for_state(task_id, 4)
    assert task["error"] == "1 of 3 parts failed; p2: no such image"
    assert [part.get("error") for part in task["parts"]] == [None, "no such image", None]


async def test_a_program_that_was_uploaded_goes_to_all(manager: RunningManager) -> None:
    file = base64.b64encode(WASM).decode()
    _task, found = await begin(manager, "p1", "p2", file=file)
    for part in found.values():
        [start] = await eventually(partial(manager.mqtt.starts, part["id"]))
        assert start["file"] == file


async def test_stop_and_delete_are_of_all_parts(manager: RunningManager) -> None:
    task_id, found = await begin(manager, "p1", "p2")
    await manager.mqtt.send_result(found["p1"]["id"], "p1", "8")
    await manager.wait_for_state(found["p1"]["id"], 3)
    assert (await manager.http.post(f"/tasks/{task_id}/stop")).json() == {"stopped": True}
    stop = (f"{Kind.STOP}/p2", {"id": found["p2"]["id"], "broadcast": False, "proplet_id": "p2"})
    await eventually(lambda: stop in manager.mqtt.received)
    task = await manager.task(task_id)
    assert (task["state"], task["error"]) == (4, "1 of 2 parts failed; p2: stopped by request")
    assert (await manager.http.post(f"/tasks/{task_id}/stop")).json() == {"stopped": True}

    assert (await manager.http.post(f"/tasks/{task_id}/start")).status_code == 200
    again = await parts(manager, task_id)
    assert not {part["id"] for part in again.values()} & {part["id"] for part in found.values()}
    assert (await manager.http.get(f"/tasks/{found['p1']['id']}")).status_code == 404
    busy = await manager.http.post(f"/tasks/{task_id}/start")
    assert (busy.status_code, "already running" in busy.json()["error"]) == (409, True)
    assert (await manager.http.delete(f"/tasks/{task_id}")).status_code == 204
    for gone in (task_id, again["p1"]["id"]):
        assert (await manager.http.get(f"/tasks/{gone}")).status_code == 404
    assert all(one["task_count"] == 0 for one in (await manager.http.get("/proplets")).json()["proplets"])


async def test_a_part_that_is_stopped_or_deleted_by_itself(manager: RunningManager) -> None:
    task_id, found = await begin(manager, "p1", "p2")
    assert (await manager.http.post(f"/tasks/{found['p1']['id']}/stop")).status_code == 200
    assert (await manager.task(task_id))["state"] == 2
    assert (await manager.http.delete(f"/tasks/{found['p2']['id']}")).status_code == 204
    task = await manager.task(task_id)
    assert (task["state"], len(task["parts"])) == (4, 1)


async def test_a_part_that_runs_again_is_stopped_before_its_task_is_deleted(manager: RunningManager) -> None:
    task_id, found = await begin(manager, "p1")
    part_id = found["p1"]["id"]
    await manager.mqtt.send_result(part_id, "p1", "8")
    await manager.wait_for_state(task_id, 3)
    assert (await manager.http.post(f"/tasks/{part_id}/start")).status_code == 200
    assert (await manager.http.delete(f"/tasks/{task_id}")).status_code == 204
    stop = (f"{Kind.STOP}/p1", {"id": part_id, "broadcast": False, "proplet_id": "p1"})
    await eventually(lambda: stop in manager.mqtt.received)
    assert (await manager.http.get(f"/tasks/{part_id}")).status_code == 404


async def test_what_cannot_begin_says_why(manager: RunningManager) -> None:
    both = {"name": "add", "image_url": "localhost/add:1", "broadcast": True, "proplet_id": "p1"}
    refused = await manager.http.post("/tasks", json=both)
    assert (refused.status_code, refused.json()["error"][:10]) == (400, "broadcast:")
    task_id = await manager.create_task(broadcast=True)
    moved = await manager.http.put(f"/tasks/{task_id}", json={"proplet_id": "p1"})
    assert moved.status_code == 400
    assert (await manager.http.post(f"/tasks/{task_id}/stop")).status_code == 409
    nobody = await manager.http.post(f"/tasks/{task_id}/start")
    assert (nobody.status_code, "no proplet is alive" in nobody.json()["error"]) == (503, True)
    await manager.add_proplets("old")
    bare = (await manager.http.post("/tasks", json={"name": "add", "broadcast": True})).json()["id"]
    no_program = await manager.http.post(f"/tasks/{bare}/start")
    assert (no_program.status_code, "has no program" in no_program.json()["error"]) == (409, True)
    ahead = await manager.create_task(broadcast=True, kind="prefetch")
    theirs = await manager.http.post(f"/tasks/{ahead}/start")
    assert (theirs.status_code, "to be fetched" in theirs.json()["error"]) == (409, True)
    await manager.add_proplets("new", directed=True)
    assert (await manager.http.post(f"/tasks/{ahead}/start")).status_code == 200
    assert set(await parts(manager, ahead)) == {"new"}
    running = await manager.http.put(f"/tasks/{ahead}", json={"broadcast": False})
    assert running.status_code == 409


async def test_a_proplet_of_absmach_propeller_has_its_part_on_the_shared_topic(
    manager: RunningManager,
) -> None:
    await manager.add_proplets("p1", directed=True)
    await manager.add_proplets("h", os="linux")
    task_id = await manager.create_task(broadcast=True)
    await manager.http.post(f"/tasks/{task_id}/start")
    part = (await parts(manager, task_id))["h"]
    await eventually(
        lambda: any(
            topic == Kind.START and message["proplet_id"] == "h" for topic, message in manager.mqtt.received
        )
    )
    await manager.mqtt.send_result(part["id"], "h", "8")
    await manager.wait_for_state(part["id"], 3)


async def test_a_lost_proplet_ends_its_part(broker_port: int, tmp_path: Path) -> None:
    async with open_manager(broker_port, tmp_path, liveliness_interval_s=0.2) as manager:
        _task_id, found = await begin(manager, "p1")
        task = await manager.wait_for_state(_task_id, 4)
        assert "1 of 1 parts failed; p1: proplet p1 was lost" in task["error"]
        # What comes after all counts here, too.
        await manager.mqtt.send_result(found["p1"]["id"], "p1", "8")
        task = await manager.wait_for_state(_task_id, 3)
        assert (task.get("error"), task["results"]) == (None, {"p1": "8"})


async def test_old_ones_are_deleted_with_their_parts(database: Database) -> None:
    repository = TaskRepository(database)
    whole = Task("whole", TaskSpec(name="a", broadcast=True), TaskState.PENDING, MOMENT)
    await repository.add(whole, WASM)
    parts = [
        Task(f"part-{number}", TaskSpec(name="a"), TaskState.RUNNING, MOMENT, "AGFz…", parent_id="whole")
        for number in range(3)
    ]
    assert await repository.begin_parts(replace(whole, state=TaskState.RUNNING), parts)
    assert [await repository.program(part.id) for part in parts] == [WASM] * 3
    for part in parts:
        assert await repository.prune(0, MOMENT) == 0
        assert (await repository.get("whole")).active
        await repository.replace(
            replace(part, state=TaskState.COMPLETED, results=8, updated_at=MOMENT), TaskState
        )
        if part is not parts[-1]:
            found = await repository.parts(["whole"], with_results=True)
            assert [one.results for one in found].count(8) == 1 + parts.index(part)
            assert [one.results for one in await repository.parts(["whole"])] == [None] * 3
    assert (await repository.get("whole")).state is TaskState.COMPLETED
    await repository.prune(0, MOMENT)
    assert [await repository.find(task_id) for task_id in ("whole", "part-0", "part-2")] == [None] * 3
    assert await repository.parts(["whole"]) == []


async def test_a_task_that_is_gone_begins_nothing(database: Database) -> None:
    repository = TaskRepository(database)
    whole = Task("whole", TaskSpec(name="a", broadcast=True), TaskState.RUNNING, MOMENT)
    part = Task("part", TaskSpec(name="a"), TaskState.SCHEDULED, MOMENT, parent_id="whole")
    assert not await repository.begin_parts(whole, [part])
    assert await repository.find("part") is None
