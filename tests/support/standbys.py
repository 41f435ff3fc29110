"""Two coordinators and two managers on one PostgreSQL, whose owners are killed while devices take part in an experiment.

Model registry, aggregator and broker are real; the devices are clients of the broker that send one update for each task. Coordinators
and managers are processes.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from propeller.aggregator import api as aggregator
from propeller.aggregator.settings import AggregatorSettings
from propeller.model_registry import api as model_registry
from propeller.model_registry.settings import ModelRegistrySettings
from propeller.process.background import BackgroundTasks
from propeller.protocol.topics import Channel, Kind
from support.command_server import Command
from support.manager import ChannelClient
from support.mqtt import Relay
from support.net import eventually, free_port, wait_port

DEVICES = ("p-1", "p-2", "p-3")
PROGRAM = f"localhost:5000/fl@sha256:{'a' * 64}"
HEARTBEAT_S = 1.0
LONGEST_TRAINING_S = 0.1
AGAIN_S = 0.02
"""Before a device sends an update again that was not answered."""

LOST_DATABASE = "does not own its database any more"


@dataclass(frozen=True)
class Member:
    """A process of a pair, the port that it listens on as the owner, and its log."""

    process: Command
    port: int
    log: Path


class Pair:
    """The owner of a database and its standby: two processes of one service, behind one address that leads to the owner."""

    def __init__(self, service: str, port_variable: str, logs: Path) -> None:
        """``logs`` is a folder."""
        self._service, self._port_variable, self._logs = service, port_variable, logs
        self._env: Mapping[str, str] = {}
        self._address = Relay(0)
        self._members: list[Member] = []
        self._count = 0

    @property
    def url(self) -> str:
        """The address."""
        return f"http://127.0.0.1:{self._address.port}"

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["Pair"]:
        """The address, for the length of the block; nobody is there yet."""
        async with self._address.running():
            yield self

    @contextlib.asynccontextmanager
    async def running(self, environment: Mapping[str, str]) -> AsyncIterator["Pair"]:
        """Both, the first as the owner; killed at the end."""
        self._env = environment
        try:
            self._start()
            await self._owner_answers()
            await self._add_standby()
            yield self
        finally:
            for member in self._members:
                member.process.kill()
                member.process.wait()

    async def lose_owner(self, how: signal.Signals) -> float:
        """Kill the owner, or stop it and let it go on later; then have another standby. The seconds until the first one answered."""
        lost = self._members.pop(0)
        try:
            lost.process.send_signal(how)
            begun = time.monotonic()
            await self._owner_answers()
            took = time.monotonic() - begun
            lost.process.send_signal(signal.SIGCONT)
            code = await asyncio.to_thread(lost.process.wait, 10)
        finally:
            lost.process.kill()
            lost.process.wait()
        if how is signal.SIGSTOP:
            assert (code, LOST_DATABASE in lost.log.read_text()) == (1, True), lost.log.read_text()
        await self._add_standby()
        return took

    def _start(self) -> Member:
        port = free_port()
        self._count += 1
        log = self._logs / f"{self._service}-{self._count}.log"
        with log.open("wb") as output:
            env = {"PATH": os.environ["PATH"], **self._env, self._port_variable: str(port)}
            process = Command(["serve", self._service], env, stdout=output, stderr=output)
        member = Member(process, port, log)
        self._members.append(member)
        return member

    async def _add_standby(self) -> None:
        owner, standby = self._members[0], self._start()
        name = f"process {owner.process.pid} on"
        await eventually(lambda: name in standby.log.read_text(), 30, f"{self._service} has a standby")

    async def _owner_answers(self) -> None:
        member = self._members[0]
        url = f"http://127.0.0.1:{member.port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=1) as http:

            async def answers() -> bool:
                assert member.process.poll() is None, member.log.read_text()
                with contextlib.suppress(httpx.TransportError):
                    return (await http.get("/health")).status_code == 200
                return False

            await eventually(answers, 30, f"{self._service} answers")
        self._address.cut()
        self._address.target = member.port


class Devices(ChannelClient):
    """Devices that train for a moment, send their update until it is acknowledged, and then the result of the task.

    Attributes:
        acknowledged: the number that each update has everywhere, by round and device, of those that were acknowledged.
        refused: what else was answered.
        tasks: how often each task was started.
        random: what chance decides.
    """

    def __init__(self, port: int, channel: Channel, seed: int) -> None:
        super().__init__(port, channel)
        self.directed.update(DEVICES)
        self.acknowledged: dict[tuple[str, str], float] = {}
        self.refused: list[str] = []
        self.tasks: Counter[str] = Counter()
        self.random = random.Random(seed)
        self._background = BackgroundTasks("devices")

    @contextlib.asynccontextmanager
    async def training(self, coordinator: Pair, manager: Pair) -> AsyncIterator[None]:
        """Take part for the length of the block."""
        self._coordinator = coordinator
        async with self, httpx.AsyncClient(base_url=manager.url, trust_env=False) as http:
            for name in DEVICES:
                await self.register(name, directed=True)

            async def are_alive() -> bool:
                for name in DEVICES:
                    await self.send_heartbeat(name)
                found = (await http.get("/proplets", params={"status": "active"})).json()
                return bool(found["total"] == len(DEVICES))

            await eventually(are_alive, what="the devices are registered")
            self._background.spawn_periodic("heartbeats", self._live, HEARTBEAT_S)
            try:
                yield
            finally:
                await self._background.close()

    async def receive(self, topic: str, payload: bytes) -> None:
        """Take a message: each task is done once."""
        await super().receive(topic, payload)
        kind, start = self.received[-1]
        if kind.startswith(Kind.START):
            self.tasks[start["id"]] += 1
            if self.tasks[start["id"]] == 1:
                self._background.spawn(self._train(start))

    async def _live(self) -> None:
        for name in DEVICES:
            await self.send_heartbeat(name)

    async def _train(self, start: dict[str, Any]) -> None:
        await asyncio.sleep(self.random.uniform(0, LONGEST_TRAINING_S))
        round_id, name, number = start["env"]["ROUND_ID"], start["proplet_id"], self.random.uniform(-1, 1)
        update = {
            "round_id": round_id,
            "proplet_id": name,
            "base_model_uri": start["env"]["MODEL_URI"],
            "num_samples": 1,
            "metrics": {"loss": number},
            "update": {"w": [number] * 3, "b": number},
        }
        async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    answer = await http.post(f"{self._coordinator.url}/update", json=update)
                    if answer.status_code == 200:
                        self.acknowledged[round_id, name] = number
                        break
                    if answer.status_code < 500:
                        self.refused.append(f"{round_id} {name}: {answer.text}")
                        break
                await asyncio.sleep(AGAIN_S)
        await self.send_result(start["id"], name, {"done": True})


@dataclass
class World:
    """Everything that takes part."""

    coordinator: Pair
    manager: Pair
    devices: Devices
    models: httpx.AsyncClient
    takeovers: list[tuple[str, str, float]] = field(default_factory=list)
    """Of what, how it was lost, and the seconds until the next one answered."""

    async def run(self, rounds: int, losses: Mapping[int, tuple[str, signal.Signals]]) -> None:
        """An experiment; at the start of some of its rounds the owner of a database is lost.

        Raises:
            AssertionError: something was lost or done twice.
        """
        spec = {"id": "e", "program": PROGRAM, "rounds": rounds, "model": {"version": 0}, "timeout_s": 60}
        async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
            answer = await http.post(f"{self.coordinator.url}/experiments", json=spec)
            assert answer.status_code == 201, answer.text
            for number, (service, how) in sorted(losses.items()):
                await eventually(lambda: self._has_begun(number), 60, f"round {number} begins")  # noqa: B023
                await asyncio.sleep(self.devices.random.uniform(0, LONGEST_TRAINING_S))
                took = await getattr(self, service).lose_owner(how)
                self.takeovers.append((service, how.name, took))

            async def has_ended() -> dict[str, Any] | None:
                with contextlib.suppress(httpx.TransportError):
                    found = (await http.get(f"{self.coordinator.url}/experiments/e")).json()
                    return found if found["state"] in {"completed", "failed", "stopped"} else None
                return None

            found = await eventually(has_ended, 120, "the experiment ends")
            assert found is not None
            assert (found["state"], found["done"]) == ("completed", rounds), found
            history = (await http.get(f"{self.coordinator.url}/experiments/e/history")).json()["rounds"]
            await self._check(history, await self._tasks(http), rounds)

    def _has_begun(self, number: int) -> bool:
        return any(round_id.startswith(f"e.{number}") for round_id, _name in self.devices.acknowledged)

    async def _tasks(self, http: httpx.AsyncClient) -> list[dict[str, Any]]:
        async def all_ended() -> list[dict[str, Any]] | None:
            page = (await http.get(f"{self.manager.url}/tasks?limit=1000")).json()["tasks"]
            return page if all(task["state"] == 3 for task in page) else None

        return await eventually(all_ended, 20, "every task is completed") or []

    async def _check(self, history: list[dict[str, Any]], tasks: list[dict[str, Any]], rounds: int) -> None:
        devices = self.devices
        assert devices.refused == []
        assert len(history) == rounds  # none was tried again
        counted = {
            (each["round_id"], one["proplet_id"]): one["metrics"]["loss"]
            for each in history
            for one in each["updates"]
        }
        assert sum(len(each["updates"]) for each in history) == len(counted) == rounds * len(DEVICES)
        assert counted == devices.acknowledged
        assert sorted((task["env"]["ROUND_ID"], task["proplet_id"]) for task in tasks) == sorted(counted)
        assert set(devices.tasks) == {task["id"] for task in tasks}
        for number, each in enumerate(history, 1):
            assert each["model_version"] == number
            numbers = [devices.acknowledged[each["round_id"], name] for name in DEVICES]
            model = (await self.models.get(f"/models/{number}")).json()
            assert abs(model["b"] - sum(numbers) / len(numbers)) < 1e-6
        assert (await self.models.get("/models")).json() == {"versions": list(range(rounds + 1))}


@contextlib.asynccontextmanager
async def open_world(
    folder: Path, broker_port: int, databases: Mapping[str, str], seed: int
) -> AsyncIterator[World]:
    """Two of each on one database, by the name of the service, a broker that lets anyone in, and devices that are registered."""
    (folder / "logs").mkdir()
    channel, broker = Channel(f"d-{folder.name}", "c"), f"tcp://127.0.0.1:{broker_port}"
    async with contextlib.AsyncExitStack() as stack:
        registry, aggregating = await stack.enter_async_context(_serving_peers(folder))
        models = httpx.AsyncClient(base_url=registry, trust_env=False)
        await stack.enter_async_context(models)
        coordinators = Pair("coordinator", "COORDINATOR_PORT", folder / "logs")
        managers = Pair("manager", "MANAGER_HTTP_PORT", folder / "logs")
        for pair in (coordinators, managers):
            await stack.enter_async_context(pair.listening())
        coordinator = {
            "COORDINATOR_STATE": str(folder / "coordinator"),
            "COORDINATOR_DATABASE": databases["coordinator"],
            "COORDINATOR_DOMAIN_ID": channel.domain_id,
            "COORDINATOR_CHANNEL_ID": channel.channel_id,
            "MODEL_REGISTRY_URL": registry,
            "AGGREGATOR_URL": aggregating,
            "MQTT_BROKER": broker,
            "MQTT_CLIENT_ID": f"coordinator-{folder.name}",
        }
        manager = {
            "MANAGER_DATABASE": databases["manager"],
            "MANAGER_DOMAIN_ID": channel.domain_id,
            "MANAGER_CHANNEL_ID": channel.channel_id,
            "MANAGER_CLIENT_ID": f"manager-{folder.name}",
            "MANAGER_MQTT_ADDRESS": broker,
            "COORDINATOR_URL": coordinators.url,
        }
        await asyncio.gather(
            stack.enter_async_context(coordinators.running(coordinator)),
            stack.enter_async_context(managers.running(manager)),
        )
        devices = Devices(broker_port, channel, seed)
        await stack.enter_async_context(devices.training(coordinators, managers))
        yield World(coordinators, managers, devices, models)


@contextlib.asynccontextmanager
async def _serving_peers(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """The model registry and the aggregator; their URLs."""
    stop, ports = asyncio.Event(), (free_port(), free_port())
    registry = ModelRegistrySettings.load(REGISTRY_PORT=ports[0], MODELS_DIR=folder / "models")
    serving = [
        asyncio.create_task(model_registry.main(registry, stop)),
        asyncio.create_task(aggregator.main(AggregatorSettings.load(AGGREGATOR_PORT=ports[1]), stop)),
    ]
    try:
        for port in ports:
            await asyncio.to_thread(wait_port, port)
        yield f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
    finally:
        stop.set()
        await asyncio.gather(*serving)
