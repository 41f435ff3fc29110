"""Devices that say that they are others, on a real broker with identity, against a real manager."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from propeller.mqtt.session import Will
from propeller.protocol.topics import Kind
from support.identity import hash_cheaply
from support.mqtt import Relay
from support.net import eventually
from support.world import World, open_world

SECRET_ENV = {"KEY_OF_THE_VICTIM": "do not read"}


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    hash_cheaply(monkeypatch)
    async with open_world(tmp_path) as opened:
        yield opened


async def started_task(world: World) -> str:
    """A task of the victim that runs, with something in its environment."""
    task_id = await world.manager.create_task(proplet_id=world.id("victim"), env=SECRET_ENV)
    assert (await world.manager.http.post(f"/tasks/{task_id}/start")).status_code == 200
    return task_id


def forged(victim: str, task_id: str) -> dict[Kind, dict[str, Any]]:
    """What an attacker says in the victim's name."""
    return {
        Kind.PROPLET_CREATE: {"proplet_id": victim, "metadata": {"directed": False, "location": "elsewhere"}},
        Kind.PROPLET_ALIVE: {"proplet_id": victim, "status": "offline"},
        Kind.PROPLET_RESULTS: {"task_id": task_id, "proplet_id": victim, "results": "forged", "error": None},
        Kind.PROPLET_METRICS: {"proplet_id": victim, "cpu_metrics": {"percent": 666.0}},
        Kind.TASK_METRICS: {"task_id": task_id, "proplet_id": victim, "metrics": {"cpu_percent": 666.0}},
    }


@pytest.mark.parametrize("attacker", ["attacker", "compat-1"])
async def test_nothing_can_be_said_in_anothers_name(world: World, attacker: str) -> None:
    """A proplet has its own topics and a compat one the shared ones; both try all of them."""
    victim_id = world.id("victim")
    victim = await world.join_as_victim()
    task_id = await started_task(world)
    other, compat = await world.join(attacker), await world.join("compat-2")
    overheard = await world.join("compat-1")
    await overheard.session.subscribe(world.channel.topic(Kind.START), overheard.receive)
    for kind, message in forged(victim_id, task_id).items():
        for topic in (
            world.channel.topic(kind),
            world.channel.said(kind, victim_id),
            world.channel.said(kind, world.id(attacker)),
        ):
            await other.publish(topic, message)
            await other.publish(topic, {**message, "proplet_id": None, "results": {"proplet_id": victim_id}})
    # What comes after it on the same topics has its effect, so that all of it was handled.
    await world.told(compat)
    await victim.publish(
        world.channel.said(Kind.TASK_METRICS, victim_id),
        {"task_id": task_id, "proplet_id": victim_id, "metrics": {"cpu_percent": 1.0}},
    )

    async def metrics() -> list[dict[str, Any]]:
        return list((await world.manager.http.get(f"/tasks/{task_id}/metrics")).json()["metrics"])

    await eventually(metrics)
    assert [one["metrics"] for one in await metrics()] == [{"cpu_percent": 1.0}]
    assert (await world.manager.http.get(f"/proplets/{victim_id}/metrics")).json()["total"] == 0
    shown = (await world.manager.http.get(f"/proplets/{victim_id}")).json()
    assert (shown["alive"], shown["metadata"]["directed"], shown["metadata"].get("location")) == (
        True,
        True,
        None,
    )
    assert (await world.manager.task(task_id))["state"] == 2
    # The next start goes to the victim alone too.
    next_id = await started_task(world)
    await eventually(lambda: victim.starts(next_id))
    assert [one["env"] for one in victim.starts()] == [SECRET_ENV, SECRET_ENV]
    assert overheard.received == []
    await victim.send_result(task_id, victim_id, "real")
    assert (await world.manager.wait_for_state(task_id, 3))["results"] == "real"


