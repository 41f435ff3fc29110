"""What the manager answered survives kill -9, and it serves while its broker is away."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from propeller.manager import tables
from propeller.manager.settings import ManagerSettings
from propeller.manager.task import Task, TaskSpec, TaskState
from propeller.manager.task_repository import TaskRepository
from propeller.protocol.topics import Channel
from propeller.protocol.wire import now
from propeller.store.database import Database
from propeller.store.migrations import migrate
from support.manager import (
    ChannelClient,
    FakeCoordinator,
    RunningManager,
    is_connected,
    open_manager,
    served,
    settings_for,
)
from support.nats import open_broker
from support.net import eventually, free_port

PROGRAM = """
import asyncio, sys
from propeller.manager.main import main
from propeller.manager.settings import ManagerSettings
from propeller.process.run import run
sys.exit(run(lambda stop: main(ManagerSettings.load(), stop)))
"""


@contextlib.asynccontextmanager
async def process(
    settings: ManagerSettings,
) -> AsyncIterator[tuple[subprocess.Popen[bytes], httpx.AsyncClient]]:
    """A manager in a process of its own, connected to its broker; killed at the end."""
    env = {
        **os.environ,
        "MANAGER_HTTP_PORT": str(settings.http_port),
        "MANAGER_MQTT_ADDRESS": settings.mqtt_address,
        "MANAGER_DOMAIN_ID": settings.domain_id,
        "MANAGER_CHANNEL_ID": settings.channel_id,
        "MANAGER_CLIENT_ID": settings.client_id,
        "MANAGER_DATABASE": settings.database,
        "COORDINATOR_URL": settings.coordinator_url,
    }
    running = subprocess.Popen([sys.executable, "-c", PROGRAM], env=env, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{settings.http_port}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as http:
            await eventually(partial(_connected, http), timeout=20)
            yield running, http
    finally:
        running.kill()
        running.wait()


async def _connected(http: httpx.AsyncClient) -> bool:
    try:
        return await is_connected(http)
    except httpx.TransportError:
        return False


async def test_what_was_answered_survives_kill_9(
    broker_port: int, tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    settings = settings_for(broker_port, tmp_path, coordinator_url=coordinator.url)
    channel = Channel(settings.domain_id, settings.channel_id)
    bodies: list[dict[str, Any]] = [
        {
            "round_id": f"r-{number}",
            "model_ref": "fl/models/global_model_v0",
            "participants": ["p1", "p2"],
            "task_wasm_image": "localhost/fl:1",
        }
        for number in range(40)
    ]
    answered: list[str] = []
    async with ChannelClient(broker_port, channel) as mqtt:
        async with process(settings) as (running, http):
            manager = RunningManager(settings, http, mqtt)
            await manager.add_proplets("p1", "p2", directed=True)
            kept = await manager.create_task(name="kept", proplet_id="p2")

            async def post(body: dict[str, Any]) -> None:
                with contextlib.suppress(httpx.TransportError):
                    answer = await http.post("/fl/experiments", json=body)
                    if answer.status_code == 200:
                        answered.append(str(body["round_id"]))

            posting = [asyncio.create_task(post(body)) for body in bodies]
            await eventually(lambda: len(answered) >= 8)
            running.kill()
            await asyncio.gather(*posting)
            # What a proplet says while the manager is down waits for it at the broker.
            for start in (one for one in mqtt.starts() if one["env"]["ROUND_ID"] == answered[0]):
                await mqtt.send_result(start["id"], start["proplet_id"], "done")

        async with process(settings) as (_running, http):
            manager = RunningManager(settings, http, mqtt)
            assert (await manager.task(kept))["name"] == "kept"
            page = (await http.get("/tasks?limit=1000")).json()["tasks"]
            stored = Counter(task["env"]["ROUND_ID"] for task in page if task["name"] != "kept")
            assert all(stored[round_id] == 2 for round_id in answered)
            assert set(stored.values()) == {2}
            await eventually(partial(_ended, http, answered[0]))
            await manager.add_proplets("p1", "p2", directed=True)

            answers = await asyncio.gather(*(http.post("/fl/experiments", json=body) for body in bodies))
            assert {answer.status_code for answer in answers} == {200}
            await eventually(partial(_all_started, http))
            page = (await http.get("/tasks?limit=1000")).json()["tasks"]
            names = [task["name"] for task in page]
            assert len(names) == len(set(names)) == 81
            told = Counter(start["name"] for start in mqtt.starts())
            assert set(told) == set(names) - {"kept"}
            # An answered round is never told twice; one that was cut off may be, under the same task id.
            assert all(told[f"fl-round-{one}-{proplet}"] == 1 for one in answered for proplet in ("p1", "p2"))


async def _ended(http: httpx.AsyncClient, round_id: str) -> bool:
    page = (await http.get("/tasks?limit=1000")).json()["tasks"]
    return all(task["state"] == 3 for task in page if task.get("env", {}).get("ROUND_ID") == round_id)


async def _all_started(http: httpx.AsyncClient) -> bool:
    page = (await http.get("/tasks?limit=1000")).json()["tasks"]
    return all(task["state"] in {2, 3} for task in page if task["name"] != "kept")


async def test_starts_that_were_decided_go_out_after_a_restart_unless_their_round_is_over(
    broker_port: int, tmp_path: Path
) -> None:
    settings = settings_for(broker_port, tmp_path)
    database = Database(settings.database)
    await migrate(database, tables.SCHEMA)
    store, moment = TaskRepository(database), now()
    for round_id, deadline in (("r-open", moment + timedelta(hours=1)), ("r-over", moment)):
        async with database.transaction() as connection:
            await connection.execute(
                tables.rounds.insert().values(
                    round_id=round_id,
                    experiment={},
                    skipped=[],
                    deadline=tables.to_micros(deadline),
                    created_at=tables.to_micros(moment),
                )
            )
        spec = TaskSpec(name=round_id, image_url="localhost/fl:1", proplet_id="p1")
        await store.add(
            Task(f"t-{round_id}", spec, TaskState.SCHEDULED, moment, proplet_id="p1", round_id=round_id)
        )
    async with database.transaction() as connection:
        await connection.execute(
            tables.proplets.insert().values(
                id="p1",
                name="p1",
                namespace="default",
                created_at=tables.to_micros(moment),
                heartbeats=[tables.to_micros(moment)],
                offline=False,
            )
        )
    await database.close()

    channel = Channel(settings.domain_id, settings.channel_id)
    async with ChannelClient(broker_port, channel) as mqtt, served(settings) as http:
        manager = RunningManager(settings, http, mqtt)
        await manager.wait_for_state("t-r-open", 2)
        lost = await manager.wait_for_state("t-r-over", 4)
        assert "round ended" in lost["error"]
        await eventually(mqtt.starts)
        assert [start["id"] for start in mqtt.starts()] == ["t-r-open"]


async def test_it_serves_while_the_broker_is_away_and_goes_on_when_it_is_back(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    port = free_port()
    body = {
        "round_id": "r-1",
        "model_ref": "m",
        "participants": ["p1"],
        "task_wasm_image": "localhost/fl:1",
    }
    with open_broker(tmp_path / "broker", port):
        given = {"coordinator_url": coordinator.url, "mqtt_timeout_s": 0.3, "liveliness_interval_s": 60}
        settings = settings_for(port, tmp_path, **given)
        async with open_manager(port, tmp_path, **{**given, "database": settings.database}) as manager:
            await manager.add_proplets("p1")
            task_id = await manager.create_task()
    settings = manager.settings.model_copy(update={"http_port": free_port()})
    async with served(settings) as http:
        away = RunningManager(settings, http, manager.mqtt)
        assert (await http.get("/health")).json()["mqtt_connected"] is False
        assert await away.is_alive("p1")
        for path, json in ((f"/tasks/{task_id}/start", None), ("/fl/experiments", body)):
            answer = await http.post(path, json=json)
            assert answer.status_code == 503
            assert f"no MQTT broker at tcp://127.0.0.1:{port}" in answer.json()["error"]
        assert (await away.task(task_id))["state"] == 0
        assert coordinator.experiments == []
        with open_broker(tmp_path / "broker", port):
            await eventually(partial(is_connected, http))
            assert (await http.post(f"/tasks/{task_id}/start")).status_code == 200
            assert (await http.post("/fl/experiments", json=body)).status_code == 200


async def test_a_broker_that_goes_while_a_round_is_launched_gets_the_starts_when_it_is_back(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    port, broker = free_port(), contextlib.ExitStack()
    broker.enter_context(open_broker(tmp_path / "broker", port))
    coordinator.on_configure = broker.close
    given = {"coordinator_url": coordinator.url, "mqtt_timeout_s": 0.3}
    with broker:
        async with open_manager(port, tmp_path, **given) as manager:
            await manager.add_proplets("p1", "p2", directed=True)
            body = {
                "round_id": "r-1",
                "model_ref": "m",
                "participants": ["p1", "p2"],
                "task_wasm_image": "localhost/fl:1",
            }
            assert (await manager.http.post("/fl/experiments", json=body)).status_code == 200
            launched = (await manager.http.get("/tasks")).json()["tasks"]
            assert [task["state"] for task in launched] == [1, 1]
            broker.enter_context(open_broker(tmp_path / "broker", port))
            for task in launched:
                await manager.wait_for_state(task["id"], 2)
            await eventually(lambda: len(manager.mqtt.starts()) == 2)
