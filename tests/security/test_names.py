"""Devices that call themselves as others do, on a real broker with identity, against a real manager."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from propeller.manager import client_names
from propeller.protocol.topics import Kind
from support.identity import hash_cheaply
from support.manager import ChannelClient, FakeCoordinator
from support.net import eventually
from support.world import World, open_world

VICTIM, ATTACKER = "proplet-v", "proplet-a"
"""What identity calls them."""


@pytest.fixture
async def coordinator() -> AsyncIterator[FakeCoordinator]:
    async with FakeCoordinator().running() as running:
        yield running


@pytest.fixture
def ask_every_s() -> float:
    return client_names.ASK_EVERY_S


@pytest.fixture
async def world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coordinator: FakeCoordinator, ask_every_s: float
) -> AsyncIterator[World]:
    hash_cheaply(monkeypatch)
    monkeypatch.setattr(client_names, "ASK_EVERY_S", ask_every_s)
    monkeypatch.setattr("propeller.manager.round_selection.CHOOSE_AGAIN_S", 0.05)
    async with open_world(tmp_path, compat=["compat-1"], coordinator_url=coordinator.url) as opened:
        yield opened


async def shown(world: World, name: str) -> dict[str, Any]:
    return dict((await world.manager.http.get(f"/proplets/{world.id(name)}")).json())


async def called(world: World, name: str) -> str:
    return str((await shown(world, name))["name"])


async def attack(world: World, *, alone: bool = True, **says: Any) -> ChannelClient:
    """The attacker comes with its own key, and says that it is the victim."""
    attacker = await world.join("attacker")
    world.manager.mqtt = attacker
    await attacker.session.subscribe(world.channel.start(world.id("attacker")), attacker.receive)
    claims = {"name": VICTIM, "tags": ["hospital"], **says}
    await world.manager.add_proplets(world.id("attacker"), directed=True, **claims)
    if alone:
        assert await world.ids() == {world.id("attacker")}
    return attacker


async def begin(world: World, round_id: str, **selection: Any) -> None:
    speaker = await world.join("coordinator")
    start = {
        "experiment_id": "e",
        "round_id": round_id,
        "model_uri": "fl/models/global_model_v0",
        "task_wasm_image": f"ghcr.io/u/logreg@sha256:{'a' * 64}",
        "timeout_s": 60,
        "selection": {"seed": 1, **selection},
        "mode": "train",
        "number": 2,  # the first one ends the experiment where a name is nobody's
        "attempt": 1,
        "seed": 1,
    }
    await speaker.publish(Kind.ROUND_START, start)


def chosen(coordinator: FakeCoordinator, round_id: str) -> list[str]:
    return list(coordinator.participants.get(round_id, {}).get("participants", ()))


async def test_who_says_anothers_name_is_not_chosen_by_it(world: World, coordinator: FakeCoordinator) -> None:
    """Before the victim has ever been there, while it is, and when it is away."""
    with capture_logs() as logs:
        attacker = await attack(world)
        assert await called(world, "attacker") == ATTACKER
        assert (await shown(world, "attacker"))["metadata"]["name"] == ATTACKER
        await attacker.register(world.id("attacker"), directed=True, name=VICTIM, tags=["hospital"])
        await eventually(lambda: [one for one in logs if one["event"] == "proplet registered again"])
    told = [one for one in logs if "calls itself" in one["event"]]
    assert [one["sender"] for one in told] == [world.id("attacker")]
    assert f"{VICTIM!r} is {world.id('victim')}" in told[0]["reason"]
    assert "propeller device rename" in told[0]["reason"]
    await begin(world, "e.2", names=[VICTIM])
    await eventually(lambda: coordinator.proposals)
    assert f"no device {VICTIM!r} is alive" in coordinator.proposals[0]["waiting"]
    victim = await world.join("victim")
    await victim.session.subscribe(world.channel.start(world.id("victim")), victim.receive)
    world.manager.mqtt = victim
    await world.manager.add_proplets(world.id("victim"), directed=True, name=ATTACKER)
    await eventually(victim.starts)
    assert chosen(coordinator, "e.2") == [world.id("victim")]
    await begin(world, "e.3", names=[ATTACKER])
    await eventually(attacker.starts)
    assert chosen(coordinator, "e.3") == [world.id("attacker")]
    assert len(victim.starts()) == len(attacker.starts()) == 1


@pytest.mark.parametrize("ask_every_s", [0.1])
async def test_who_says_a_tag_that_others_were_given_is_not_chosen_by_it(
    world: World, coordinator: FakeCoordinator
) -> None:
    await attack(world, tags=["hospital", "gpu"])
    assert (await shown(world, "attacker"))["metadata"]["tags"] == ["hospital", "gpu"], "nobody was given any"
    path = f"/devices/{world.id('victim')}"
    assert (await world.change("PATCH", path, {"tags": ["hospital"]})).status_code == 200

    async def tags() -> bool:
        return bool((await shown(world, "attacker"))["metadata"]["tags"] == ["gpu"])

    await eventually(tags)
    await begin(world, "e.2", tags=["hospital"])
    await eventually(lambda: coordinator.proposals)
    assert "no device that is alive has 'hospital'" in coordinator.proposals[0]["waiting"]
    await world.join_as_victim()  # which says nothing of it
    await eventually(lambda: chosen(coordinator, "e.2") == [world.id("victim")])
    await begin(world, "e.3", tags=["gpu"])
    await eventually(lambda: chosen(coordinator, "e.3") == [world.id("attacker")])


@pytest.mark.parametrize("ask_every_s", [0.1])
async def test_a_new_name_by_identitys_api_alone_arrives_by_itself(world: World) -> None:
    await world.join_as_victim()
    assert await called(world, "victim") == VICTIM
    refused = await world.change("PATCH", f"/devices/{world.id('victim')}", {"name": ATTACKER})
    assert refused.status_code == 409
    assert (
        await world.change("PATCH", f"/devices/{world.id('victim')}", {"name": "ward-9"})
    ).status_code == 200

    async def renamed() -> bool:
        return await called(world, "victim") == "ward-9"

    await eventually(renamed)


async def test_the_manager_calls_nobody_as_identity_does_not(world: World) -> None:
    """A new name is known at once to whoever tells the manager; with another one than identity's it is refused."""
    await world.join_as_victim()
    path = f"/proplets/{world.id('victim')}"
    assert (
        await world.change("PATCH", f"/devices/{world.id('victim')}", {"name": "ward-9"})
    ).status_code == 200
    begun = time.monotonic()
    assert (await world.manager.http.patch(path, json={"name": "ward-9"})).json()["name"] == "ward-9"
    assert time.monotonic() - begun < client_names.ASK_EVERY_S / 2
    refused = await world.manager.http.patch(path, json={"name": ATTACKER})
    assert refused.status_code == 409
    assert "'ward-9'" in refused.json()["error"]
    assert await called(world, "victim") == "ward-9"