async def test_a_forged_will_takes_nobody_offline_and_the_own_one_does(world: World) -> None:
    victim_id = world.id("victim")
    await world.join_as_victim()
    payload = f'{{"status": "offline", "proplet_id": "{victim_id}"}}'.encode()
    async with Relay(world.site.broker.port).running() as relay:
        for name in ("attacker", "compat-1"):
            for topic in (
                world.channel.topic(Kind.PROPLET_ALIVE),
                world.channel.said(Kind.PROPLET_ALIVE, victim_id),
                world.channel.said(Kind.PROPLET_ALIVE, world.id(name)),
            ):
                await world.join(name, port=relay.port, will=Will(topic, payload, 0))
        relay.cut()
        await world.told(await world.join("compat-2"))
        assert await world.manager.is_alive(victim_id)
        own = Will(world.channel.said(Kind.PROPLET_ALIVE, victim_id), payload, 0)
        await world.join("victim", port=relay.port, will=own)
        relay.cut()

        async def gone() -> bool:
            return not await world.manager.is_alive(victim_id)

        await eventually(gone)


async def test_invented_devices_are_none_and_the_log_stays_short(world: World) -> None:
    attacker, compat = await world.join("attacker"), await world.join("compat-1")
    with capture_logs() as logs:
        for number in range(27):
            message = {"proplet_id": f"invented-{number}", "status": "alive"}
            for client in (attacker, compat):
                for kind in (Kind.PROPLET_CREATE, Kind.PROPLET_ALIVE):
                    await client.publish(kind, message)
                    await client.publish(world.channel.said(kind, f"invented-{number}"), message)
                    await client.publish(world.channel.said(kind, world.id("attacker")), message)
        await world.told(await world.join("compat-2"))
    assert await world.ids() == {world.id("compat-2")}
    refused = [one for one in logs if one["event"] == "message ignored"]
    assert 2 <= len(refused) <= 4
    assert world.id("attacker") in {one["sender"] for one in refused}


async def test_a_compat_proplet_works_until_it_is_unmarked_or_disabled(world: World) -> None:
    compat, other = world.id("compat-1"), world.id("compat-2")
    first, second = await world.join("compat-1"), await world.join("compat-2")
    for client, id_ in ((first, compat), (second, other)):
        await client.publish(Kind.PROPLET_CREATE, {"proplet_id": id_})
        await client.publish(Kind.PROPLET_ALIVE, {"proplet_id": id_})
        await eventually(partial(world.manager.is_alive, id_))
    await first.session.subscribe(world.channel.topic(Kind.START), first.receive)
    task_id = await world.manager.create_task(proplet_id=compat)
    assert (await world.manager.http.post(f"/tasks/{task_id}/start")).status_code == 200
    await eventually(lambda: first.starts(task_id))
    await first.publish(Kind.PROPLET_RESULTS, {"task_id": task_id, "proplet_id": compat, "results": "8"})
    await world.manager.wait_for_state(task_id, 3)
    # Unmarked at identity, it is one with topics of its own: a broker, and a manager that has not heard of it yet, know that.
    async with httpx.AsyncClient(base_url=world.api_url, headers=world.api.headers, trust_env=False) as http:
        answer = await http.patch(f"/{world.channel.domain_id}/clients/{compat}", json={"compat": False})
        assert answer.json()["compat"] is False
        refused = await http.patch(
            f"/{world.channel.domain_id}/clients/{world.id('manager')}", json={"compat": True}
        )
        assert (refused.status_code, "only proplets" in refused.text) == (400, True)
    again = await world.join("compat-1")
    await again.register(compat, directed=True)

    async def directed() -> bool:
        shown = (await world.manager.http.get(f"/proplets/{compat}")).json()
        return bool(shown["metadata"].get("directed"))

    await eventually(directed)


async def test_who_may_ask_for_compat_proplets(world: World) -> None:
    params = {"domain_id": world.channel.domain_id, "channel_id": world.channel.channel_id}

    async def asked(name: str, **changed: str) -> httpx.Response:
        known = world.clients[name]
        async with httpx.AsyncClient(base_url=world.api_url, trust_env=False) as http:
            return await http.get(
                "/auth/compat", params={**params, **changed}, auth=(known["id"], known["key"])
            )

    answer = await asked("manager")
    assert answer.json() == {"clients": sorted([world.id("compat-1"), world.id("compat-2")])}
    assert (await asked("victim")).status_code == 403
    assert (await asked("manager", channel_id="another")).status_code == 403
