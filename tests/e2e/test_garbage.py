"""Whatever comes over MQTT, no service goes down and the next round runs."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.session import Credentials, Session
from propeller.protocol.topics import PROPLET_SAYS, Channel, Kind, update_topic
from propeller.sdk import Propeller
from support.garbage import GARBAGE
from support.stack import Up, running_stack

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("garbage") / "state") as running:
        yield running


async def send(up: Up, client: str, topics: list[str]) -> None:
    who, broker = up.stack["clients"][client], up.stack["broker"]
    credentials = Credentials(f"{who['id']}-test", who["id"], who["key"])
    async with Session(
        BrokerAddress(broker["host"], broker["port"]), credentials, clean=True
    ).running() as session:
        for topic in topics:
            await asyncio.gather(*(session.publish(topic, payload, timeout=20) for payload in GARBAGE))


async def test_garbage_on_every_topic_stops_nothing(up: Up) -> None:
    channel = Channel(up.stack["domain_id"], up.stack["channel_id"])
    ids = up.ids()
    from_proplet = [*PROPLET_SAYS, Kind.REGISTRY_REQUEST]
    own = [channel.said(kind, ids[0]) for kind in from_proplet]
    await send(
        up,
        "proplet-1",
        [*own, *map(channel.topic, from_proplet), update_topic("r-1", ids[0]), channel.update("r-1", ids[0])],
    )
    from_manager = [Kind.START, Kind.STOP, Kind.ROUND_START, Kind.ROUND_NEXT, Kind.REGISTRY_CHUNK]
    directed = [
        channel.start(ids[1]),
        channel.stop(ids[1]),
        channel.answers(ids[1]),
        "fl/rounds/start",
        "fl/rounds/next",
    ]
    await send(up, "manager", [*map(channel.topic, from_manager), *directed])
    pids = dict(up.stack["processes"])
    with Propeller.from_state(up.folder) as fl:
        assert len(fl.proplets(alive=True)) == 3
        result = await asyncio.to_thread(lambda: fl.run_round(fl.image()))
        assert len(result.updates) == 3
        assert [proplet["id"] for proplet in fl.proplets() if proplet["id"] not in ids] == []
    assert {
        name: process.pid for process in up.processes() for name, pid in pids.items() if process.pid == pid
    } == pids
    for log in (up.folder / "logs").glob("*.log"):
        text = log.read_text()
        assert "Traceback" not in text, f"{log.name}: {text[text.index('Traceback') - 500 :][:2000]}"


async def test_what_one_proplet_may_not_do_reaches_no_one(up: Up) -> None:
    """A proplet's key starts no round and no task, and does not send updates for another."""
    channel, ids = Channel(up.stack["domain_id"], up.stack["channel_id"]), up.ids()
    who, broker = up.stack["clients"]["proplet-1"], up.stack["broker"]
    start = {
        "round_id": "r-forged",
        "model_uri": "fl/models/global_model_v0",
        "task_wasm_image": up.stack["images"]["fl-client-wasm"],
        "participants": ids,
    }
    credentials = Credentials(f"{who['id']}-forger", who["id"], who["key"])
    async with Session(
        BrokerAddress(broker["host"], broker["port"]), credentials, clean=True
    ).running() as session:
        for topic in ("fl/rounds/start", channel.topic(Kind.ROUND_START)):
            await session.publish(topic, json.dumps(start).encode())
        await session.publish(update_topic("r-forged", ids[1]), b"{}")
    with Propeller.from_state(up.folder) as fl:
        await asyncio.to_thread(lambda: fl.run_round(fl.image(), round_id="r-after"))
        assert "r-forged" not in [detail["round_id"] for detail in fl.rounds()]
    assert "r-forged" not in Path(up.folder / "logs" / "manager.log").read_text()
