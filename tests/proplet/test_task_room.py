"""What all tasks of a device may take together."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from propeller.proplet import task_room
from propeller.proplet.errors import TaskError
from propeller.proplet.settings import PropletSettings
from propeller.proplet.task_room import Resources, TaskRoom, whole_room
from propeller.protocol.topics import Kind
from propeller.wasm.program_run import MIB
from support.net import eventually
from support.proplet import World

WHOLE = Resources(memory=10, disk=10, threads=10, descriptors=10)


def need(memory: int = 1, disk: int = 1, threads: int = 1, descriptors: int = 1) -> Resources:
    return Resources(memory, disk, threads, descriptors)


class Tasks:
    """Tasks that take room until they are told to end."""

    def __init__(self, room: TaskRoom) -> None:
        self.room, self.inside = room, list[str]()
        self._ends = dict[str, asyncio.Event]()
        self.running = dict[str, asyncio.Task[None]]()

    async def begin(self, name: str, needed: Resources, *, daemon: bool = False) -> None:
        self._ends[name] = asyncio.Event()
        self.running[name] = asyncio.create_task(self._run(name, needed, daemon=daemon))
        await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self.running[name]
        await asyncio.sleep(0)

    async def stop(self, name: str) -> None:
        self.running[name].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.running[name]
        await asyncio.sleep(0)

    async def _run(self, name: str, needed: Resources, *, daemon: bool) -> None:
        async with self.room.taken(needed, daemon=daemon):
            self.inside.append(name)
            try:
                await self._ends[name].wait()
            finally:
                self.inside.remove(name)


@pytest.mark.parametrize("name", ["memory", "disk", "threads", "descriptors"])
async def test_each_resource_bounds_by_itself(name: str) -> None:
    tasks = Tasks(TaskRoom(WHOLE))
    await tasks.begin("a", need(**{name: 6}))
    await tasks.begin("b", need(**{name: 5}))
    assert tasks.inside == ["a"]
    await tasks.end("a")
    assert tasks.inside == ["b"]
    await tasks.end("b")


async def test_who_asks_first_is_first_though_a_smaller_one_would_fit() -> None:
    """So that a large task is not kept waiting for ever by small ones."""
    tasks = Tasks(TaskRoom(WHOLE))
    await tasks.begin("a", need(6))
    await tasks.begin("large", need(10))
    await tasks.begin("small", need(1))
    assert tasks.inside == ["a"]
    await tasks.end("a")
    assert tasks.inside == ["large"]
    await tasks.end("large")
    assert tasks.inside == ["small"]
    await tasks.end("small")


async def test_a_stopped_task_gives_up_its_place() -> None:
    tasks = Tasks(TaskRoom(WHOLE))
    await tasks.begin("a", need(6))
    await tasks.begin("large", need(10))
    await tasks.begin("small", need(1))
    await tasks.stop("large")
    assert tasks.inside == ["a", "small"]
    await tasks.stop("a")
    await tasks.begin("b", need(9))
    assert tasks.inside == ["small", "b"]
    await tasks.stop("small")
    await tasks.stop("b")


async def test_what_daemons_hold_is_not_waited_for() -> None:
    """Those that wait already are refused too; a stopped daemon makes room again."""
    tasks = Tasks(TaskRoom(WHOLE))
    await tasks.begin("a", need(disk=5))
    await tasks.begin("daemon", need(disk=5), daemon=True)
    await tasks.begin("waits", need(disk=5))
    with pytest.raises(TaskError) as caught:
        async with tasks.room.taken(need(disk=6)):
            raise AssertionError("there was room")
    assert str(caught.value) == (
        "disk: the task may take 6, and daemons hold 5 of the 10 that all tasks of this device may take (PROPLET_MAX_DISK): "
        "stop a daemon, or give the task lower limits"
    )
    await tasks.begin("another daemon", need(disk=3), daemon=True)
    await tasks.end("a")
    await tasks.end("waits")
    await tasks.begin("too much", need(disk=3))
    with pytest.raises(TaskError, match="PROPLET_MAX_DISK"):
        await tasks.running["too much"]
    await tasks.end("daemon")
    await tasks.begin("fits", need(disk=7))
    assert tasks.inside == ["another daemon", "fits"]
    await tasks.end("another daemon")
    await tasks.end("fits")


async def test_those_behind_one_that_is_refused_go_on() -> None:
    tasks = Tasks(TaskRoom(WHOLE))
    await tasks.begin("a", need(4))
    await tasks.begin("daemon", need(7), daemon=True)
    await tasks.begin("large", need(8))
    await tasks.begin("small", need(1))
    await tasks.end("a")
    assert tasks.inside == ["daemon", "small"]
    with pytest.raises(TaskError, match="PROPLET_MAX_MEMORY"):
        await tasks.running["large"]
    await tasks.end("daemon")
    await tasks.end("small")


@pytest.mark.parametrize("seed", range(20))
async def test_room_is_never_lost_and_never_given_twice(seed: int) -> None:
    """Tasks come, end, and are stopped while they wait, at random."""
    chance = random.Random(seed)
    room, held, most = TaskRoom(WHOLE), 0, 0

    async def task() -> None:
        nonlocal held, most
        memory = chance.randint(1, 6)
        for _ in range(chance.randint(0, 3)):
            await asyncio.sleep(0)
        with contextlib.suppress(TaskError):
            async with room.taken(need(memory), daemon=chance.random() < 0.2):
                held += memory
                most = max(most, held)
                try:
                    for _ in range(chance.randint(0, 5)):
                        await asyncio.sleep(0)
                finally:
                    held -= memory

    running = [asyncio.create_task(task()) for _ in range(100)]
    while not all(one.done() for one in running):
        if chance.random() < 0.3:
            chance.choice(running).cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*running, return_exceptions=True)
    assert 5 < most <= 10
    async with asyncio.timeout(5), room.taken(WHOLE):  # all of it is there
        pass


def settings(**given: Any) -> PropletSettings:
    return PropletSettings.load(domain_id="d", channel_id="c", client_id="p", client_key="k", **given)


def test_what_is_not_set_is_room_for_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_room, "_device_memory", lambda: 4096 * MIB)
    assert whole_room(settings(max_tasks=3)) == Resources(4096 * MIB, 6 * 320 * MIB, 6 * 64, 6 * 256)
    small = settings(max_tasks=1, task_memory=64 * MIB, task_tensor_bytes=MIB)
    assert whole_room(small).memory == 2 * (64 + 192 + 2) * MIB
    monkeypatch.setattr(task_room, "_device_memory", lambda: 512 * MIB)  # less than a task may take
    assert whole_room(settings()).memory == (512 + 192 + 2 * 512) * MIB
    given = settings(max_memory=2048 * MIB, max_disk=MIB * 400, max_threads=64, max_descriptors=300)
    assert whole_room(given) == Resources(2048 * MIB, 400 * MIB, 64, 300)


def test_a_control_groups_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "memory.max"
    monkeypatch.setattr(task_room, "_CGROUP_LIMIT", group)
    without = task_room._device_memory()  # noqa: SLF001
    for text, found in (("max\n", without), (f"{MIB}\n", MIB), (f"{2**62}\n", without)):
        group.write_text(text)
        assert task_room._device_memory() == found  # noqa: SLF001


async def test_a_device_runs_as_many_tasks_as_have_room(
    world: World, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    me = await world.join(max_tasks=3, max_threads=130)
    first, second = [await world.peers.start(me, env={"SPIN": "1"}) for _ in range(2)]
    waits = await world.peers.start(me, env={"REPLY": "came in"})

    def told(event: str) -> list[dict[str, Any]]:
        return [line for line in log_lines() if line["event"] == event]

    await eventually(lambda: told("the task waits for room"))
    (line,) = told("the task waits for room")
    assert (line["task_id"], line["setting"]) == (waits, "PROPLET_MAX_THREADS")
    assert {line["task_id"] for line in told("Executing task")} == {first, second}
    less = await world.peers.start(me, env={"REPLY": "less"}, limits={"threads": 2})
    await world.peers.publish(world.peers.channel.stop(me), {"id": first})
    assert (await world.peers.result_of(waits))["results"] == "came in"
    assert (await world.peers.result_of(less))["results"] == "less"
    await world.peers.publish(world.peers.channel.stop(me), {"id": second})
    await world.peers.result_of(second)


async def test_a_task_for_which_daemons_leave_no_room_is_refused(world: World) -> None:
    me = await world.join(max_tasks=2, max_threads=64)
    daemon = await world.peers.start(me, daemon=True, env={"SPIN": "1"})
    assert (await world.peers.result_of(daemon))["error"] is None
    refused = await world.peers.result_of(await world.peers.start(me, env={"REPLY": "no"}))
    assert refused["error"].startswith("threads: the task may take 64, and daemons hold 64 of the 64")
    assert "(PROPLET_MAX_THREADS)" in refused["error"]
    another = await world.peers.result_of(await world.peers.start(me, daemon=True, env={"SPIN": "1"}))
    assert "(PROPLET_MAX_THREADS)" in another["error"]
    await world.peers.publish(world.peers.channel.stop(me), {"id": daemon})
    await eventually(
        lambda: len([one for one in world.peers.messages(Kind.PROPLET_RESULTS) if one["task_id"] == daemon])
    )

    async def runs() -> bool:
        result = await world.peers.result_of(await world.peers.start(me, env={"REPLY": "yes"}))
        return bool(result["results"] == "yes")

    await eventually(runs)


async def test_a_proplet_says_at_its_start_what_confines_tasks_and_what_they_may_take(
    world: World, log_lines: Callable[[], list[dict[str, Any]]]
) -> None:
    await world.join(max_threads=500, max_processors=1)
    lines = {line["event"]: line for line in log_lines()}
    assert lines["what all tasks may take together"]["threads"] == 500
    assert lines["what all tasks may take together"]["processors"] == 1
    shown = lines.get("each task runs as a user of its own") or lines.get(
        "tasks run as the proplet's own user"
    )
    shown = shown or lines["tasks run as root: run the proplet as another user"]
    assert "no_new_privs" in shown["confined_by"]
    assert ("own_user" in shown["confined_by"]) == ("reason" not in shown)
