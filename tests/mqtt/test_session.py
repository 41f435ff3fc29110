"""The session against a real broker: it delivers, reconnects, resubscribes, and acknowledges after handling."""

import asyncio
import contextlib
import socket
import time
import uuid
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from propeller.errors import InvalidError, UnavailableError
from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.connection import Connection
from propeller.mqtt.session import Credentials, NotConnectedError, Session, SubscriptionRefusedError, Will
from support.mqtt import Relay, RudeBroker
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
        async with Relay(broker_port).running() as relay:
            dying = session(relay.port, clean=True, will=Will(topic, b"gone"))
            async with dying.running():
                await dying.wait_connected(10)
                relay.cut()
                await eventually(lambda: got == [b"gone"])


async def test_what_is_subscribed_before_and_while_connecting_reaches_the_broker() -> None:
    async def take(_topic: str, _payload: bytes) -> None: ...

    held = asyncio.Event()
    async with RudeBroker(held=held).running() as broker:
        one = session(broker.port)
        await one.subscribe("early", take)
        async with one.running():
            await eventually(lambda: broker.filters == ["early"])
            await one.subscribe("meanwhile", take)
            held.set()
            assert await one.wait_connected(10)
            assert broker.filters == ["early", "meanwhile"]


async def test_a_session_can_run_again(broker_port: int) -> None:
    topic, got = f"t/{uuid.uuid4().hex}", []

    async def take(_topic: str, payload: bytes) -> None:
        got.append(payload)

    one = session(broker_port, clean=True)
    await one.subscribe(topic, take)
    for count in (1, 2):
        async with one.running():
            await one.publish(topic, b"x")
            await eventually(partial(got.__eq__, [b"x"] * count))


async def test_a_message_that_takes_longer_than_the_broker_waits_is_handled_once(broker_port: int) -> None:
    topic, got = f"t/{uuid.uuid4().hex}", []

    async def slow(_topic: str, payload: bytes) -> None:
        got.append(payload)
        if payload == b"slow":
            await asyncio.sleep(3)  # the test broker sends it again after 2 s

    async with session(broker_port).running() as one:
        await one.subscribe(topic, slow)
        await one.publish(topic, b"slow")
        await one.publish(topic, b"next")
        await eventually(lambda: b"next" in got)
    assert got == [b"slow", b"next"]


async def test_a_slow_handler_holds_up_its_own_filter_only(broker_port: int) -> None:
    topic, got, stuck = f"t/{uuid.uuid4().hex}", [], asyncio.Event()

    async def never_done(_topic: str, _payload: bytes) -> None:
        stuck.set()
        await asyncio.Event().wait()

    async def take(_topic: str, payload: bytes) -> None:
        got.append(payload)

    async with session(broker_port, clean=True).running() as one:
        await one.subscribe(f"{topic}/a", never_done)
        await one.subscribe(f"{topic}/b", take)
        await one.publish(f"{topic}/a", b"")
        await asyncio.wait_for(stuck.wait(), 10)
        await one.publish(f"{topic}/b", b"x")
        await eventually(lambda: got == [b"x"])


async def test_a_new_handler_has_what_waited_for_the_old_one(broker_port: int) -> None:
    topic, got, stuck = f"t/{uuid.uuid4().hex}", [], asyncio.Event()

    async def never_done(_topic: str, _payload: bytes) -> None:
        stuck.set()
        await asyncio.Event().wait()

    async def take(_topic: str, payload: bytes) -> None:
        got.append(payload)

    async with session(broker_port, clean=True).running() as one:
        await one.subscribe(topic, never_done)
        for payload in (b"1", b"2", b"3"):
            await one.publish(topic, payload)
        await asyncio.wait_for(stuck.wait(), 10)
        await one.subscribe(topic, take)
        await eventually(lambda: set(got) == {b"1", b"2", b"3"})  # the first when the broker sends it again
        await one.unsubscribe(topic)
        await one.publish(topic, b"4")
        await one.subscribe(f"{topic}/other", take)
        await one.publish(f"{topic}/other", b"5")
        await eventually(lambda: b"5" in got)
    assert b"4" not in got


async def test_a_message_that_cannot_be_handled_now_is_handled_again_before_the_next(
    broker_port: int,
) -> None:
    topic, handled = f"t/{uuid.uuid4().hex}", []
    errors: list[Exception] = [UnavailableError("the database is away"), UnavailableError("still")]

    async def handle(_topic: str, payload: bytes) -> None:
        if payload == b"refused":
            raise InvalidError("never right")
        if errors:
            raise errors.pop()
        handled.append(payload)

    with capture_logs() as logs:
        async with session(broker_port, clean=True).running() as one:
            await one.subscribe(topic, handle)
            for payload in (b"1", b"refused", b"2"):
                await one.publish(topic, payload)
            await eventually(lambda: handled == [b"1", b"2"])
    events = [line["event"] for line in logs if line["event"].startswith("message ")]
    assert events == ["message cannot be handled now, trying again"] * 2 + ["message could not be handled"]


