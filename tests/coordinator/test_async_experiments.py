"""Asynchronous experiments in the coordinator: waves, merges of their updates, and what survives kill -9."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from propeller.protocol.topics import Channel
from support.coordinator import (
    PARTICIPANTS,
    Peers,
    client,
    coordinating,
    environment,
    kept_updates,
    lose_updates,
    process,
)
from support.databases import execute
from support.experiments import PINNED, FakeFleet, answering, detail, history, in_state, submit, variables
from support.net import eventually

ASYNC = {"kind": "async", "buffer": 2, "concurrency": 3}


@pytest.fixture
def env(tmp_path: Path, peers: tuple[Peers, str], broker_port: int) -> dict[str, str]:
    channel = Channel("d-1", f"c-{tmp_path.name}"[:100])
    return environment(tmp_path, peers[1], **variables(broker_port, channel))


@pytest.fixture
async def fleet(env: dict[str, str], broker_port: int) -> AsyncIterator[FakeFleet]:
    channel = Channel(env["COORDINATOR_DOMAIN_ID"], env["COORDINATOR_CHANNEL_ID"])
    async with client(env) as http, answering(http, broker_port, channel) as fleet:
        fleet.choose = choose_free
        yield fleet


@pytest.fixture
async def http(env: dict[str, str], fleet: FakeFleet) -> AsyncIterator[httpx.AsyncClient]:
    async with coordinating(env) as http:
        yield http


def choose_free(start: dict[str, Any]) -> dict[str, Any]:
    policy = start["selection"]
    free = [name for name in PARTICIPANTS if name not in policy.get("busy", [])][: policy.get("up_to")]
    names = {name: name.replace("p-", "ward-") for name in free}
    return (
        {"participants": free, "program": PINNED, "names": names} if free else {"failure": "nobody is free"}
    )


async def test_updates_of_waves_are_merged(
    http: httpx.AsyncClient, fleet: FakeFleet, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    await submit(http, mode=ASYNC)
    found = await in_state(http, "completed", "failed")
    assert (found["state"], found["reason"], found["done"]) == ("completed", None, 3)
    rounds = await history(http)
    merges = [one for one in rounds if one["kind"] == "train"]
    assert [(one["round_id"], one["state"]) for one in merges] == [
        (f"e.{number}", "completed") for number in (1, 2, 3)
    ]
    assert all(len(one["updates"]) == 2 for one in merges)
    assert all(one["name"] == f"ward-{one['proplet_id'][2:]}" for each in rounds for one in each["updates"])
    assert {one["kind"] for one in rounds} == {"train", "wave"}
    assert all(start["round_id"].startswith("e.w") for start in fleet.starts)
    for plan in peers[0].plans:
        assert plan["strategy"] == {"name": "fedbuff"}
        assert len(plan["contributions"]) == 2
        assert plan["bases"] == 1 + max(each["base"] for each in plan["contributions"])
    await eventually(lambda: not kept_updates(tmp_path))


async def test_nobody_trains(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    fleet.send = lambda _start, _name: "no such image"
    await submit(http, mode=ASYNC, strategy="fedbuff", retries=1)
    found = await in_state(http, "completed", "failed")
    assert re.match(r"no update came of \d waves in a row: ", found["reason"])
    assert "no such image" in found["reason"]


async def test_it_is_stopped_with_its_waves(http: httpx.AsyncClient, fleet: FakeFleet) -> None:
    fleet.send = lambda _start, _name: None
    await submit(http, mode=ASYNC, strategy="fedbuff")

    async def trains() -> bool:
        return any(one["state"] == "collecting" for one in await history(http))

    await eventually(trains)
    assert (await http.post("/experiments/e/stop")).status_code == 202
    await in_state(http, "stopped")

    async def is_over() -> bool:
        return all(one["state"] == "failed" for one in await history(http))

    await eventually(is_over)


async def test_kill_9_in_the_middle(
    env: dict[str, str], fleet: FakeFleet, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    gate = peers[0].pause_at("aggregate")
    with process(env, tmp_path / "log") as coordinator:
        async with client(env) as http:
            await submit(http, mode=ASYNC, strategy="fedbuff", rounds=4)
            for _ in range(3):
                await asyncio.wait_for(peers[0].reached.wait(), 30)
                await asyncio.to_thread(coordinator.kill)
                peers[0].reached.clear()
                await asyncio.to_thread(coordinator.start)
            gate.set()
            found = await in_state(http, "completed", "failed", timeout=60)
            assert (found["state"], found["reason"], found["done"]) == ("completed", None, 4)
            assert (await detail(http))["model_version"] == 4
            merges = [one for one in await history(http) if one["kind"] == "train"]
            assert [one["number"] for one in merges] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        (
            "row",
            r"round e\.2 cannot be started: the update of p-\d in e\.w1, .* is not in the coordinator's database any more",
        ),
        (
            "document",
            r"round 1 failed 3 times, .*: aggregation: the update of p-\d is not among the kept ones .*: no blob '.*'",
        ),
    ],
)
async def test_an_update_that_is_not_there_any_more(
    env: dict[str, str], fleet: FakeFleet, peers: tuple[Peers, str], tmp_path: Path, lost: str, reason: str
) -> None:
    """As after an older copy was put back: the experiment says so, and does not stand still."""
    gate = peers[0].pause_at("aggregate")
    with process(env, tmp_path / "log") as coordinator:
        async with client(env) as http:
            await submit(http, mode=ASYNC, strategy="fedbuff", rounds=4)
            await asyncio.wait_for(peers[0].reached.wait(), 30)

            async def has_three() -> bool:
                waves = [one for one in await history(http) if one["kind"] == "wave"]
                return len(waves[0]["updates"]) == 3

            await eventually(has_three)
            await asyncio.to_thread(coordinator.kill)
            if lost == "row":
                execute(tmp_path / "coordinator.db", "DELETE FROM updates WHERE round_id = 'e.w1'")
            else:
                lose_updates(tmp_path)
            await asyncio.to_thread(coordinator.start)
            gate.set()
            found = await in_state(http, "completed", "failed", timeout=60)
    assert re.fullmatch(reason, found["reason"]), found["reason"]
