"""The session against a real broker: it delivers, reconnects, resubscribes, and acknowledges after handling."""

import asyncio
import contextlib
import uuid
from pathlib import Path

import pytest

from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.session import Credentials, NotConnectedError, Session, Will
from support.nats import open_broker
from support.net import eventually, free_port


def session(port: int, name: str = "", **options: object) -> Session:
    return Session(BrokerAddress("127.0.0.1", port), Credentials(name or uuid.uuid4().hex), **options)  # type: ignore[arg-type]


async def test_messages_reach_their_handler_in_order(broker_port: int) -> None:
    got: list[tuple[str, bytes]] = []
    topic = f"t/{uuid.uuid4().hex}"

    async def take(topic: str, payload: bytes) -> None:
        await asyncio.sleep(0.001)
        got.append((topic, payload))

    async with session(broker_port, clean=True).running() as one:
        await one.wait_connected(10)
        await one.subscribe(f"{topic}/+", take)
        for number in range(20):
            await one.publish(f"{topic}/a", str(number).encode())
        await eventually(lambda: len(got) == 20)
    assert [payload for _, payload in got] == [str(number).encode() for number in range(20)]


async def test_a_handler_that_fails_does_not_stop_the_next_message(broker_port: int) -> None:
    got: list[bytes] = []
    topic = f"t/{uuid.uuid4().hex}"

    async def take(_topic: str, payload: bytes) -> None:
        got.append(payload)
        if payload == b"bad":
            raise ValueError("cannot read it")

    async with session(broker_port, clean=True).running() as one:
        await one.subscribe(topic, take)
        await one.publish(topic, b"bad")
        await one.publish(topic, b"good")
        await eventually(lambda: got == [b"bad", b"good"])


async def test_what_was_not_handled_is_delivered_again_after_a_reconnect(broker_port: int) -> None:
    topic, name = f"t/{uuid.uuid4().hex}", uuid.uuid4().hex
    stuck, got = asyncio.Event(), []

    async def never_done(_topic: str, _payload: bytes) -> None:
        stuck.set()
        await asyncio.Event().wait()

    async def take(_topic: str, payload: bytes) -> None:
        got.append(payload)

    async with session(broker_port, name).running() as first:
        await first.subscribe(topic, never_done)
        await first.wait_connected(10)
        async with session(broker_port, clean=True).running() as sender:
            await sender.publish(topic, b"keep me")
        await asyncio.wait_for(stuck.wait(), 10)
    async with session(broker_port, name).running() as second:
        await second.subscribe(topic, take)
        await eventually(lambda: got == [b"keep me"])


async def test_publishing_without_a_broker_gives_up_in_time() -> None:
    async with session(free_port()).running() as one:
        with pytest.raises(NotConnectedError, match="no broker at"):
            await one.publish("t", b"x", timeout=0.2)


async def test_it_reconnects_and_resubscribes_when_the_broker_restarts(tmp_path: Path) -> None:
    got: list[bytes] = []

    async def take(_topic: str, payload: bytes) -> None:
        got.append(payload)

    with open_broker(tmp_path / "a") as port:
        one = session(port, clean=True)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(one.running())
            await one.subscribe("t/restart", take)
            await one.publish("t/restart", b"1")
            await eventually(lambda: got == [b"1"])
            stack_of_one = stack.pop_all()
    async with stack_of_one:
        await eventually(lambda: not one.connected)
        with open_broker(tmp_path / "b", port):
            await one.publish("t/restart", b"2")
            await eventually(lambda: got == [b"1", b"2"])
            assert one.connects == 2


async def test_the_will_is_published_when_the_connection_is_lost(broker_port: int) -> None:
    got: list[bytes] = []
    topic = f"t/{uuid.uuid4().hex}"

    async def take(_topic: str, payload: bytes) -> None:
        got.append(payload)

    async with session(broker_port, clean=True).running() as watcher:
        await watcher.subscribe(topic, take)
        await watcher.wait_connected(10)
        dying = session(broker_port, clean=True, will=Will(topic, b"gone"))
        async with dying.running():
            await dying.wait_connected(10)
            assert dying._connection is not None
            dying._connection.close_socket()
            await eventually(lambda: got == [b"gone"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp://localhost:1883", BrokerAddress("localhost", 1883)),
        ("broker", BrokerAddress("broker", 1883)),
        ("mqtts://b", BrokerAddress("b", 8883, tls=True)),
        ("[::1]:1884", BrokerAddress("::1", 1884)),
    ],
)
def test_addresses(text: str, expected: BrokerAddress) -> None:
    assert BrokerAddress.parse(text) == expected


@pytest.mark.parametrize("text", ["http://x", "tcp://x:99999", "tcp://", ""])
def test_wrong_addresses_say_what_is_taken(text: str) -> None:
    with pytest.raises(ValueError, match="write tcp://host:1883"):
        BrokerAddress.parse(text)