async def test_a_connection_lost_while_it_subscribes_is_made_again_at_once() -> None:
    async def take(_topic: str, _payload: bytes) -> None: ...

    async with RudeBroker(rude=True).running() as broker:
        one = session(broker.port)
        await one.subscribe("t", take)
        async with one.running():
            await eventually(lambda: broker.connections > 2, timeout=5)


async def test_a_connection_lost_before_the_broker_answers_is_made_again_at_once() -> None:
    async with RudeBroker(deaf=True).running() as broker, session(broker.port).running():
        await eventually(lambda: broker.connections > 2, timeout=5)


async def test_a_refused_login_says_why_and_is_tried_ever_less_often() -> None:
    async with RudeBroker(connack=5).running() as broker:
        with capture_logs() as logs:
            async with session(broker.port).running() as one:
                assert not await one.wait_connected(2.0)
                with pytest.raises(NotConnectedError):
                    await one.publish("t", b"", timeout=0.1)
    assert 3 <= broker.connections <= 9
    (line,) = logs  # the same again only after a minute
    assert line["event"] == "the MQTT broker refuses this client, trying again"
    assert line["reason"] == "it wants a client's id and key, and one of them is not set"


async def test_a_message_whose_connection_is_lost_before_the_broker_has_it_is_published_again() -> None:
    async with RudeBroker(dropped=2).running() as broker, session(broker.port, clean=True).running() as one:
        begun = time.monotonic()
        await one.publish("t", b"x", timeout=20)
        assert (broker.dropped, broker.connections) == (0, 3)
        assert time.monotonic() - begun < 10


async def test_two_clients_with_one_identifier_do_not_chase_each_other_at_full_speed(
    broker_port: int,
) -> None:
    name = uuid.uuid4().hex
    async with session(broker_port, name).running() as one, session(broker_port, name).running() as two:
        await eventually(lambda: one.connects and two.connects)
        await asyncio.sleep(2)  # how often they connect in this time is what is tested
        assert one.connects + two.connects < 20


async def test_a_refused_subscription_is_told_to_who_asked() -> None:
    async def take(_topic: str, _payload: bytes) -> None: ...

    async with RudeBroker(suback=0x80).running() as broker, session(broker.port).running() as one:
        await one.wait_connected(10)
        with pytest.raises(SubscriptionRefusedError, match="refuses t to client"):
            await one.subscribe("t", take)
        assert one.connected


@pytest.mark.parametrize("broker", [RudeBroker(), RudeBroker(connack=None), RudeBroker(suback=None)])
async def test_it_ends_in_time_whatever_the_broker_does(broker: RudeBroker) -> None:
    async def take(_topic: str, _payload: bytes) -> None: ...

    async with broker.running():
        one = session(broker.port)
        await one.subscribe("t", take)
        async with one.running():
            await eventually(lambda: broker.connections == 1)
            begun = time.monotonic()
        assert time.monotonic() - begun < 5
        assert not one.connected


async def test_cancelling_its_user_ends_it(broker_port: int) -> None:
    one = session(broker_port, clean=True)

    async def use() -> None:
        async with one.running():
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await one.wait_connected(10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not one.connected


async def test_a_hook_that_fails_is_logged_and_changes_nothing(broker_port: int) -> None:
    async def fail() -> None:
        raise RuntimeError("no")

    with capture_logs() as logs:
        async with session(broker_port, clean=True).running(on_connect=fail) as one:
            await one.publish("t/hook", b"")
            await eventually(lambda: any("after connecting" in line["event"] for line in logs))
            assert one.connected


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


@pytest.mark.parametrize("begin", ["_on_socket_open", "_on_socket_register_write"])
async def test_a_socket_that_is_closed_before_it_is_watched_is_not(begin: str) -> None:
    """Its number may be another's by then, who would be told of what is none of its business, without end."""
    loop, faults = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _loop, context: faults.append(context))
    connection = Connection("127.0.0.1", 1)
    for is_reused in (False, True):
        ours, theirs = socket.socketpair()
        number = ours.fileno()
        getattr(connection, begin)(None, None, ours)
        ours.close()
        other = socket.socket() if is_reused else None
        if other is not None:
            assert other.fileno() == number
        await asyncio.sleep(0.01)
        assert not loop.remove_reader(number)
        assert not loop.remove_writer(number)
        theirs.close()
        if other is not None:
            other.close()
    assert faults == []
