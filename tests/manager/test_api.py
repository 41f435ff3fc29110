"""The HTTP API: tasks run by fake proplets over MQTT, pages, errors, metrics."""

import asyncio
import base64
from typing import Any

import pytest

from propeller.manager.api import HIDDEN, shown
from propeller.protocol.topics import Kind
from propeller.web.auth import Principal
from support.manager import WASM, RunningManager
from support.net import eventually

FILE = base64.b64encode(WASM).decode()


async def test_a_task_is_made_read_changed_and_deleted(manager: RunningManager) -> None:
    made = await manager.http.post(
        "/tasks/",
        json={"name": "add", "inputs": [3, 5], "state": 3, "results": "no", "id": "mine", "created_at": "x"},
    )
    assert made.status_code == 201
    task = made.json()
    assert made.headers["location"] == f"/tasks/{task['id']}"
    assert (task["state"], task["inputs"], "results" in task) == (0, [3, 5], False)
    assert task["id"] != "mine"
    assert made.text.endswith("\n")

    path = f"/tasks/{task['id']}"
    assert (await manager.http.get(path)).json() == task
    changed = (await manager.http.put(path, json={"name": "sub", "inputs": None, "env": {"A": "1"}})).json()
    assert (changed["name"], changed["inputs"], changed["env"]) == ("sub", [3, 5], {"A": "1"})
    assert changed["updated_at"] > task["created_at"]
    assert (await manager.http.delete(path)).status_code == 204
    for answer in (await manager.http.get(path), await manager.http.delete(path)):
        assert answer.status_code == 404
        assert task["id"] in answer.json()["error"]


async def test_a_program_is_uploaded_shown_by_its_ends_and_sent_whole(manager: RunningManager) -> None:
    await manager.add_proplets("p1")
    task = (await manager.http.post("/tasks", json={"name": "add"})).json()
    path = f"/tasks/{task['id']}"
    refused = await manager.http.post(f"{path}/start")
    assert refused.status_code == 409
    assert "image_url" in refused.json()["error"]

    uploaded = await manager.http.put(f"{path}/upload", files={"file": ("add.wasm", WASM)})
    assert uploaded.status_code == 200
    shown = uploaded.json()["file"]
    assert shown == f"{FILE[:10]}<REDACTED>{FILE[-10:]}"
    assert (await manager.http.put(path, json={**task, "file": shown, "name": "sum"})).json()["file"] == shown
    assert (await manager.http.get("/tasks")).json()["tasks"][0]["file"] == shown

    assert (await manager.http.post(f"{path}/start")).json() == {"started": True}
    start = (await eventually(manager.mqtt.starts))[0]
    assert (start["file"], start["name"]) == (FILE, "sum")


BAD_UPLOADS: tuple[tuple[Any, str], ...] = (
    ({"file": ("add.txt", WASM)}, ".wasm"),
    ({"file": ("add.wasm", b"ELF")}, "asm"),
    ({"file": ("add.wasm", b"")}, "asm"),
    ({"other": ("add.wasm", WASM)}, "file"),
)


async def test_bad_uploads_are_refused(manager: RunningManager) -> None:
    task_id = await manager.create_task()
    for files, word in BAD_UPLOADS:
        answer = await manager.http.put(f"/tasks/{task_id}/upload", files=files)
        assert answer.status_code == 400
        assert word in answer.json()["error"]


async def test_a_program_too_large_for_a_message_is_refused_with_the_way_out(manager: RunningManager) -> None:
    task_id = await manager.create_task()
    answer = await manager.http.put(
        f"/tasks/{task_id}/upload", files={"file": ("add.wasm", WASM + bytes(6_000_000))}
    )
    assert answer.status_code == 413
    assert "OCI registry" in answer.json()["error"]


