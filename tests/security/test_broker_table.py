"""Every cell of docs/security.md's table on a real broker: who may publish and subscribe where, and nobody anywhere else."""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import aiomqtt
import pytest

from propeller.identity.clients import NewClient
from propeller.identity.roles import RULES, Actor, Whose
from propeller.protocol.topics import Channel, Kind
from support.identity import Site, first, hash_cheaply

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
NOBODY = "\N{EN DASH}"


@dataclass(frozen=True)
class Row:
    """A row of the page: a topic, and what each cell says of each actor (``any`` or ``own``)."""

    topic: str
    outside: bool
    publish: dict[str, str]
    subscribe: dict[str, str]


def rows() -> list[Row]:
    """The page's table."""
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and re.fullmatch(r"`[^`]+`", cells[0]):
            found.append(Row(cells[0].strip("`"), cells[1] == "yes", _actors(cells[2]), _actors(cells[3])))
    return found


def _actors(cell: str) -> dict[str, str]:
    if cell == NOBODY:
        return {}
    return {
        name.removesuffix(" (own)"): "own" if name.endswith(" (own)") else "any" for name in cell.split(", ")
    }


def test_the_page_shows_the_rules() -> None:
    def shown(cell: dict[Actor, Whose]) -> dict[str, str]:
        return {actor.value: whose.value for actor, whose in cell.items()}

    assert rows() == [
        Row(rule.topic, rule.outside, shown(dict(rule.publish)), shown(dict(rule.subscribe)))
        for rule in RULES
    ]


@dataclass(frozen=True)
class Cell:
    """An actor and a topic, and whether it may publish and subscribe there."""

    actor: str
    topic: str
    publish: bool
    subscribe: bool


def matches(row: Row, topic: str, own: str) -> bool:
    """Whether a topic below the prefix is one that a row's actor may use, whose id is ``own`` (``+``: whoever's)."""
    levels, wanted = topic.split("/"), row.topic.replace("{id}", own).split("/")
    if wanted[-1] == "#":
        return levels[: len(wanted) - 1] == wanted[:-1]
    return len(levels) == len(wanted) and all(
        one in {"+", level} for one, level in zip(wanted, levels, strict=True)
    )


def cells(ids: dict[str, str], channel: Channel, foreign: Channel) -> Iterator[Cell]:
    """Every actor with every topic: of its own, of another, in its channel, outside of all, and in another channel."""
    other = ids["other"]
    for actor in Actor:
        topics = {
            row.topic.replace("{id}", id_).replace("+", f"sha256-{'a' * 64}").replace("#", "deep/er")
            for row in rows()
            for id_ in (ids[actor], other)
        }
        for topic in sorted(topics):
            for prefix in (f"{channel.prefix}/", "", f"{foreign.prefix}/"):

                def may(
                    verb: str, topic: str = topic, prefix: str = prefix, actor: str = actor.value
                ) -> bool:
                    if prefix.startswith(foreign.prefix):
                        return False
                    for row in rows():
                        whose = getattr(row, verb).get(actor)
                        if whose is None or not (prefix or row.outside):
                            continue
                        if matches(row, topic, ids[actor] if whose == "own" else "+"):
                            return True
                    return False

                yield Cell(actor.value, prefix + topic, may("publish"), may("subscribe"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    hash_cheaply(monkeypatch)
    return Site.at(tmp_path)


async def test_every_cell(site: Site) -> None:
    names = {
        Actor.MANAGER: "manager",
        Actor.COORDINATOR: "fl-coordinator",
        Actor.PROXY: "proxy",
        Actor.PROPLET: "proplet-1",
        Actor.COMPAT: "proplet-c",
        Actor.DEVICE: "thermometer",
    }
    async with site.running() as (identity, made):
        domain = made.domain_id
        ids, keys = {"other": made.clients["proplet-2"].id}, {}
        for actor, name in names.items():
            if name in made.clients:
                ids[actor], keys[actor] = made.clients[name].id, made.clients[name].key
            else:
                new = await identity.clients.create(
                    domain, NewClient(name, compat=actor is Actor.COMPAT or None)
                )
                ids[actor], keys[actor] = new["id"], new["credentials"]["secret"]
        await identity.channels.connect(
            domain, list(ids.values()), [made.channel_id], ["publish", "subscribe"]
        )
        other_channel = await identity.channels.create(domain, "other")
        channel, foreign = Channel(domain, made.channel_id), Channel(domain, other_channel["id"])
        listener = await identity.clients.create(domain, NewClient("listener"))
        # It hears everything, which no role may.
        access = identity.directory.get(listener["id"])
        assert access is not None
        everything = {"allow": [">"]}
        identity.directory.update([replace(access, publish=everything, subscribe=everything)])
        table = list(cells(ids, channel, foreign))
        heard: set[tuple[str, str]] = set()
        end = asyncio.Event()

        async def listen(client: aiomqtt.Client) -> None:
            async for message in client.messages:
                actor = json.loads(bytes(message.payload))
                if not isinstance(actor, str):  # the broker tells of changes of its streams
                    continue
                heard.add((actor, message.topic.value))
                if actor == "end":
                    end.set()

        subscribed: set[tuple[str, str]] = set()

        async def try_all(actor: Actor) -> None:
            async with site.client(ids[actor], keys[actor]) as client:
                for cell in (one for one in table if one.actor == actor.value):
                    await client.publish(cell.topic, json.dumps(cell.actor), qos=1)
                    (code,) = await client.subscribe(cell.topic, qos=0)
                    if (code if isinstance(code, int) else code.value) < 0x80:
                        subscribed.add((cell.actor, cell.topic))

        async with site.client(listener["id"], listener["credentials"]["secret"]) as client:
            await client.subscribe("#", qos=1)
            listening = asyncio.create_task(listen(client))
            await asyncio.gather(*map(try_all, names))
            # The broker stores messages of QoS 1 before it acknowledges them: this one comes after all of them.
            await client.publish("end", json.dumps("end"), qos=1)
            await asyncio.wait_for(end.wait(), 20)
            listening.cancel()
    wanted = {(one.actor, one.topic) for one in table if one.publish}
    assert heard - {("end", "end")} == wanted
    assert subscribed == {(one.actor, one.topic) for one in table if one.subscribe}
    # The table is not an empty one: each actor but the device may do something in most ways.
    assert len(table) > 500
    assert {one.actor for one in table if one.publish} == {actor.value for actor in Actor}
    assert {one.actor for one in table if one.subscribe} == {actor.value for actor in Actor}


async def test_a_client_that_is_marked_changes_its_topics_at_once(site: Site) -> None:
    async with site.running() as (identity, made):
        one, domain = made.clients["proplet-1"], made.domain_id
        channel = Channel(domain, made.channel_id)

        async def may_hear_shared() -> bool:
            async with site.client(one.id, one.key) as client:
                (code,) = await client.subscribe(channel.topic(Kind.START), qos=0)
                return (code if isinstance(code, int) else code.value) < 0x80

        assert not await may_hear_shared()
        with pytest.raises(aiomqtt.MqttError):  # noqa: PT012
            async with site.client(one.id, one.key) as client:
                assert (await identity.clients.set_compat(domain, one.id, compat=True))["compat"]
                await first(client)
        assert await may_hear_shared()
        await identity.clients.set_compat(domain, one.id, compat=False)
        assert not await may_hear_shared()
