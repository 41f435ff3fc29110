"""Who may connect and what they may do, with real MQTT clients on a real broker."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiomqtt
import pytest

from propeller.identity.clients import NewClient
from propeller.identity.service import Identity
from propeller.mqtt.broker import Broker
from propeller.protocol.topics import Channel, Kind, update_topic
from support.identity import Site, first
from support.mqtt import Relay
from support.net import eventually
from support.provisioned import Provisioned, provision

REFUSED = r"(?i)not authori"


class World:
    def __init__(self, site: Site, identity: Identity, made: Provisioned) -> None:
        self.site, self.identity, self.made = site, identity, made
        self.channel = Channel(made.domain_id, made.channel_id)

    def id(self, name: str) -> str:
        return self.made.clients[name].id

    def client(self, name: str, mqtt_id: str | None = None, **options: object) -> aiomqtt.Client:
        known = self.made.clients[name]
        return self.site.client(known.id, known.key, mqtt_id, **options)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    site = Site.at(tmp_path)
    async with site.running() as (identity, made):
        yield World(site, identity, made)


async def allowed(client: aiomqtt.Client, topic_filter: str) -> bool:
    codes = await client.subscribe(topic_filter, qos=1)
    return all((code if isinstance(code, int) else code.value) < 0x80 for code in codes)


@pytest.mark.parametrize("key", ["wrong", "", "0" * 64])
async def test_a_wrong_key_is_refused(world: World, key: str) -> None:
    with pytest.raises(aiomqtt.MqttError, match=REFUSED):
        async with world.site.client(world.id("proplet-1"), key):
            pass


async def test_nobody_is_anonymous(world: World) -> None:
    with pytest.raises(aiomqtt.MqttError, match=REFUSED):
        async with world.site.client("", "", "someone"):
            pass


async def test_another_clients_mqtt_id_is_refused(world: World) -> None:
    async with (
        world.client("proplet-1", "proplet-1"),
        world.client("proplet-1", f"{world.id('proplet-1')}-b"),
    ):
        pass
    for mqtt_id in (
        "proplet-1",
        world.id("proplet-1"),
        f"{world.id('proplet-1')}-x",
        f"{world.id('manager')}-x",
    ):
        with pytest.raises(aiomqtt.MqttError, match=REFUSED):
            async with world.client("proplet-2", mqtt_id):
                pass
    async with world.client("proplet-1", "proplet-1"):
        pass


async def test_mqtt_ids_are_remembered_over_a_restart(tmp_path: Path) -> None:
    site = Site.at(tmp_path)
    async with Broker(site.broker):
        async with site.open() as identity:
            made = await provision(identity)
            one, two = made.clients["proplet-1"], made.clients["proplet-2"]
            async with site.client(one.id, one.key, "mine"):
                pass
        async with site.open():
            with pytest.raises(aiomqtt.MqttError):
                async with site.client(two.id, two.key, "mine"):
                    pass
            async with site.client(one.id, one.key, "mine"):
                pass


async def test_what_a_proplet_may_hear(world: World) -> None:
    channel, own, other = world.channel, world.id("proplet-1"), world.id("proplet-2")
    async with world.client("proplet-1") as proplet:
        for topic in (
            channel.topic(Kind.START),
            channel.topic(Kind.STOP),
            channel.start(own),
            channel.stop(own),
            channel.topic(Kind.REGISTRY_CHUNK),
            channel.answers(own),
            channel.chunks("sha256:" + "0" * 64),
            channel.topic(Kind.ROUND_NEXT),
            "fl/rounds/next",
        ):
            assert await allowed(proplet, topic), topic
        for topic in (
            channel.start(other),
            channel.stop(other),
            channel.topic(Kind.START) + "/+",
            channel.topic(Kind.START) + "/#",
            channel.topic(Kind.START) + "/*",
            channel.topic(Kind.START) + "/>",
            channel.topic(Kind.PROPLET_RESULTS),
            channel.topic(Kind.REGISTRY_REQUEST),
            f"{channel.prefix}/#",
            f"{channel.prefix}/control/#",
            "fl/rounds/start",
            "fl/rounds/stop",
            "fl/rounds/+/updates/+",
            "fl/#",
            "m/#",
            "+/+",
            "#",
            "$SYS/#",
            "$MQTT/#",
            f"m/other/c/other/{Kind.START}",
        ):
            assert not await allowed(proplet, topic), topic


async def said(world: World, name: str, topics: list[str]) -> list[str]:
    """Of the topics that a client publishes to, those that the manager or the coordinator hears, sorted.

    Messages of one QoS come in their order, those of different ones may overtake each other.
    """
    heard: list[str] = []
    last = world.channel.topic(Kind.ROUND_START)

    async def listen(client: aiomqtt.Client) -> None:
        async for message in client.messages:
            heard.append(message.topic.value)  # noqa: PERF401 - it is read while it grows

    async with world.client("manager") as manager:
        for topic_filter in (
            f"{world.channel.prefix}/#",
            "fl/rounds/start",
            "fl/rounds/next",
            "fl/rounds/stop",
            "fl/rounds/+/updates/+",
        ):
            assert await allowed(manager, topic_filter)
        listening = asyncio.create_task(listen(manager))
        async with world.client(name, f"{world.id(name)}-pub") as client:
            for number, topic in enumerate(topics):
                await client.publish(topic, b"{}", qos=number % 3)
        async with world.client("manager", f"{world.id('manager')}-end") as end:
            for qos in range(3):
                await end.publish(last, b"{}", qos=qos)
        await eventually(lambda: heard.count(last) == 3)
        listening.cancel()
    return sorted(topic for topic in heard if topic != last)


async def test_what_a_proplet_may_say(world: World) -> None:
    channel, own, other = world.channel, world.id("proplet-1"), world.id("proplet-2")
    good = [
        channel.topic(Kind.PROPLET_CREATE),
        channel.topic(Kind.PROPLET_ALIVE),
        channel.topic(Kind.PROPLET_RESULTS),
        channel.topic(Kind.PROPLET_METRICS),
        channel.topic(Kind.TASK_METRICS),
        channel.topic(Kind.REGISTRY_REQUEST),
        channel.update("r-1", own),
        update_topic("r-1", own),
    ]
    bad = [
        channel.topic(Kind.START),
        channel.start(own),
        channel.start(other),
        channel.topic(Kind.STOP),
        channel.topic(Kind.REGISTRY_CHUNK),
        channel.topic(Kind.ROUND_NEXT),
        channel.update("r-1", other),
        update_topic("r-1", other),
        "fl/rounds/start",
        "fl/rounds/next",
        "fl/rounds/stop",
        channel.topic(Kind.ROUND_STOP),
        f"{channel.prefix}/data/x",
    ]
    assert await said(world, "proplet-1", [*bad, *good, *bad]) == sorted(good)


async def test_what_the_coordinator_may_say_and_hear(world: World) -> None:
    channel = world.channel
    good = [
        "fl/rounds/next",
        "fl/rounds/start",
        "fl/rounds/stop",
        channel.topic(Kind.ROUND_NEXT),
        channel.topic(Kind.ROUND_STOP),
    ]
    bad = [channel.topic(Kind.START), channel.topic(Kind.PROPLET_RESULTS), update_topic("r", "p")]
    assert await said(world, "fl-coordinator", [*bad, *good]) == sorted(good)
    async with world.client("fl-coordinator") as coordinator:
        assert await allowed(coordinator, "fl/rounds/+/updates/+")
        assert await allowed(coordinator, f"{channel.prefix}/fl/rounds/+/updates/+")
        assert not await allowed(coordinator, f"{channel.prefix}/#")


async def test_what_the_proxy_may_say_and_hear(world: World) -> None:
    channel = world.channel
    good = [
        channel.topic(Kind.REGISTRY_CHUNK),
        channel.chunks("sha256:" + "a" * 64),
        channel.answers(world.id("proplet-1")),
    ]
    bad = [channel.topic(Kind.START), channel.topic(Kind.PROPLET_ALIVE)]
    assert await said(world, "proxy", [*bad, *good]) == sorted(good)
    async with world.client("proxy") as proxy:
        assert await allowed(proxy, channel.topic(Kind.REGISTRY_REQUEST))
        assert not await allowed(proxy, channel.topic(Kind.START))


async def test_a_will_counts_as_a_publish(world: World) -> None:
    alive = world.channel.topic(Kind.PROPLET_ALIVE)
    async with world.client("manager") as manager:
        assert await allowed(manager, alive)
        for name, payload in (("proxy", b"not heard"), ("proplet-1", b"heard")):
            known = world.made.clients[name]
            await world.identity.clients.set_status(world.made.domain_id, known.id, "enabled")
            client = world.client(name, f"{known.id}-will", will=aiomqtt.Will(alive, payload, 1))
            with pytest.raises(aiomqtt.MqttError):  # noqa: PT012
                async with client:
                    await world.identity.clients.set_status(world.made.domain_id, known.id, "disabled")
                    await first(client)
        assert await first(manager) == b"heard"


async def test_a_device_has_its_data_topics_only(world: World) -> None:
    made = await world.identity.clients.create(world.made.domain_id, NewClient("thermometer"))
    assert made["role"] == "device"
    device_id, key = made["id"], made["credentials"]["secret"]
    prefix = world.channel.prefix
    async with world.site.client(device_id, key) as lonely:
        assert not await allowed(lonely, f"{prefix}/data/#")
        assert not await allowed(lonely, "x")
    await world.identity.channels.connect(
        world.made.domain_id, [device_id], [world.made.channel_id], ["publish", "subscribe"]
    )
    async with world.site.client(device_id, key) as device:
        assert await allowed(device, f"{prefix}/data/#")
        assert not await allowed(device, f"{prefix}/#")
        await device.publish(f"{prefix}/data/room", b"21", qos=1)
        assert await first(device) == b"21"


@pytest.mark.parametrize("how", ["disable", "delete", "rotate", "disconnect", "channel", "domain"])
async def test_revoking_cuts_the_live_connection_at_once(world: World, how: str) -> None:
    identity, domain, channel = world.identity, world.made.domain_id, world.made.channel_id
    one = world.id("proplet-1")
    async with world.client("proplet-2") as other:
        with pytest.raises(aiomqtt.MqttError):  # noqa: PT012
            async with world.client("proplet-1") as client:
                await client.subscribe(world.channel.start(one), qos=1)
                match how:
                    case "disable":
                        await identity.clients.set_status(domain, one, "disabled")
                    case "delete":
                        await identity.clients.delete(domain, one)
                    case "rotate":
                        await identity.clients.rotate_key(domain, one)
                    case "disconnect":
                        await identity.channels.disconnect(domain, [one], [channel], ["subscribe"])
                    case "channel":
                        await identity.channels.set_status(domain, channel, "disabled")
                    case "domain":
                        await identity.domains.set_status(domain, "disabled")
                await first(client, 2.0)
        if how in {"disable", "delete", "rotate", "disconnect"}:
            await other.publish(world.channel.topic(Kind.PROPLET_ALIVE), b"{}", qos=1, timeout=2)
    if how in {"disconnect", "channel"}:  # it may come back, but hears nothing
        async with world.client("proplet-1") as client:
            assert not await allowed(client, world.channel.start(one))
    else:
        with pytest.raises(aiomqtt.MqttError, match=REFUSED):
            async with world.client("proplet-1"):
                pass


async def test_what_was_revoked_while_identity_could_not_reach_the_broker_is_cut_when_it_can(
    tmp_path: Path,
) -> None:
    site = Site.at(tmp_path)
    async with Broker(site.broker):
        async with site.open() as identity:
            made = await provision(identity)
        one, two = made.clients["proplet-1"], made.clients["proplet-2"]
        async with Relay(site.broker.nats_port).running() as relay:
            cut_off = replace(
                site,
                identity=site.identity.model_copy(update={"broker_url": f"nats://127.0.0.1:{relay.port}"}),
            )
            async with cut_off.open() as identity:
                client, other = site.client(one.id, one.key), site.client(two.id, two.key)
                with pytest.raises(aiomqtt.MqttError):  # noqa: PT012
                    async with other, client:
                        relay.close()
                        await eventually(lambda: not identity.link.connected)
                        await identity.clients.rotate_key(made.domain_id, one.id)
                        async with site.open():  # another start of the service, with a connection of its own
                            await first(client, 3.0)


async def test_identity_may_restart_while_clients_are_connected(tmp_path: Path) -> None:
    site = Site.at(tmp_path)
    async with Broker(site.broker):
        async with site.open() as identity:
            made = await provision(identity)
            channel = Channel(made.domain_id, made.channel_id)
            manager, one = made.clients["manager"], made.clients["proplet-1"]
            live = site.client(manager.id, manager.key)
            await live.__aenter__()
            await live.subscribe(f"{channel.prefix}/#", qos=1)
        await live.publish(channel.topic(Kind.START), b"still here", qos=1)
        assert await first(live) == b"still here"
        with pytest.raises(aiomqtt.MqttError):
            async with site.client(one.id, one.key):
                pass
        async with site.open(), site.client(one.id, one.key):
            pass
        await live.publish(channel.topic(Kind.START), b"and still", qos=1)
        assert await first(live) == b"and still"
        await live.__aexit__(None, None, None)


async def test_the_nats_port_is_for_identity_alone(world: World) -> None:
    known = world.made.clients["manager"]
    for given in ({}, {"user": known.id, "pass": known.key}):
        reader, writer = await asyncio.open_connection("127.0.0.1", world.site.broker.nats_port)
        assert (await reader.readline()).startswith(b"INFO")
        writer.write(b"CONNECT " + json.dumps({"verbose": False, **given}).encode() + b"\r\nPING\r\n")
        assert b"Authorization Violation" in await reader.readline()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