BAD_TASKS = (
    (b"", "JSON"),
    (b"[]", "object"),
    (b'{"name": NaN}', "NaN"),
    (b'{"name": ""}', "name"),
    (b'{"name": "\\ud800"}', "JSON"),
    (b'{"name": "a", "inputs": [1e999]}', "inputs"),
    (b'{"name": "a", "file": "%%%"}', "file"),
    (b'{"name": "a", "file": "aGVsbG8="}', "asm"),
    (b'{"name": "a", "encrypted": true, "file": "' + FILE.encode() + b'"}', "encrypted"),
    (b'{"name": "a", "proplet_id": "../etc"}', "proplet_id"),
)


async def test_bad_bodies_are_named(manager: RunningManager) -> None:
    for body, word in BAD_TASKS:
        answer = await manager.http.post("/tasks", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, body
        assert word in answer.json()["error"]


async def test_wrong_paths_methods_types_and_pages(manager: RunningManager) -> None:
    http = manager.http
    for path in ("/tasks/a%2Fb", "/tasks/..%2fx", "/tasks/%20", "/proplets/a%20b", "/proplets?status=sleepy"):
        assert (await http.get(path)).status_code in {400, 404}, path
    for query in ("limit=0", "limit=1001", "limit=-1", "limit=x", "offset=-1", f"offset={2**64}"):
        for path in ("/tasks", "/proplets", "/tasks/t/metrics", "/proplets/p/metrics"):
            answer = await http.get(f"{path}?{query}")
            assert answer.status_code == 400, (path, query)
            assert query.split("=")[0] in answer.json()["error"]
    assert (await http.patch("/tasks")).status_code == 405
    assert (await http.get("/nowhere")).json() == {"error": "no such path: /nowhere"}
    wrong = await http.post("/tasks", content=b"{}", headers={"content-type": "text/plain"})
    assert wrong.status_code == 415


async def test_pages_are_stable_and_tell_the_total_past_their_end(manager: RunningManager) -> None:
    ids = [await manager.create_task(name=f"t{number}") for number in range(7)]
    got = []
    for offset in range(0, 9, 2):
        page = (await manager.http.get("/tasks", params={"offset": offset, "limit": 2})).json()
        assert (page["total"], page["offset"], page["limit"]) == (7, offset, 2)
        got += [task["id"] for task in page["tasks"]]
    assert got == ids
    past = (await manager.http.get("/tasks?offset=100")).json()
    assert past == {"offset": 100, "limit": 100, "total": 7, "tasks": []}


async def test_a_start_goes_out_once_with_every_key_of_s(manager: RunningManager) -> None:
    await manager.add_proplets("p1")
    task_id = await manager.create_task(inputs=[3, "5"], kbs_resource_path="default/key", encrypted=True)
    await manager.http.post(f"/tasks/{task_id}/start")
    start = (await eventually(lambda: manager.mqtt.starts(task_id)))[0]
    assert start == {
        "id": task_id,
        "name": "add",
        "state": 0,
        "image_url": "localhost/add:1",
        "file": None,
        "inputs": [3, 5],
        "cli_args": None,
        "daemon": False,
        "env": None,
        "encrypted": True,
        "kbs_resource_path": "default/key",
        "monitoring_profile": None,
        "proplet_id": "p1",
        "broadcast": False,
        "latent": False,
    }
    running = await manager.wait_for_state(task_id, 2)
    assert running["proplet_id"] == "p1"
    await manager.mqtt.send_result(task_id, "p1", results="8")
    await manager.wait_for_state(task_id, 3)
    assert len(manager.mqtt.starts(task_id)) == 1
    assert [topic for topic, _ in manager.mqtt.received] == [Kind.START]


async def test_h_proplets_get_texts_and_a_whole_profile_and_directed_ones_their_own_topic(
    manager: RunningManager,
) -> None:
    await manager.add_proplets("h", os="linux")
    await manager.add_proplets("d", directed=True)
    profile = {"enabled": True, "interval": 5_000_000_000}
    for proplet_id in ("h", "d"):
        inputs = [3, "5"] if proplet_id == "h" else [3, "5", "1.50", True, ["a", 1]]
        task_id = await manager.create_task(proplet_id=proplet_id, inputs=inputs, monitoring_profile=profile)
        assert (await manager.http.post(f"/tasks/{task_id}/start")).status_code == 200
        assert (await manager.http.post(f"/tasks/{task_id}/stop")).status_code == 200
    heard = await eventually(lambda: manager.mqtt.received if len(manager.mqtt.received) == 4 else None)
    assert heard is not None
    messages = dict(heard)
    assert set(messages) == {Kind.START, Kind.STOP, f"{Kind.START}/d", f"{Kind.STOP}/d"}
    assert messages[Kind.START]["inputs"] == ["3", "5"]
    assert messages[f"{Kind.START}/d"]["inputs"] == ["3", "5", "1.50", "true", '["a",1]']
    sent = messages[Kind.START]["monitoring_profile"]
    assert (len(sent), sent["interval"], sent["collect_cpu"]) == (10, 5, True)
    assert messages[f"{Kind.STOP}/d"]["proplet_id"] == "d"


async def test_what_has_ended_can_be_stopped_and_what_runs_deleted(manager: RunningManager) -> None:
    await manager.add_proplets("p1")
    task_id = await manager.create_task()
    await manager.http.post(f"/tasks/{task_id}/start")
    await manager.mqtt.send_result(task_id, "p1", "8")
    ended = await manager.wait_for_state(task_id, 3)
    assert (await manager.http.post(f"/tasks/{task_id}/stop")).json() == {"stopped": True}
    assert await manager.task(task_id) == ended
    await manager.http.post(f"/tasks/{task_id}/start")
    assert (await manager.http.delete(f"/tasks/{task_id}")).status_code == 204
    stop = {"id": task_id, "broadcast": False, "proplet_id": "p1"}
    await eventually(lambda: (Kind.STOP, stop) in manager.mqtt.received, what="a stop")
    assert (await manager.http.get(f"/tasks/{task_id}")).status_code == 404
    assert (await manager.http.post(f"/tasks/{task_id}/stop")).status_code == 404


async def test_tasks_are_found_by_their_metadata(manager: RunningManager) -> None:
    mine = [await manager.create_task(metadata={"owner": "me", "run": number}) for number in range(3)]
    await manager.create_task(metadata={"owner": "you"})
    await manager.create_task(env={"metadata": "owner"})

    async def found(**params: Any) -> tuple[int, list[str]]:
        answer = (await manager.http.get("/tasks", params=params)).json()
        return answer["total"], [task["id"] for task in answer["tasks"]]

    assert await found(metadata='{"owner": "me"}') == (3, mine)
    assert await found(metadata='{"owner": "me"}', limit=1, offset=1) == (3, mine[1:2])
    assert await found(metadata='{"owner": "me", "run": 2}') == (1, mine[2:])
    assert await found(metadata='{"owner": null}') == (0, [])
    assert (await found(metadata="{}"))[0] == 5
    assert (await manager.task(mine[1]))["metadata"] == {"owner": "me", "run": 1}
    changed = await manager.http.put(f"/tasks/{mine[0]}", json={"metadata": {"owner": "us"}, "priority": 0})
    assert (changed.json()["metadata"], changed.json()["priority"]) == ({"owner": "us"}, 50)
    for wrong in ("[1]", "owner"):
        refused = await manager.http.get("/tasks", params={"metadata": wrong})
        assert (refused.status_code, refused.json()["error"][:9]) == (400, "metadata:")


async def test_fields_that_nothing_is_done_for_are_named(manager: RunningManager) -> None:
    asked = {
        "name": "add",
        "image_url": "localhost/add:1",
        "schedule": "* * * * *",
        "depends_on": ["x"],
        "latent": False,
        "run_if": "",
        "next_run": "0001-01-01T00:00:00Z",
        "results": "mine",
        "prioritty": 7,
    }
    answer = (await manager.http.post("/tasks", json=asked)).json()
    assert answer["ignored"] == [
        "depends_on",
        "prioritty (did you mean 'priority'?)",
        "schedule",
    ]
    asked = {"name": "add", "image_url": "localhost/add:1"}
    assert "ignored" not in (await manager.http.post("/tasks", json=asked)).json()
    for field, value in {"priority": 101, "metadata": [1]}.items():
        refused = await manager.http.post("/tasks", json={**asked, field: value})
        assert refused.status_code == 400
        assert refused.json()["error"].startswith(f"{field}:")


async def test_only_proplets_that_know_of_it_are_asked_to_fetch_and_not_run(manager: RunningManager) -> None:
    await manager.add_proplets("d", directed=True)
    await manager.add_proplets("s")
    ours = await manager.create_task(kind="prefetch", proplet_id="d")
    assert (await manager.http.post(f"/tasks/{ours}/start")).json() == {"started": True}
    await eventually(lambda: manager.mqtt.starts(ours))
    assert manager.mqtt.starts(ours)[0]["prefetch"] is True
    theirs = await manager.create_task(kind="prefetch", proplet_id="s")
    refused = await manager.http.post(f"/tasks/{theirs}/start")
    assert (refused.status_code, manager.mqtt.starts(theirs)) == (409, [])
    assert "which proplet s of absmach/propeller does not know" in refused.json()["error"]
    plain = await manager.create_task(proplet_id="s")
    await manager.http.post(f"/tasks/{plain}/start")
    await eventually(lambda: manager.mqtt.starts(plain))
    assert "prefetch" not in manager.mqtt.starts(plain)[0]


async def test_a_proplet_that_turns_directed_is_reached_on_its_own_topic(manager: RunningManager) -> None:
    await manager.add_proplets("p")
    await manager.mqtt.register("p", directed=True)
    await eventually(lambda: _is_directed(manager))
    task_id = await manager.create_task()
    await manager.http.post(f"/tasks/{task_id}/start")
    await eventually(lambda: [topic for topic, _ in manager.mqtt.received] == [f"{Kind.START}/p"])


async def _is_directed(manager: RunningManager) -> bool:
    return bool((await manager.http.get("/proplets/p")).json()["metadata"].get("directed"))


async def test_the_pinned_proplet_is_taken_or_the_reason_given(manager: RunningManager) -> None:
    await manager.add_proplets("p1", "p2")
    unknown = await manager.create_task(proplet_id="proplet-1")
    answer = await manager.http.post(f"/tasks/{unknown}/start")
    assert answer.status_code == 409
    assert "client ids" in answer.json()["error"]
    pinned = await manager.create_task(proplet_id="p2")
    await manager.mqtt.send_heartbeat("p2", status="offline")
    await eventually(lambda: _dead(manager, "p2"))
    answer = await manager.http.post(f"/tasks/{pinned}/start")
    assert answer.status_code == 409
    assert "not alive" in answer.json()["error"]
    assert (await manager.task(pinned))["state"] == 0
    await manager.add_proplets("p2")
    assert (await manager.http.post(f"/tasks/{pinned}/start")).status_code == 200
    assert (await manager.task(pinned))["proplet_id"] == "p2"


async def _dead(manager: RunningManager, proplet_id: str) -> bool:
    return not await manager.is_alive(proplet_id)


async def test_without_a_live_proplet_nothing_starts(manager: RunningManager) -> None:
    task_id = await manager.create_task()
    answer = await manager.http.post(f"/tasks/{task_id}/start")
    assert answer.status_code == 503
    assert "/proplets" in answer.json()["error"]
    assert (await manager.task(task_id))["state"] == 0


async def test_tasks_spread_over_the_fleet_and_are_counted(manager: RunningManager) -> None:
    await manager.add_proplets("a", "b", "c")
    for _ in range(6):
        await manager.http.post(f"/tasks/{await manager.create_task()}/start")
    page = (await manager.http.get("/proplets")).json()
    assert [(one["id"], one["task_count"]) for one in page["proplets"]] == [("a", 2), ("b", 2), ("c", 2)]
    answer = await manager.http.delete("/proplets/a")
    assert answer.status_code == 409
    assert "2 tasks" in answer.json()["error"]


async def test_a_proplet_is_called_what_it_is_renamed_to(manager: RunningManager) -> None:
    await manager.add_proplets("p1", directed=True, name="ward-3")
    renamed = await manager.http.patch("/proplets/p1", json={"name": "ward-4"})
    assert (renamed.status_code, renamed.json()["name"]) == (200, "ward-4")
    await manager.mqtt.register("p1", directed=True, name="ward-3", location="cellar")

    async def has_registered() -> bool:
        return bool((await manager.http.get("/proplets/p1")).json()["metadata"].get("location"))

    await eventually(has_registered)
    assert (await manager.http.get("/proplets/p1")).json()["name"] == "ward-4"
    for body in ({}, {"name": "a b"}, {"name": "x" * 65}, {"name": 5}, {"name": "a", "id": "p2"}):
        assert (await manager.http.patch("/proplets/p1", json=body)).status_code == 400
    assert (await manager.http.patch("/proplets/nobody", json={"name": "a"})).status_code == 404
    await manager.mqtt.send_heartbeat("old")  # as one of absmach/propeller, of which no more is known
    await eventually(lambda: manager.is_known("old"))
    told = await manager.http.patch("/proplets/old", json={"name": "a"})
    assert told.status_code == 400
    assert "cannot be renamed" in told.json()["error"]


async def test_a_task_ends_completed_or_failed_and_starts_again(manager: RunningManager) -> None:
    await manager.add_proplets("p1")
    task_id = await manager.create_task()
    await manager.http.post(f"/tasks/{task_id}/start")
    assert (await manager.http.post(f"/tasks/{task_id}/start")).status_code == 409
    await manager.mqtt.send_result(task_id, "p1", "", error="trap: unreachable")
    failed = await manager.wait_for_state(task_id, 4)
    assert failed["error"] == "trap: unreachable"
    assert (await manager.http.get("/proplets/p1")).json()["task_count"] == 0

    assert (await manager.http.post(f"/tasks/{task_id}/start")).status_code == 200
    again = await manager.task(task_id)
    assert (again["state"], "error" in again, again["finish_time"][:4]) == (2, False, "0001")
    await manager.mqtt.send_result(task_id, "p1", "8")
    done = await manager.wait_for_state(task_id, 3)
    assert done["results"] == "8"
    assert done["finish_time"] > done["start_time"]
    assert (await manager.http.get(f"/tasks/{task_id}/results")).json() == {"results": "8"}
    await manager.mqtt.send_result(task_id, "p1", "9")
    await manager.mqtt.send_result(await _running(manager), "p1", "10")
    await eventually(lambda: _nothing_runs(manager))
    assert (await manager.task(task_id))["results"] == "8"


async def _running(manager: RunningManager) -> str:
    task_id = await manager.create_task()
    assert (await manager.http.post(f"/tasks/{task_id}/start")).status_code == 200
    return task_id


async def _nothing_runs(manager: RunningManager) -> bool:
    return all(one["task_count"] == 0 for one in (await manager.http.get("/proplets")).json()["proplets"])


@pytest.mark.parametrize(
    ("directed", "length", "kept"), [(False, 200_000, True), (False, 300_000, False), (True, 200, False)]
)
async def test_the_copy_of_an_update_stays_in_the_result_of_a_compat_proplet(
    fl_manager: RunningManager, directed: bool, length: int, kept: bool
) -> None:
    await fl_manager.add_proplets("p1", directed=directed)
    experiment = {
        "round_id": "r-1",
        "model_ref": "fl/models/global_model_v0",
        "participants": ["p1"],
        "task_wasm_image": "localhost/fl:1",
        "k_of_n": 1,
    }
    answer = await fl_manager.http.post("/fl/experiments", json=experiment)
    assert answer.status_code == 200, answer.text
    [task] = (await fl_manager.http.get("/tasks")).json()["tasks"]
    envelope = {
        "task_id": task["id"],
        "round_id": "r-1",
        "proplet_id": "p1",
        "num_samples": 1,
        "update_b64": "A" * length,
        "format": "f32-delta",
        "metrics": {},
    }
    message = {"task_id": task["id"], "results": envelope, "error": None}
    await fl_manager.mqtt.say(Kind.PROPLET_RESULTS, "p1", message)
    await fl_manager.wait_for_state(task["id"], 3)
    results = (await fl_manager.http.get(f"/tasks/{task['id']}/results")).json()["results"]
    assert results == (envelope if kept else {**envelope, "update_b64": ""})


async def test_results_count_only_from_the_proplet_that_runs_the_task(manager: RunningManager) -> None:
    await manager.add_proplets("p1", "p2")
    task_id = await manager.create_task(proplet_id="p1")
    await manager.http.post(f"/tasks/{task_id}/start")
    envelope = {"task_id": task_id, "round_id": "r", "proplet_id": "p2", "update_b64": "e30=", "metrics": {}}
    await manager.mqtt.send_result(task_id, "p2", "forged")
    await manager.mqtt.publish(Kind.PROPLET_RESULTS, {"task_id": task_id, "results": envelope})
    await manager.mqtt.publish(Kind.PROPLET_RESULTS, {"task_id": task_id, "results": "of nobody"})
    await manager.mqtt.send_result("no-such-task", "p1", "x")
    own = {**envelope, "proplet_id": "p1"}
    await manager.mqtt.publish(Kind.PROPLET_RESULTS, {"task_id": task_id, "results": own, "error": None})
    done = await manager.wait_for_state(task_id, 3)
    assert done["results"]["proplet_id"] == "p1"


async def test_a_stop_reaches_the_proplet_and_its_confirmation_does_not_end_the_next_run(
    manager: RunningManager,
) -> None:
    await manager.add_proplets("p1")
    task_id = await manager.create_task()
    idle = await manager.http.post(f"/tasks/{task_id}/stop")
    assert idle.status_code == 409
    await manager.http.post(f"/tasks/{task_id}/start")
    assert (await manager.http.post(f"/tasks/{task_id}/stop")).json() == {"stopped": True}
    await eventually(
        lambda: (Kind.STOP, {"id": task_id, "broadcast": False, "proplet_id": "p1"}) in manager.mqtt.received
    )
    stopped = await manager.task(task_id)
    assert (stopped["state"], stopped["error"]) == (4, "stopped by request")

    await manager.http.post(f"/tasks/{task_id}/start")
    await manager.mqtt.send_result(task_id, "p1", "", error=f"Task {task_id} was stopped before completion")
    await manager.mqtt.send_result(task_id, "p1", "8")
    assert (await manager.wait_for_state(task_id, 3))["results"] == "8"


async def test_a_running_task_does_not_move(manager: RunningManager) -> None:
    await manager.add_proplets("p1", "p2")
    task_id = await manager.create_task(proplet_id="p1")
    await manager.http.post(f"/tasks/{task_id}/start")
    moved = await manager.http.put(f"/tasks/{task_id}", json={"proplet_id": "p2"})
    assert moved.status_code == 409
    await manager.mqtt.send_result(task_id, "p1", "8")
    await manager.wait_for_state(task_id, 3)
    assert (await manager.http.put(f"/tasks/{task_id}", json={"proplet_id": "p2"})).status_code == 200
    await manager.http.post(f"/tasks/{task_id}/start")
    assert (await manager.task(task_id))["proplet_id"] == "p2"


async def test_of_many_concurrent_starts_one_counts(manager: RunningManager) -> None:
    await manager.add_proplets("p1", "p2")
    task_id = await manager.create_task()
    answers = await asyncio.gather(*(manager.http.post(f"/tasks/{task_id}/start") for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    await manager.mqtt.send_result(task_id, (await manager.task(task_id))["proplet_id"])
    await manager.wait_for_state(task_id, 3)
    assert len(manager.mqtt.starts(task_id)) == 1


async def test_metrics_of_tasks_and_proplets(manager: RunningManager) -> None:
    await manager.add_proplets("p1")
    task_id = await _running(manager)
    sample = {"cpu_percent": 97.0, "memory_bytes": 40265318400, "memory_percent": 0.0}
    rust_time = {"secs_since_epoch": 1769011931, "nanos_since_epoch": 123456789}
    await manager.mqtt.publish(
        Kind.TASK_METRICS,
        {
            "task_id": task_id,
            "proplet_id": "p1",
            "metrics": sample,
            "aggregated": None,
            "timestamp": rust_time,
        },
    )
    for stamp in (rust_time, "2026-01-21T16:12:11.123456789Z"):
        await manager.mqtt.publish(
            Kind.PROPLET_METRICS,
            {
                "proplet_id": "p1",
                "namespace": "default",
                "timestamp": stamp,
                "cpu_metrics": {"user_seconds": 1.2, "system_seconds": 0.3, "percent": 4.5},
                "memory_metrics": {"rss_bytes": 30015488},
            },
        )

    async def samples() -> list[dict[str, Any]] | None:
        page = (await manager.http.get("/proplets/p1/metrics")).json()
        return list(page["metrics"]) if page["total"] == 2 else None

    of_proplet = await eventually(samples)
    assert of_proplet is not None
    assert of_proplet[0]["timestamp"] == "2026-01-21T16:12:11.123456Z"
    assert of_proplet[0]["memory_metrics"]["rss_bytes"] == 30015488
    of_task = (await manager.http.get(f"/tasks/{task_id}/metrics")).json()
    assert of_task["total"] == 1
    assert of_task["metrics"][0]["metrics"] == sample
    assert (await manager.http.get("/proplets/unknown/metrics")).json()["total"] == 0


async def test_health_and_prometheus(manager: RunningManager) -> None:
    await manager.http.get("/tasks")
    health = (await manager.http.get("/health")).json()
    assert (health["status"], health["description"], health["mqtt_connected"]) == (
        "pass",
        "manager service",
        True,
    )
    assert set(health) >= {"version", "commit", "build_time", "instance_id"}
    text = (await manager.http.get("/metrics")).text
    assert 'manager_api_request_count{method="list-tasks"} 1.0' in text
    assert 'manager_proplets{status="active"} 0.0' in text


async def test_the_usage_of_a_run_is_kept_with_the_task(manager: RunningManager) -> None:
    await manager.add_proplets("p1", directed=True)
    task_id = await manager.create_task()
    assert (await manager.http.post(f"/tasks/{task_id}/start")).status_code == 200
    usage = {"total_ms": 12.5, "cpu_ms": 10, "text": "x", "flag": True}
    await manager.mqtt.send_result(task_id, "p1", usage=usage)

    async def ended() -> dict[str, Any] | None:
        task: dict[str, Any] = (await manager.http.get(f"/tasks/{task_id}")).json()
        return task if task["state"] == 3 else None

    task = await eventually(ended)
    assert task is not None
    assert task["usage"] == {"total_ms": 12.5, "cpu_ms": 10.0}
    assert (await manager.http.post(f"/tasks/{task_id}/start")).status_code == 200
    assert "usage" not in (await manager.http.get(f"/tasks/{task_id}")).json()


def test_a_viewer_is_shown_no_value_of_an_environment() -> None:
    task = {"id": "t", "env": {"TOKEN": "s3cret"}}
    assert shown(task, Principal("user", "u", "viewer"))["env"] == {"TOKEN": HIDDEN}
    assert shown(task, Principal("user", "u", "operator")) == task
    assert shown({"id": "t"}, Principal("user", "u", "viewer")) == {"id": "t"}
