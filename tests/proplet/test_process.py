"""A proplet as a process: killed, told to stop, cut off from the broker. Every task is reported all the same."""

import asyncio
import json
import signal
import subprocess
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import psutil

from propeller.proplet.settings import PropletSettings
from propeller.protocol.topics import Kind
from support.nats import open_broker
from support.net import eventually
from support.proplet import Peers, Services, World, log_file, process, settings


def _processes(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


async def ended(child: subprocess.Popen[bytes], timeout: float = 10.0) -> int:
    return await asyncio.to_thread(child.wait, timeout)


def executing(chosen: PropletSettings) -> bool:
    return b"Executing task" in log_file(chosen).read_bytes()


async def test_killed_it_reports_at_its_next_start_what_it_was_doing(world: World) -> None:
    chosen = settings(world.peers, world.services, world.folder, world.port)
    with process(chosen) as child:
        await world.peers.alive(chosen.client_id)
        task = await world.peers.start(chosen.client_id, env={"SPIN": "1"})
        daemon = await world.peers.start(chosen.client_id, daemon=True, env={"SPIN": "1"})
        await world.peers.result_of(daemon)
        await eventually(lambda: len(_processes(child.pid)) == 3)  # the template and two tasks
        children = _processes(child.pid)
        child.kill()
        await ended(child)
        await eventually(lambda: not any(one.is_running() and one.status() != "zombie" for one in children))
    await eventually(
        lambda: world.peers.messages(Kind.PROPLET_ALIVE)[-1]["status"] == "offline"
    )  # the last will
    assert world.peers.result(task) is None
    with process(chosen):
        result = await world.peers.result_of(task)
        assert result["error"] == "interrupted: the proplet ended while the task ran"
        (place,) = (world.folder / "sandbox" / "tasks").iterdir()
        assert list(place.iterdir()) == []  # nothing is left of the tasks
        again = await world.peers.start(chosen.client_id, task, env={"REPLY": "now"})
        await eventually(lambda: world.peers.result(again)["results"] == "now")  # type: ignore[index]


def _experiment_task(me: str, number: int, **env: str) -> dict[str, Any]:
    reply = {"round_id": f"e.{number}", "proplet_id": me, "num_samples": 1, "update": {"w": [1.0]}}
    about = {"ROUND_ID": f"e.{number}", "EXPERIMENT_ID": "e", "FL_ROUND": str(number)}
    return {"env": {**about, "KEEP": f"{number} ", "REPLY": json.dumps(reply), **env}}


async def test_killed_in_a_task_or_in_a_delivery_it_has_the_device_state_from_before(world: World) -> None:
    chosen = settings(world.peers, world.services, world.folder, world.port)
    me, states = chosen.client_id, world.folder / "states"
    world.services.datasets[me] = {"data": [{"x": [1], "y": 1}]}

    def kept() -> list[str]:
        return [file.read_text() for file in states.glob("*/[0-9]*/n")]

    with process(chosen) as child:
        await world.peers.alive(me)
        task = await world.peers.start(me, **_experiment_task(me, 1))
        assert (await world.peers.result_of(task))["error"] is None
        assert kept() == ["1 "]
        await world.peers.start(me, **_experiment_task(me, 2, SPIN="1"))
        running = "sandbox/tasks/*/*/state/n"
        await eventually(lambda: "1 2 " in [file.read_text() for file in world.folder.glob(running)])
        child.kill()
        await ended(child)
    with process(chosen) as child:
        await world.peers.alive(me)
        world.services.answers += [503] * 100
        await world.peers.start(me, **_experiment_task(me, 2))
        await eventually(lambda: list(states.glob(".new-*")) and len(world.services.answers) < 100)
        child.kill()
        await ended(child)
        world.services.answers.clear()
    assert kept() == ["1 "]
    heard = len(world.peers.messages(Kind.PROPLET_CREATE))
    with process(chosen):
        await eventually(lambda: len(world.peers.messages(Kind.PROPLET_CREATE)) > heard)
        assert list(states.glob(".*")) == []
        task = await world.peers.start(me, **_experiment_task(me, 2))
        assert (await world.peers.result_of(task))["error"] is None
        assert sorted(kept()) == ["1 ", "1 2 "]


async def test_told_to_stop_it_reports_its_tasks_and_leaves(world: World) -> None:
    chosen = settings(world.peers, world.services, world.folder, world.port, max_tasks=1)
    with process(chosen) as child:
        await world.peers.alive(chosen.client_id)
        tasks = [await world.peers.start(chosen.client_id, env={"SPIN": "1"}) for _ in range(2)]
        await eventually(lambda: len(list((world.folder / "outbox").glob("*.json"))) == 2)
        begin = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert await ended(child) == 0
        assert time.monotonic() - begin < 8  # container engines kill after 10 s
    for task in tasks:
        assert (await world.peers.result_of(task))["error"] == "interrupted: the proplet was stopped"
    assert world.peers.messages(Kind.PROPLET_ALIVE)[-1]["status"] == "offline"
    assert list((world.folder / "outbox").iterdir()) == []


async def test_while_the_broker_is_away_tasks_go_on_and_results_wait(tmp_path: Path) -> None:
    services = Services()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(services.running())
        with open_broker(tmp_path / "broker") as port:
            peers = Peers(port)
            await stack.enter_async_context(peers.running())
            chosen = settings(peers, services, tmp_path / "state", port, task_wall_time=2.0)
            stack.enter_context(process(chosen))
            await peers.alive(chosen.client_id)
            task = await peers.start(chosen.client_id, env={"SPIN": "1"})
            await eventually(lambda: executing(chosen))
        outbox = tmp_path / "state" / "outbox"
        await eventually(lambda: any("wall_time_s" in one.read_text() for one in outbox.glob("*.json")))
        heard = len(peers.messages(Kind.PROPLET_CREATE))
        with open_broker(tmp_path / "broker", port):
            assert "wall_time_s" in (await peers.result_of(task, 20))["error"]
            await eventually(lambda: len(peers.messages(Kind.PROPLET_CREATE)) > heard)
            again = await peers.start(chosen.client_id, env={"REPLY": "back"})
            assert (await peers.result_of(again))["results"] == "back"


async def test_an_unsent_result_survives_a_kill(tmp_path: Path) -> None:
    services, outbox = Services(), tmp_path / "state" / "outbox"
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(services.running())
        first = stack.enter_context(ExitStack())
        with open_broker(tmp_path / "broker") as port:
            peers = Peers(port)
            await stack.enter_async_context(peers.running())
            chosen = settings(peers, services, tmp_path / "state", port, task_wall_time=1.0)
            first.enter_context(process(chosen))
            await peers.alive(chosen.client_id)
            task = await peers.start(chosen.client_id, env={"SPIN": "1"})
            await eventually(lambda: executing(chosen))
        await eventually(lambda: any("wall_time_s" in one.read_text() for one in outbox.glob("*.json")))
        first.close()  # kills it
        with open_broker(tmp_path / "broker", port), process(chosen):
            assert "wall_time_s" in (await peers.result_of(task, 20))["error"]
            await eventually(lambda: not list(outbox.iterdir()))