async def test_while_identity_is_away_names_hold_and_nobody_gets_another(
    world: World, coordinator: FakeCoordinator
) -> None:
    await world.join_as_victim()
    attacker = await attack(world, alone=False)
    await world.stop("identity")
    await attacker.register(world.id("attacker"), directed=True, name="proplet-c1", tags=["gpu"])
    await world.stop("manager")
    with capture_logs() as logs:
        await world.start_manager()
        assert await called(world, "attacker") == ATTACKER
        assert await called(world, "victim") == VICTIM
        await eventually(lambda: [one for one in logs if "as identity said last" in one["event"]])
        refused = await world.manager.http.patch(f"/proplets/{world.id('victim')}", json={"name": "ward-9"})
        assert refused.status_code == 503
        await world.start_identity()
        await eventually(lambda: [one for one in logs if "proplets are called again" in one["event"]])
    speaker = await world.join("attacker")
    world.manager.mqtt = speaker
    await world.manager.add_proplets(world.id("attacker"), directed=True, name=VICTIM)
    await world.join_as_victim()
    await begin(world, "e.2", names=[VICTIM])
    await eventually(lambda: chosen(coordinator, "e.2") == [world.id("victim")])


async def test_a_compat_proplet_has_the_name_that_identity_has_for_it(world: World) -> None:
    """One of absmach/propeller says none, or a name of its choice."""
    compat = await world.join("compat-1")
    world.manager.mqtt = compat
    await world.manager.add_proplets(world.id("compat-1"))
    assert await called(world, "compat-1") == "proplet-c1"
    assert (await shown(world, "compat-1"))["metadata"] == {}
    await compat.register(world.id("compat-1"), name=VICTIM)

    async def registered() -> bool:
        return "name" in (await shown(world, "compat-1"))["metadata"]

    await eventually(registered)
    assert await called(world, "compat-1") == "proplet-c1"
