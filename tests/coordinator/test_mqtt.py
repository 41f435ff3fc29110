"""MQTT over a real broker: updates taken from topics, notices of finished rounds, garbage survived."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy.exc import DataError, OperationalError

from propeller.coordinator.mqtt import UpdateReceiver
from propeller.coordinator.store import RoundStore
from propeller.fl.tensors import Tensors, to_safetensors
from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.session import Credentials, Session
from propeller.protocol.topics import ROUND_NEXT, Channel, Kind, update_topic
from propeller.store.blobs import BlobStoreError
from propeller.store.database import Database
from support.coordinator import (
    Peers,
    configure,
    coordinating,
    ended,
    environment,
    process,
    send,
    update,
)
from support.databases import database_at
from support.nats import open_broker
from support.net import eventually, free_port

CHANNEL = Channel("d-1", "c-1")


def variables(port: int) -> dict[str, str]:
    return {
        "MQTT_BROKER": f"tcp://127.0.0.1:{port}",
        "MQTT_CLIENT_ID": f"coordinator-{uuid.uuid4().hex}",
        "COORDINATOR_DOMAIN_ID": CHANNEL.domain_id,
        "COORDINATOR_CHANNEL_ID": CHANNEL.channel_id,
    }


class Listener:
    """A client of the broker that keeps the notices it gets."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.notices: list[tuple[str, dict[str, Any]]] = []

    async def take(self, topic: str, payload: bytes) -> None:
        self.notices.append((topic, json.loads(payload)))

    def rounds(self, topic: str = ROUND_NEXT) -> list[str]:
        return [notice["round_id"] for where, notice in self.notices if where == topic]


@contextlib.asynccontextmanager
async def listening(port: int) -> AsyncIterator[Listener]:
    session = Session(BrokerAddress("127.0.0.1", port), Credentials(uuid.uuid4().hex))
    listener = Listener(session)
    async with session.running():
        await session.wait_connected(10)
        for topic in (ROUND_NEXT, CHANNEL.topic(Kind.ROUND_NEXT), CHANNEL.topic(Kind.ROUND_STOP)):
            await session.subscribe(topic, listener.take)
        yield listener


async def heard(listener: Listener, http: httpx.AsyncClient) -> None:
    """Wait until the coordinator listens to the broker: what comes before that is nobody's."""
    name = f"heard-{uuid.uuid4().hex}"
    await configure(http, name)

    async def has_come() -> bool:
        await listener.session.publish(update_topic(name, "p-1"), json.dumps(update("p-1", name)).encode())
        return bool((await http.get(f"/rounds/{name}")).json()["received"])

    await eventually(has_come)


async def arrived(http: httpx.AsyncClient, round_id: str, count: int) -> None:
    status = (await http.get(f"/rounds/{round_id}/complete?wait_s=10&updates={count - 1}")).json()
    assert status["num_updates"] >= count, status


async def test_a_round_over_mqtt_alone(broker_port: int, peers: tuple[Peers, str], tmp_path: Path) -> None:
    name = f"r-{uuid.uuid4().hex}"
    env = environment(tmp_path, peers[1], **variables(broker_port))
    async with listening(broker_port) as listener, coordinating(env) as http:
        await heard(listener, http)
        await configure(http, name)
        tensors: Tensors = {"w": np.full(3, 3.0, np.float32), "b": np.full((), 3.0, np.float32)}
        document = to_safetensors(tensors, {"round_id": name, "proplet_id": "p-3", "num_samples": "64"})
        one, two = (json.dumps(update(f"p-{number}", name, float(number))).encode() for number in (1, 2))
        # With the prefix and without, JSON and safetensors; the first one twice, as QoS 1 may deliver it.
        await listener.session.publish(update_topic(name, "p-1"), one)
        await listener.session.publish(update_topic(name, "p-1"), one)
        await listener.session.publish(CHANNEL.update(name, "p-2"), two)
        await listener.session.publish(update_topic(name, "p-3"), document)
        status = await ended(http, name)
        assert (status["completed"], status["num_updates"]) == (True, 3)
        assert peers[0].versions[1]["b"].tolist() == 2.0
        await eventually(lambda: len(listener.notices) == 2)
    assert listener.rounds() == listener.rounds(CHANNEL.topic(Kind.ROUND_NEXT)) == [name]
    notice = listener.notices[0][1]
    assert notice.pop("timestamp").endswith("Z")
    assert notice == {
        "round_id": name,
        "new_model_version": 1,
        "model_uri": "fl/models/global_model_v1",
        "status": "complete",
        "next_round_available": True,
    }


