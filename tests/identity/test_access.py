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
from propeller.protocol.topics import Channel, Kind
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


async def test_no_filter_takes_in_more_than_its_parts(world: World) -> None:
    """What docs/security.md allows is tried topic by topic in tests/security; these would take in many."""
    channel = world.channel
    async with world.client("proplet-1") as proplet:
        assert await allowed(proplet, channel.start(world.id("proplet-1")))
        for topic in (
            channel.topic(Kind.START) + "/+",
            channel.topic(Kind.START) + "/#",
            channel.topic(Kind.START) + "/*",
            channel.topic(Kind.START) + "/>",
            f"{channel.prefix}/#",
            f"{channel.prefix}/control/#",
            "fl/rounds/+/updates/+",
            "fl/#",
            "m/#",
            "+/+",
            "#",
            "$SYS/#",
            "$MQTT/#",
        ):
            assert not await allowed(proplet, topic), topic


async def test_a_will_counts_as_a_publish(world: World) -> None:
    alive = world.channel.said(Kind.PROPLET_ALIVE, world.id("proplet-1"))
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


async def test_a_client_without_a_channel_may_do_nothing(world: World) -> None:
    made = await world.identity.clients.create(world.made.domain_id, NewClient("thermometer"))
    assert (made["role"], made["compat"]) == ("device", False)
    prefix = world.channel.prefix
    async with world.site.client(made["id"], made["credentials"]["secret"]) as lonely:
        assert not await allowed(lonely, f"{prefix}/data/#")
        assert not await allowed(lonely, "x")


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
            alive = world.channel.said(Kind.PROPLET_ALIVE, world.id("proplet-2"))
            await other.publish(alive, b"{}", qos=1, timeout=2)
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
            with pytest.raises(aiomqtt.MqttError):  # noqa: PT012
                async with contextlib.AsyncExitStack() as clients:
                    async with cut_off.open() as identity:
                        await clients.enter_async_context(site.client(two.id, two.key))
                        client = await clients.enter_async_context(site.client(one.id, one.key))
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
