"""What comes over MQTT: heartbeats, wills, and garbage on every topic."""

import contextlib
import json
import uuid
from functools import partial
from pathlib import Path

from structlog.testing import capture_logs

from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.session import Credentials, Session, Will
from propeller.protocol.topics import PROPLET_SAYS, ROUND_START, Kind
from support.manager import RunningManager, open_manager
from support.mqtt import Relay
from support.net import eventually

TAKEN = (
    Kind.PROPLET_CREATE,
    Kind.PROPLET_ALIVE,
    Kind.PROPLET_RESULTS,
    Kind.PROPLET_METRICS,
    Kind.TASK_METRICS,
    Kind.ROUND_START,
    ROUND_START,
)
GARBAGE = (
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b"{" * 10_000,
    b'{"proplet_id": "../../etc", "task_id": "a/b", "round_id": "+/#"}',
    b'{"proplet_id": 5, "task_id": [], "round_id": {}}',
    b'{"proplet_id": "p", "status": NaN}',
    b'{"proplet_id": "p\\u0000", "task_id": "t\\u0000", "round_id": "\\ud800"}',
    json.dumps({"proplet_id": "x" * 200, "task_id": "x" * 200, "round_id": "x" * 200}).encode(),
    b'{"task_id": "t", "proplet_id": "p", "metrics": {"a": 1e999}, "results": 1e999, "metadata": "m"}',
)


async def test_garbage_is_warned_of_and_changes_nothing(manager: RunningManager) -> None:
    await manager.add_proplets("p1")
    with capture_logs() as logs:
        said = [manager.mqtt.channel.said(kind, "p1") for kind in PROPLET_SAYS]
        for topic in (*TAKEN, *said):
            for payload in GARBAGE:
                await manager.mqtt.publish(topic, payload)
        # Filters have queues of their own: each is empty when what came after the garbage has its effect.
        await manager.add_proplets("p2")
        task_id = await manager.create_task()
        await manager.http.post(f"/tasks/{task_id}/start")
        await manager.mqtt.send_result(task_id, (await manager.task(task_id))["proplet_id"])
        await manager.wait_for_state(task_id, 3)
        ignored = [log for log in logs if log["event"] == "message ignored"]
    assert ignored
    assert all(log["reason"] and log["topic"] for log in ignored)
    senders = [log["sender"] or log["topic"] for log in ignored]
    assert len(senders) == len(set(senders)), "a line a sender, however much it sends"
    assert not [log for log in logs if log["log_level"] in {"error", "critical"}]
    listed = (await manager.http.get("/proplets")).json()
    assert [one["id"] for one in listed["proplets"]] == ["p1", "p2"]


async def test_nothing_else_of_the_channel_reaches_the_manager(manager: RunningManager) -> None:
    with capture_logs() as logs:
        for topic in ("registry/server", "registry/proplet", "control/manager/start", "anything"):
            await manager.mqtt.publish(f"{manager.mqtt.channel.prefix}/{topic}", b"garbage")
        await manager.add_proplets("p1")
    assert [log for log in logs if log["event"] == "message ignored"] == []


async def test_a_heartbeat_of_an_unknown_proplet_registers_it(manager: RunningManager) -> None:
    await manager.mqtt.send_heartbeat("late")
    await eventually(partial(manager.is_alive, "late"))
    proplet = (await manager.http.get("/proplets/late")).json()
    assert (proplet["id"], proplet["task_count"], len(proplet["alive_history"])) == ("late", 0, 1)
    assert proplet["name"]


async def test_the_history_has_the_last_ten(manager: RunningManager) -> None:
    for _ in range(13):
        await manager.mqtt.send_heartbeat("p1")

    async def history() -> list[str] | None:
        answer = await manager.http.get("/proplets/p1/alive-history?limit=4&offset=8")
        page = answer.json()
        return list(page["history"]) if page.get("total") == 10 else None

    page = await eventually(history)
    assert page is not None
    assert len(page) == 2
    proplet = (await manager.http.get("/proplets/p1")).json()
    assert proplet["alive_history"][8:] == page
    assert proplet["last_alive_at"] == page[-1]


async def test_active_and_inactive_proplets(manager: RunningManager) -> None:
    await manager.add_proplets("p1", "p2")
    await manager.mqtt.register("p3")
    await eventually(partial(manager.is_known, "p3"))

    async def ids(query: str) -> list[str]:
        page = (await manager.http.get(f"/proplets?{query}")).json()
        assert page["total"] >= len(page["proplets"])
        return [one["id"] for one in page["proplets"]]

    assert await ids("status=active") == ["p1", "p2"]
    assert await ids("status=inactive") == ["p3"]
    assert await ids("offset=1&limit=1") == ["p2"]
    assert (await manager.http.get("/proplets/p3")).json()["alive_history"] is None
    assert (await manager.http.delete("/proplets/p3")).status_code == 204
    assert (await manager.http.delete("/proplets/p3")).status_code == 404
    assert await ids("offset=5") == []


async def test_a_broken_connection_s_will_takes_the_proplet_offline_at_once(
    manager: RunningManager, broker_port: int
) -> None:
    await manager.add_proplets("p1")
    async with contextlib.AsyncExitStack() as stack:
        relay = await stack.enter_async_context(Relay(broker_port).running())
        for proplet_id in ("some-proxy", "p1"):
            payload = json.dumps({"status": "offline", "proplet_id": proplet_id}).encode()
            will = Will(manager.mqtt.channel.topic(Kind.PROPLET_ALIVE), payload, 0)
            session = Session(
                BrokerAddress("127.0.0.1", relay.port), Credentials(uuid.uuid4().hex), will=will, clean=True
            )
            await stack.enter_async_context(session.running())
            await session.wait_connected(10)
        relay.cut()
        await eventually(partial(_is_dead, manager, "p1"))
    assert not await manager.is_known("some-proxy")


async def _is_dead(manager: RunningManager, proplet_id: str) -> bool:
    return not await manager.is_alive(proplet_id)


async def test_a_task_whose_proplet_falls_silent_fails_and_a_late_result_still_counts(
    broker_port: int, tmp_path: Path
) -> None:
    async with open_manager(broker_port, tmp_path, liveliness_interval_s=0.2) as manager:
        ids = []
        await manager.add_proplets("p1", liveliness_interval=0.4)
        for _ in range(2):
            task_id = await manager.create_task()
            assert (await manager.http.post(f"/tasks/{task_id}/start")).status_code == 200
            ids.append(task_id)
        for task_id in ids:
            lost = await manager.wait_for_state(task_id, 4)
            assert "p1 was lost: no heartbeat for 1.2 s" in lost["error"]
        await manager.mqtt.send_result(ids[0], "p1", "8")
        done = await manager.wait_for_state(ids[0], 3)
        assert (done["results"], "error" in done) == ("8", False)
        assert (await manager.task(ids[1]))["state"] == 4
