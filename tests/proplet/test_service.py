"""Starts and stops in every order, with a runner that is slow to end."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from propeller.proplet import stages
from propeller.proplet.outbox import Outbox
from propeller.proplet.round_results import RoundResults
from propeller.proplet.runner import CompletedRun
from propeller.proplet.service import MAX_REMEMBERED_IDS, MAX_WAITING_TASKS, TaskExecutor
from propeller.proplet.stages import enter
from propeller.protocol.proplet import TaskMetrics
from propeller.protocol.task import Stage, TaskResult, TaskStage, TaskStart
from propeller.wasm.program_run import ProgramRun, RunOutcome
from support.net import eventually

ME = "me"
TOPIC = f"m/d/c/c/control/manager/start/{ME}"


class FakeRunner:
    """Runs tasks until they may end, also when they are stopped."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.started: list[TaskStart] = []
        self.copies: list[bool] = []

    def task_folder(self) -> contextlib.nullcontext[Path]:
        return contextlib.nullcontext(Path("large"))

    async def run(self, start: TaskStart, _folder: Path) -> CompletedRun:
        self.started.append(start)
        enter(Stage.RUNNING)
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            await self.may_end.wait()
            raise
        if start.name == "faulty":
            raise KeyError("a bug")
        return CompletedRun(
            ProgramRun(start.id, "sha256:0"),
            RunOutcome(None, metrics={"cpu_ms": 5.0, "total_ms": 10.0}),
            {"prepare_ms": 1.0},
        )

    async def report(self, completed: CompletedRun, *, copy_update: bool) -> TaskResult:
        self.copies.append(copy_update)
        return TaskResult(task_id=completed.run.id, proplet_id=ME, results="done", usage=completed.usage())


class Scene:
    def __init__(self, folder: Path, max_tasks: int = 1) -> None:
        self.runner, self.results, self.metrics = FakeRunner(), list[dict[str, Any]](), list[TaskMetrics]()
        outbox = Outbox(folder / "outbox", self._send, 10_000)
        self.stages: list[TaskStage] = []
        self.executor = TaskExecutor(
            ME,
            self.runner,  # type: ignore[arg-type]
            outbox,
            self._measure,
            self._note_stage,
            max_tasks,
            RoundResults(folder / "rounds"),
        )

    async def start(self, task_id: str, topic: str = TOPIC, **fields: Any) -> None:
        message = {"id": task_id, "name": "n", "image_url": "i", **fields}
        await self.executor.handle_start(topic, json.dumps(message).encode())

    async def stop(self, task_id: str, **fields: Any) -> None:
        await self.executor.handle_stop(
            f"m/d/c/c/control/manager/stop/{ME}", json.dumps({"id": task_id, **fields}).encode()
        )

    async def _send(self, payload: bytes) -> None:
        self.results.append(json.loads(payload))

    async def _measure(self, metrics: TaskMetrics) -> None:
        self.metrics.append(metrics)

    async def _note_stage(self, stage: TaskStage) -> None:
        self.stages.append(stage)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


async def test_a_start_while_the_task_is_being_stopped_runs_after_it(scene: Scene) -> None:
    await scene.start("t")
    await eventually(lambda: scene.runner.started)
    await scene.stop("t")
    await scene.start("t", name="second")
    scene.runner.may_end.set()
    await eventually(lambda: len(scene.results) == 2)
    assert [one["error"] for one in scene.results] == ["Task t was stopped before completion", None]
    assert [start.name for start in scene.runner.started] == ["n", "second"]


async def test_a_stop_takes_back_a_start_that_waits_for_the_end_of_the_run_before(scene: Scene) -> None:
    await scene.start("t")
    await eventually(lambda: scene.runner.started)
    await scene.stop("t")
    await scene.start("t")
    await scene.stop("t")
    scene.runner.may_end.set()
    await eventually(lambda: scene.results)
    await scene.executor.close()
    assert len(scene.runner.started) == 1


