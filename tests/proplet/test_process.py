"""A proplet as a process: killed, told to stop, cut off from the broker. Every task is reported all the same."""

import asyncio
import signal
import subprocess
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

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