async def test_a_round_does_not_wait_for_whoever_sent_what_can_never_count(
    broker_port: int, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    name = f"r-{uuid.uuid4().hex}"
    env = environment(tmp_path, peers[1], **variables(broker_port))
    async with listening(broker_port) as listener, coordinating(env) as http:
        await heard(listener, http)
        await configure(http, name, timeout_s=3600)
        tensors: Tensors = {"w": np.full(2, 1.0, np.float32), "b": np.full((), 3.0, np.float32)}
        fields = {"round_id": name, "proplet_id": "p-1", "num_samples": "64"}
        await listener.session.publish(update_topic(name, "p-1"), to_safetensors(tensors, fields))
        absurd = json.dumps(update("p-2", name, num_samples=10**15)).encode()
        await listener.session.publish(update_topic(name, "p-2"), absurd)
        await listener.session.publish(update_topic(name, "p-3"), json.dumps(update("p-3", name)).encode())
        assert (await ended(http, name))["num_updates"] == 1
        failures = (await http.get(f"/rounds/{name}")).json()["failures"]
    reasons = {one["proplet_id"]: one["reason"] for one in failures}
    assert list(reasons) == ["p-1", "p-2"]
    assert "does not fit the base model" in reasons["p-1"]
    assert "update.max_samples" in reasons["p-2"]


async def test_the_tasks_of_a_round_that_is_cancelled_are_stopped(
    broker_port: int, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    env = environment(tmp_path, peers[1], **variables(broker_port))
    async with listening(broker_port) as listener, coordinating(env) as http:
        await heard(listener, http)
        name = f"r-{uuid.uuid4().hex}"
        await configure(http, name)
        await send(http, "p-1", round_id=name)
        assert (await http.post(f"/rounds/{name}/cancel")).status_code == 200
        topic = CHANNEL.topic(Kind.ROUND_STOP)
        await eventually(lambda: name in listener.rounds(topic))
        stopped = next(notice for where, notice in listener.notices if where == topic)
        assert "p-1" not in stopped["participants"]
        assert stopped["participants"]
        late = await http.post("/update", json=update("p-2", name))
        assert (late.status_code, "late" in late.json()["error"]) == (409, True)


async def test_a_round_that_failed_is_not_announced(
    broker_port: int, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    failed, good = f"r-{uuid.uuid4().hex}", f"r-{uuid.uuid4().hex}"
    env = environment(tmp_path, peers[1], **variables(broker_port))
    async with listening(broker_port) as listener, coordinating(env) as http:
        await heard(listener, http)
        await configure(http, failed, timeout_s=0.1)
        assert (await ended(http, failed))["state"] == "failed"
        await configure(http, good, k_of_n=1)
        await send(http, "p-1", round_id=good)
        await eventually(lambda: listener.rounds() == [good])


@pytest.mark.parametrize(
    ("topic", "body"),
    [
        (("r", "p-1"), b"\x00\xff garbage"),
        (("r", "p-1"), b""),
        (("r", "p-1"), b"{"),
        (("r", "p-1"), b"[]"),
        (("r", "p-1"), b'{"round_id": "x"}'),
        (("r", "p-2"), None),  # the topic of another proplet
        (("other", "p-1"), None),  # the topic of another round
    ],
)
async def test_garbage_on_topics_is_a_warning_and_nothing_more(
    broker_port: int, peers: tuple[Peers, str], tmp_path: Path, topic: tuple[str, str], body: bytes | None
) -> None:
    name = f"r-{uuid.uuid4().hex}"
    payload = json.dumps(update("p-1", name)).encode() if body is None else body
    place = update_topic(name if topic[0] == "r" else topic[0], topic[1])
    env = environment(tmp_path, peers[1], **variables(broker_port))
    async with listening(broker_port) as listener, coordinating(env) as http:
        await heard(listener, http)
        await configure(http, name)
        await listener.session.publish(place, payload)
        await listener.session.publish(update_topic(name, "p-2"), json.dumps(update("p-2", name)).encode())
        await arrived(http, name, 1)
        received = (await http.get(f"/rounds/{name}")).json()["received"]
        assert [one["proplet_id"] for one in received] == ["p-2"]


async def test_what_waits_in_the_broker_is_taken_after_a_crash(
    broker_port: int, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    name = f"r-{uuid.uuid4().hex}"
    env = environment(tmp_path / "state", peers[1], **variables(broker_port))
    async with (
        listening(broker_port) as listener,
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{env['COORDINATOR_PORT']}", timeout=30, trust_env=False
        ) as http,
    ):
        with process(env, tmp_path / "log") as killable:
            await configure(http, name)
            await eventually(
                lambda: len([one for one in killable.lines() if one["msg"] == "subscribed to topic"]) == 2
            )
            killable.kill()
            for number in (1, 2):
                payload = json.dumps(update(f"p-{number}", name)).encode()
                await listener.session.publish(update_topic(name, f"p-{number}"), payload)
            await asyncio.to_thread(killable.start)
            await arrived(http, name, 2)
            await send(http, "p-3", round_id=name)
            assert (await ended(http, name))["completed"]
            await eventually(lambda: listener.rounds() == [name])


async def test_a_notice_waits_for_the_broker_and_survives_a_restart(
    peers: tuple[Peers, str], tmp_path: Path
) -> None:
    port = free_port()
    env = environment(tmp_path / "state", peers[1], **variables(port))
    async with coordinating(env) as http:
        await configure(http, k_of_n=1)
        await send(http, "p-1")
        assert (await ended(http))["completed"]
    database = Database(database_at(tmp_path / "state" / "coordinator.db"))
    assert await RoundStore(database).unannounced() == [("r-1", 1)]
    with open_broker(tmp_path / "broker", port):
        async with listening(port) as listener, coordinating(env):
            await eventually(lambda: listener.rounds() == ["r-1"])
            await eventually(lambda: _none_waits(RoundStore(database)))
        # Told once: not again after another start.
        async with listening(port) as listener, coordinating(env) as http:
            await configure(http, "r-2", k_of_n=1)
            await send(http, "p-1", round_id="r-2")
            await eventually(lambda: listener.rounds() == ["r-2"])
    await database.close()


async def _none_waits(store: RoundStore) -> bool:
    return not await store.unannounced()


class FailingService:
    """A service that cannot store updates some times, each time for another reason."""

    ERRORS = (
        OSError("disk full"),
        OperationalError("INSERT", {}, Exception("locked")),
        BlobStoreError("S3 is away"),
    )

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0
        self.noted: list[tuple[str, str]] = []

    async def accept_update(self, _update: object) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.ERRORS[self.calls % len(self.ERRORS)]

    async def note_refusal(self, round_id: str, proplet_id: str, _reason: str) -> None:
        self.noted.append((round_id, proplet_id))


async def test_an_update_that_cannot_be_stored_is_tried_again_for_as_long_as_it_takes(
    broker_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.mqtt.session.FIRST_HANDLER_DELAY_S", 0.001)
    monkeypatch.setattr("propeller.mqtt.session.LONGEST_HANDLER_DELAY_S", 0.001)
    service = FailingService(20)
    receiver = UpdateReceiver(service, max_bytes=10_000)  # type: ignore[arg-type]
    round_id = f"r-{uuid.uuid4().hex}"
    session = Session(BrokerAddress("127.0.0.1", broker_port), Credentials(uuid.uuid4().hex), clean=True)
    async with session.running():
        await session.wait_connected(10)
        await session.subscribe(update_topic(round_id, "p-1"), receiver.handle)
        for _ in range(2):
            await session.publish(
                update_topic(round_id, "p-1"), json.dumps(update(round_id=round_id)).encode()
            )
        await eventually(lambda: service.calls == 22)  # the second one waited for the first


async def test_an_update_that_the_database_will_never_take_does_not_block_the_others() -> None:
    class RefusingService:
        calls = 0

        async def accept_update(self, _update: object) -> None:
            self.calls += 1
            raise DataError("INSERT", {}, Exception("value out of range"))

    service = RefusingService()
    receiver = UpdateReceiver(service, max_bytes=10_000)  # type: ignore[arg-type]
    await receiver.handle(update_topic("r-1", "p-1"), json.dumps(update()).encode())
    assert service.calls == 1


async def test_an_update_over_the_limit_is_not_read() -> None:
    service = FailingService(0)
    receiver = UpdateReceiver(service, max_bytes=10)  # type: ignore[arg-type]
    await receiver.handle(update_topic("r-1", "p-1"), json.dumps(update()).encode())
    assert (service.calls, service.noted) == (0, [("r-1", "p-1")])