async def test_a_stage_is_told_once_it_takes_long(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "TOLD_AFTER_S", 0.05)
    await scene.start("first")
    await scene.start("second")  # there is room for one
    await eventually(lambda: len(scene.stages) == 2)
    told = {(one.task_id, one.proplet_id, one.stage) for one in scene.stages}
    assert told == {("first", ME, Stage.RUNNING), ("second", ME, Stage.WAITING)}
    scene.runner.may_end.set()
    await eventually(lambda: len(scene.results) == 2)
    asked = len(scene.stages)
    await asyncio.sleep(0.2)  # nothing more is told of what is over
    assert len(scene.stages) == asked


async def test_a_stop_for_another_proplet_changes_nothing(scene: Scene) -> None:
    await scene.start("t")
    await scene.stop("t", proplet_id="other")
    scene.runner.may_end.set()
    await eventually(lambda: scene.results)
    assert scene.results[0]["results"] == "done"


async def test_metrics_follow_a_task_unless_its_profile_says_no(scene: Scene) -> None:
    scene.runner.may_end.set()
    await scene.start("a")
    await scene.start("b", monitoring_profile={"enabled": False})
    await scene.start("c", monitoring_profile={"enabled": True, "export_to_mqtt": True})
    await eventually(lambda: len(scene.results) == 3 and len(scene.metrics) == 2)
    assert [one.task_id for one in scene.metrics] == ["a", "c"]
    measured = scene.metrics[0].metrics
    assert (measured["cpu_percent"], measured["prepare_ms"], measured["total_ms"]) == (50.0, 1.0, 10.0)


async def test_a_fault_of_the_proplet_fails_the_task_alone(scene: Scene) -> None:
    scene.runner.may_end.set()
    await scene.start("t", name="faulty")
    await scene.start("u")
    await eventually(lambda: len(scene.results) == 2)
    assert [one["error"] for one in scene.results] == ["a fault of the proplet: KeyError: 'a bug'", None]


async def test_more_than_may_wait_are_refused(scene: Scene) -> None:
    for number in range(MAX_WAITING_TASKS + 2):
        await scene.start(f"t{number}")
    await eventually(lambda: scene.results)
    assert [one["task_id"] for one in scene.results] == [f"t{MAX_WAITING_TASKS + 1}"]
    scene.runner.may_end.set()
    await scene.executor.close()
    assert len(scene.results) == MAX_WAITING_TASKS + 2


async def test_after_it_closed_it_takes_no_more(scene: Scene) -> None:
    await scene.executor.close()
    await scene.start("t")
    await eventually(lambda: scene.results)
    assert scene.results[0]["error"] == "interrupted: the proplet was stopped"


async def test_a_stop_that_comes_first_counts_for_a_while_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.proplet.service.EARLY_STOP_LIFETIME_S", 3600.0)
    scene = Scene(tmp_path / "remembers", max_tasks=5)
    scene.runner.may_end.set()
    for number in range(MAX_REMEMBERED_IDS + 1):
        await scene.stop(str(number))
    await scene.start("0")  # its stop is the oldest, and one too many
    await scene.start("1")
    await eventually(lambda: len(scene.results) == 2)
    await scene.start("1")
    await eventually(lambda: len(scene.results) == 3)
    errors = sorted((one["task_id"], str(one["error"])) for one in scene.results)
    assert errors == [("0", "None"), ("1", "None"), ("1", "Task 1 was stopped before completion")]
    monkeypatch.setattr("propeller.proplet.service.EARLY_STOP_LIFETIME_S", 0.0)
    forgets = Scene(tmp_path / "forgets")
    forgets.runner.may_end.set()
    await forgets.stop("t")
    await forgets.start("t")
    await eventually(lambda: forgets.results)
    assert forgets.results[0]["error"] is None


async def test_only_managers_of_absmach_propeller_get_a_copy_of_the_update(scene: Scene) -> None:
    scene.runner.may_end.set()
    await scene.start("ours")
    await eventually(lambda: scene.results)
    await scene.start("theirs", "m/d/c/c/control/manager/start", proplet_id=ME)
    await eventually(lambda: len(scene.results) == 2)
    assert scene.runner.copies == [False, True]
