"""What a device may do on the broker, and that one that does too much is muted and the others are not."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from nats.aio.client import Client
from nats.errors import TimeoutError as NatsTimeoutError
from structlog.testing import capture_logs

from propeller.errors import RefusedError
from propeller.identity import client_watch as module
from propeller.identity.access import AccessDirectory, ClientAccess
from propeller.identity.broker_api import ServerConnection, jetstream, max_storage
from propeller.identity.broker_storage import MESSAGES_PER_TOPIC, RETAINED, WAITING, limit_storage
from propeller.identity.client_watch import BURST_S, Budget, ClientLimits, ClientWatch
from propeller.identity.service import Identity
from propeller.mqtt.broker import Broker
from propeller.protocol.roles import Role
from propeller.protocol.topics import Channel, Kind
from propeller.web.auth import Principal
from support.identity import Site, first
from support.net import eventually
from support.provisioned import Provisioned, provision

LIMITS = ClientLimits(messages=10, bytes=1000, connections=4, subscriptions=8)


def test_a_budget_bounds_what_is_published_and_fills_up_again() -> None:
    budget = Budget(LIMITS, 0.0)
    assert budget.take(int(10 * BURST_S), 0, 0.0) is None
    assert "10 messages a second" in str(budget.take(1, 0, 0.0))
    assert budget.take(10, 0, 2.0) is None
    assert Budget(LIMITS, 0.0).take(0, 60_000, 0.0) is None
    assert "1000 bytes a second" in str(Budget(LIMITS, 0.0).take(0, 60_001, 0.0))
    idle = Budget(LIMITS, 0.0)
    assert "messages" in str(idle.take(int(10 * BURST_S) + 1, 0, 1e9)), "it is never more than full"
    assert idle.take(0, 0, 1e8) is not None, "a clock that goes back gives nothing"


async def test_what_was_published_is_charged_even_if_the_broker_answers_only_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published, fails = {"in_msgs": 0, "in_bytes": 0}, False

    async def listed(_link: Client, **_filters: object) -> AsyncIterator[ServerConnection]:
        yield ServerConnection("s", 0.0, {"authorized_user": "p", "cid": 1, **published})

    async def ended(_link: Client) -> AsyncIterator[ServerConnection]:
        if fails:
            raise NatsTimeoutError
        return
        yield

    async def nothing(*_arguments: object) -> None:
        return

    monkeypatch.setattr(module, "connections", listed)
    monkeypatch.setattr(module, "closed_connections", ended)
    monkeypatch.setattr(module, "close_connection", nothing)
    directory = AccessDirectory()
    directory.update([ClientAccess("p", "d", Role.PROPLET, "", True, {}, {}, 0.0)])
    watch, link = ClientWatch(directory, LIMITS, clock=lambda: 0.0), Client()
    await watch.check(link, {}, nothing)
    published["in_msgs"], fails = 1000, True
    with pytest.raises(NatsTimeoutError):
        await watch.check(link, {}, nothing)
    assert watch.refusal("p") is None
    fails = False
    await watch.check(link, {}, nothing)
    assert watch.refusal("p") is not None


class World:
    def __init__(self, site: Site, identity: Identity, made: Provisioned) -> None:
        self.site, self.identity, self.made = site, identity, made
        self.channel = Channel(made.domain_id, made.channel_id)
        self.me, self.other = made.clients["proplet-1"], made.clients["proplet-2"]

    def topic(self, kind: Kind = Kind.PROPLET_METRICS) -> str:
        return self.channel.said(kind, self.me.id)

    def client(self, suffix: str = "", **options: object) -> aiomqtt.Client:
        return self.site.client(self.me.id, self.me.key, f"{self.me.id}{suffix}", **options)


@contextlib.asynccontextmanager
async def open_world(folder: Path) -> AsyncIterator[World]:
    site = Site.at(folder)
    settings = site.identity.model_copy(
        update={
            "client_messages": 20.0,
            "client_bytes": 20_000,
            "client_connections": 4,
            "client_subscriptions": 8,
        }
    )
    site = replace(site, identity=settings)
    async with Broker(site.broker), site.open() as identity:
        yield World(site, identity, await provision(identity))


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(module, "SHORTEST_INTERVAL_S", 0.1)
    monkeypatch.setattr("propeller.identity.broker_guard.READ_AGAIN_S", 0.2)
    async with open_world(tmp_path) as made:
        made.identity.watch.interval_s = 0.1
        yield made


async def many_messages(world: World) -> None:
    async with world.client() as client:
        while True:
            await client.publish(world.topic(), b"x", qos=0)
            await asyncio.sleep(0)


async def many_bytes(world: World) -> None:
    async with world.client() as client:
        while True:
            await client.publish(world.topic(), bytes(100_000), qos=1)


async def many_reconnects(world: World) -> None:
    """Each connection is closed before anyone could look at it."""
    while True:
        async with world.client() as client:
            await client.publish(world.topic(), bytes(100_000), qos=1)


async def many_connections(world: World) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for number in range(50):
            await stack.enter_async_context(world.client(f"-{number}"))
        await first(await stack.enter_async_context(world.client("-last")), 10)


async def many_subscriptions(world: World) -> None:
    async with world.client() as client:
        for number in range(50):
            await client.subscribe(f"{world.channel.prefix}/registry/server/x{number}", qos=1)
        await first(client, 10)


ATTACKS = [
    (many_messages, "BROKER_CLIENT_MESSAGES"),
    (many_bytes, "BROKER_CLIENT_BYTES"),
    (many_reconnects, "BROKER_CLIENT_"),
    (many_connections, "BROKER_CLIENT_"),
    (many_subscriptions, "BROKER_CLIENT_SUBSCRIPTIONS"),
]


@pytest.mark.parametrize(("attack", "setting"), ATTACKS, ids=[attack.__name__ for attack, _ in ATTACKS])
async def test_who_does_too_much_is_muted_and_the_others_are_not(
    world: World, attack: object, setting: str
) -> None:
    async with world.site.client(world.other.id, world.other.key) as other:
        await other.subscribe(world.channel.start(world.other.id), qos=1)
        with capture_logs() as logs:
            with pytest.raises(aiomqtt.MqttError):
                async with asyncio.timeout(20):
                    await attack(world)  # type: ignore[operator]
            muted = (await eventually(lambda: [log for log in logs if log["event"] == "client muted"]))[0]
            assert (muted["client_id"], muted["name"]) == (world.me.id, "proplet-1")
            assert setting in muted["reason"]
            with pytest.raises(aiomqtt.MqttError, match=r"(?i)not authori"):
                async with world.client():
                    pass
        assert not [log for log in logs if log["event"] == "MQTT connection refused"]
        alive = world.channel.said(Kind.PROPLET_ALIVE, world.other.id)
        await other.publish(alive, b"{}", qos=1, timeout=5)
        assert not other._disconnected.done()  # noqa: SLF001


async def test_sessions_beyond_those_it_may_have_are_ended_and_its_own_stays(world: World) -> None:
    link = world.identity.link._nats  # noqa: SLF001
    assert link is not None
    async with world.client(clean_session=False) as client:
        await client.subscribe(world.channel.start(world.me.id), qos=1)
        for number in range(12):
            async with world.client(f"-{number}", clean_session=False):
                pass

        async def ended() -> bool:
            return int((await jetstream(link, "STREAM.INFO.$MQTT_sess"))["state"]["messages"]) <= 4

        await eventually(ended, 20)
        manager = world.made.clients["manager"]
        async with world.site.client(manager.id, manager.key) as sender:
            await sender.publish(world.channel.start(world.me.id), b"still", qos=1)
        assert await first(client) == b"still"


async def test_messages_that_are_never_released_mute_and_are_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = world.identity.link._nats  # noqa: SLF001
    assert link is not None
    async with world.client(max_inflight_messages=1000, max_queued_outgoing_messages=1000) as client:
        inner = client._client  # noqa: SLF001 - it must not answer as a client does
        monkeypatch.setattr(inner, "_handle_pubrec", lambda: 0)
        for _ in range(300):
            inner.publish(world.topic(), b"x", qos=2)
        with pytest.raises(aiomqtt.MqttError):
            await first(client, 20)

    async def forgotten() -> bool:
        return int((await jetstream(link, "STREAM.INFO.$MQTT_qos2in"))["state"]["messages"]) == 0

    await eventually(forgotten)


async def test_the_manager_may_do_more(world: World) -> None:
    manager = world.made.clients["manager"]
    async with world.site.client(manager.id, manager.key) as client:
        for _ in range(500):
            await client.publish(world.channel.start(world.me.id), b"x", qos=0)
        await asyncio.sleep(0)
        for number in range(20):
            await client.subscribe(f"{world.channel.prefix}/x{number}", qos=0)
        async with world.client() as proplet:  # looks were taken meanwhile
            await proplet.subscribe(world.channel.start(world.me.id), qos=1)
            await client.publish(world.channel.start(world.me.id), b"still", qos=1)
            assert await first(proplet) == b"still"


async def test_on_a_small_disk_less_may_wait(world: World) -> None:
    link = world.identity.link._nats  # noqa: SLF001
    assert link is not None
    wanted = 1 << 60
    room = await max_storage(link)
    assert room is not None
    assert 0 < room < wanted
    async with world.client():
        await eventually(lambda: _waiting_bytes(link))
        assert await limit_storage(link, age_s=86_400, max_bytes=wanted) == room // 2  # more is refused
        assert await _waiting_bytes(link) == room // 2


async def _waiting_bytes(link: Client) -> int:
    with contextlib.suppress(LookupError):  # nobody has connected yet
        config = (await jetstream(link, f"STREAM.INFO.{WAITING}"))["config"]
        return max(0, int(config["max_bytes"]))
    return 0


async def test_nothing_is_retained_and_what_waits_is_bounded(world: World) -> None:
    link = world.identity.link._nats  # noqa: SLF001
    assert link is not None
    async with world.client() as client:

        async def limited() -> bool:
            config = (await jetstream(link, f"STREAM.INFO.{RETAINED}"))["config"]
            return bool(config["max_msg_size"] == 1)

        await eventually(limited)
        await client.publish(world.topic(), b"kept?", qos=1, retain=True)
        waiting = (await jetstream(link, f"STREAM.INFO.{WAITING}"))["config"]
        allowed = min(4 * 1024**3, (await max_storage(link) or 0) // 2)
        assert (waiting["max_bytes"], waiting["max_msgs_per_subject"]) == (allowed, MESSAGES_PER_TOPIC)
        assert waiting["max_age"] == 86_400 * 10**9
        assert (await jetstream(link, f"STREAM.INFO.{RETAINED}"))["state"]["messages"] == 0
    manager = world.made.clients["manager"]
    async with world.site.client(manager.id, manager.key) as listener:
        await listener.subscribe(world.topic(), qos=1)
        with pytest.raises(TimeoutError):
            await first(listener, 0.5)


async def test_two_processes_with_one_clients_id_are_named(world: World) -> None:
    """Each ends the other's connection; a single time is what a cut connection looks like."""
    async with contextlib.AsyncExitStack() as stack:
        with capture_logs() as logs:

            def told() -> list[Any]:
                return [one for one in logs if "one client's id" in one["event"]]

            for number in range(12):
                with contextlib.suppress(
                    aiomqtt.MqttError
                ):  # the broker makes those wait that do it too often
                    stack.push_async_exit(_Quietly(await _connected(world)))
                assert number > 2 or not told()
                await asyncio.sleep(1.2)
                if told():
                    break
    [once] = told()
    domain = world.channel.domain_id
    of_me = Principal("client", world.made.clients["manager"].id, "manager", domain)
    assert await world.identity.duplicates(domain, of_me) == [world.me.id]
    with pytest.raises(RefusedError, match="only the manager of this domain"):
        await world.identity.duplicates("another", of_me)
    with pytest.raises(RefusedError, match="only the manager of this domain"):
        await world.identity.duplicates(domain, Principal("client", world.me.id, "proplet", domain))
    assert (once["client_id"], once["name"]) == (world.me.id, "proplet-1")
    assert once["address"] == "127.0.0.1"


async def _connected(world: World) -> aiomqtt.Client:
    client = world.client()
    await client.__aenter__()
    return client


class _Quietly:
    """Leaves a client whose connection may be gone."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client

    async def __aenter__(self) -> None:
        """Nothing to do."""

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(aiomqtt.MqttError):
            await self._client.__aexit__(None, None, None)
