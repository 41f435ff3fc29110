"""A second task of the same round, as managers of absmach/propeller start them: one run, one update, two results."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from propeller.proplet import round_results
from propeller.proplet.errors import TaskError
from propeller.proplet.round_results import MAX_KEPT, RoundResults
from propeller.protocol.task import TaskResult, TaskStart
from support.net import eventually
from support.proplet import World

MODEL_URI = "fl/models/global_model_v0"


def federated(me: str, round_id: str = "r-1", **env: str) -> dict[str, Any]:
    update = {"w": [1.0, 2.0, 3.0], "b": 1.0}
    reply = {
        "round_id": round_id,
        "proplet_id": me,
        "base_model_uri": MODEL_URI,
        "num_samples": 64,
        "metrics": {"loss": 0.5},
        "update": update,
    }
    return {
        "name": f"fl-round-{round_id}-{me}",
        "env": {"ROUND_ID": round_id, "MODEL_URI": MODEL_URI, "REPLY": json.dumps(reply), **env},
    }


async def start(world: World, me: str, **env: str) -> str:
    return await world.peers.start(me, shared=True, **federated(me, **env))


async def test_two_tasks_of_a_round_are_one_run_and_one_update(world: World) -> None:
    me = await world.join(compat=True)
    tasks = [await start(world, me), await start(world, me)]
    results = [await world.peers.result_of(task) for task in tasks]
    late = await start(world, me)
    results.append(await world.peers.result_of(late))
    assert len(world.services.updates) == 1
    for task, result in zip([*tasks, late], results, strict=True):
        assert (result["task_id"], result["results"]["task_id"], result["error"]) == (task, task, None)
        assert json.loads(base64.b64decode(result["results"]["update_b64"])) == world.services.updates[0]


async def test_a_second_task_after_a_restart_of_the_proplet(world: World) -> None:
    me = await world.join(compat=True, client_id="device-1")
    first = await world.peers.result_of(await start(world, me))
    await world.stack.aclose()
    world.peers.received.clear()
    await world.join(compat=True, client_id="device-1")
    second = await world.peers.result_of(await start(world, me))
    assert second["results"] == {**first["results"], "task_id": second["task_id"]}
    assert len(world.services.updates) == 1


async def test_after_a_failure_the_second_task_runs(world: World) -> None:
    me = await world.join(compat=True)
    world.services.answers = [409, 200]
    refused = await world.peers.result_of(await start(world, me))
    assert "no, because" in refused["error"]
    assert (await world.peers.result_of(await start(world, me)))["error"] is None
    assert len(world.services.updates) == 1


async def test_other_hyperparameters_are_another_task(world: World) -> None:
    me = await world.join(compat=True)
    tasks = [await start(world, me, HYPERPARAMS=text) for text in ('{"lr":1}', '{"lr":2}')]
    for task in tasks:
        assert (await world.peers.result_of(task))["error"] is None
    assert len(world.services.updates) == 2


async def test_the_same_task_again_runs_again(world: World) -> None:
    me = await world.join(compat=True)
    task = await start(world, me)
    await world.peers.result_of(task)
    await world.peers.start(me, task, shared=True, **federated(me))
    await eventually(lambda: len(world.services.updates) == 2)


async def test_a_task_of_our_manager_runs_whatever_others_there_were(world: World) -> None:
    me = await world.join()
    for _ in range(2):
        assert (await world.peers.result_of(await world.peers.start(me, **federated(me))))["error"] is None
    assert len(world.services.updates) == 2


class Work:
    """Runs that end when they are told to."""

    def __init__(self) -> None:
        self.runs: list[asyncio.Future[None]] = []

    def of(self, task_id: str) -> Callable[[], Awaitable[TaskResult]]:
        async def run() -> TaskResult:
            self.runs.append(asyncio.get_running_loop().create_future())
            await self.runs[-1]
            return TaskResult(
                task_id=task_id, proplet_id="me", results={"task_id": task_id, "n": len(self.runs)}
            )

        return run


@pytest.fixture
def kept(tmp_path: Path) -> RoundResults:
    return RoundResults(tmp_path / "rounds")


def task_start(task_id: str, **fields: Any) -> TaskStart:
    return TaskStart(id=task_id, name="n", image_url="i", env={"ROUND_ID": "r"}, **fields)


async def begin(
    kept: RoundResults, work: Work, task_id: str, runs: int, **fields: Any
) -> "asyncio.Task[TaskResult]":
    task = asyncio.create_task(kept.once(task_start(task_id, **fields), work.of(task_id)))
    await eventually(lambda: len(work.runs) == runs)
    await asyncio.sleep(0)  # one that waits for another one does so now
    return task


async def test_a_failure_is_that_of_those_who_wait(kept: RoundResults) -> None:
    work = Work()
    tasks = [await begin(kept, work, f"t{number}", 1) for number in range(3)]
    work.runs[0].set_exception(TaskError("no room"))
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(ended, TaskError)
    assert len(work.runs) == 1


async def test_one_that_waits_runs_once_the_other_is_stopped(kept: RoundResults) -> None:
    work = Work()
    first, *others = [await begin(kept, work, f"t{number}", 1) for number in range(3)]
    first.cancel()
    await eventually(lambda: len(work.runs) == 2)
    work.runs[1].set_result(None)
    results = await asyncio.gather(*others)
    assert [one.results for one in results] == [{"task_id": "t1", "n": 2}, {"task_id": "t2", "n": 2}]
    assert first.cancelled()


async def test_one_that_waits_is_stopped_alone(kept: RoundResults) -> None:
    work = Work()
    first, second = [await begin(kept, work, task_id, 1) for task_id in ("t1", "t2")]
    second.cancel()
    await asyncio.wait([second])
    work.runs[0].set_result(None)
    assert (await first).task_id == "t1"
    assert second.cancelled()


async def test_who_uses_a_round_id_again_later_has_a_run(
    kept: RoundResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work()
    first = await begin(kept, work, "t1", 1)
    work.runs[0].set_result(None)
    await first
    monkeypatch.setattr(round_results, "SAME_START_S", 0.0)
    second = await begin(kept, work, "t2", 2)
    work.runs[1].set_result(None)
    assert (await second).results["n"] == 2


async def test_a_few_results_are_kept(kept: RoundResults, tmp_path: Path) -> None:
    for number in range(MAX_KEPT + 3):
        work = Work()
        task = await begin(kept, work, "t", 1, cli_args=[str(number)])
        work.runs[0].set_result(None)
        await task
    files = list((tmp_path / "rounds").iterdir())
    assert len(files) == MAX_KEPT
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"begin": "x", "result": {}}', b'{"begin": 1e400}'])
async def test_a_damaged_result_is_none(kept: RoundResults, tmp_path: Path, content: bytes) -> None:
    work = Work()
    first = await begin(kept, work, "t1", 1)
    work.runs[0].set_result(None)
    await first
    [file] = (tmp_path / "rounds").iterdir()
    file.write_bytes(content)
    second = await begin(kept, work, "t2", 2)
    work.runs[1].set_result(None)
    assert (await second).task_id == "t2"


async def test_a_disk_without_room_costs_a_second_run_only(kept: RoundResults, tmp_path: Path) -> None:
    (tmp_path / "rounds").touch()
    work = Work()
    for number in (1, 2):
        task = await begin(kept, work, f"t{number}", number)
        work.runs[-1].set_result(None)
        assert (await task).task_id == f"t{number}"
