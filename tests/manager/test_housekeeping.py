"""Tasks fail when their proplet was silent for its window while the manager could hear it; old tasks are deleted."""

from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from propeller.manager import tables
from propeller.manager.coordinator_client import RoundReporter
from propeller.manager.dispatcher import Dispatcher
from propeller.manager.fleet import Fleet
from propeller.manager.housekeeping import Housekeeping
from propeller.manager.metrics_repository import MetricsRepository
from propeller.manager.round_repository import RoundRepository
from propeller.manager.task import Task, TaskSpec, TaskState
from propeller.manager.task_repository import TaskRepository
from propeller.manager.task_runner import TaskRunner
from propeller.process.keyed_locks import KeyedLocks
from propeller.protocol.proplet import HeartbeatMessage
from propeller.store.database import Database

START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """The housekeeping of a fleet with a clock and a connection that are moved by hand."""

    def __init__(self, database: Database) -> None:
        self.now, self.connected = START, True
        self.fleet = Fleet(database, interval_s=10, clock=lambda: self.now)
        self.tasks = TaskRepository(database)
        reporter, nobody = RoundReporter(None), cast("Dispatcher", None)  # no message is sent here
        self.housekeeping = Housekeeping(
            self.fleet,
            self.tasks,
            RoundRepository(database),
            KeyedLocks(),
            TaskRunner(self.tasks, KeyedLocks(), self.fleet, nobody, reporter),
            MetricsRepository(database),
            None,
            reporter,
            interval_s=10,
            tasks_keep=2,
            is_connected=lambda: self.connected,
        )

    async def after(self, seconds: float) -> TaskState:
        """The state of the task some time later."""
        self.now += timedelta(seconds=seconds)
        await self.housekeeping.fail_lost_tasks()
        return (await self.tasks.get("t")).state


@pytest.fixture
async def world(database: Database) -> World:
    made = World(database)
    await made.fleet.record_heartbeat(HeartbeatMessage(proplet_id="p"), directed=True)
    spec = TaskSpec(name="add", image_url="localhost/add:1")
    await made.tasks.add(Task("t", spec, TaskState.RUNNING, START, proplet_id="p"))
    return made


async def test_silence_for_the_window(world: World) -> None:
    assert await world.after(29) is TaskState.RUNNING
    assert world.housekeeping.seconds_to_next_check() == 1
    assert await world.after(1) is TaskState.FAILED


async def test_a_last_will_alone_does_not_end_a_task(world: World) -> None:
    await world.fleet.record_heartbeat(HeartbeatMessage(proplet_id="p", status="offline"), directed=True)
    assert await world.after(20) is TaskState.RUNNING
    await world.fleet.record_heartbeat(HeartbeatMessage(proplet_id="p"), directed=True)
    assert await world.after(20) is TaskState.RUNNING


async def test_silence_counts_only_while_the_manager_listens(world: World) -> None:
    world.connected = False
    assert await world.after(500) is TaskState.RUNNING
    world.connected = True
    await world.housekeeping.on_connect()
    assert await world.after(29) is TaskState.RUNNING
    assert await world.after(1) is TaskState.FAILED


async def test_the_task_of_a_deleted_proplet_fails(world: World) -> None:
    await world.fleet.remove("p")
    assert await world.after(0) is TaskState.FAILED


async def test_the_oldest_ended_tasks_over_the_limit_are_deleted(world: World, database: Database) -> None:
    async with database.transaction() as connection:
        for own, minutes in (("r-over", -1), ("r-open", 1)):
            moment = tables.to_micros(START + timedelta(minutes=minutes))
            await connection.execute(
                tables.rounds.insert().values(
                    round_id=own, experiment={}, skipped=[], deadline=moment, created_at=moment
                )
            )
    spec = TaskSpec(name="add", image_url="localhost/add:1")
    made: list[tuple[str, TaskState, str | None]] = [
        ("old", TaskState.FAILED, None),
        ("of-open", TaskState.FAILED, "r-open"),
        ("of-over", TaskState.COMPLETED, "r-over"),
        ("new", TaskState.PENDING, None),
        ("kept-1", TaskState.COMPLETED, None),
        ("kept-2", TaskState.FAILED, "r-over"),
    ]
    for task_id, state, round_id in made:
        await world.tasks.add(Task(task_id, spec, state, START, round_id=round_id), b"\0asm")
    await world.housekeeping.prune_tasks()
    _, left = await world.tasks.page(0, 10)
    assert [task.id for task in left] == ["t", "of-open", "new", "kept-1", "kept-2"]
    assert await world.tasks.program("old") is None
    assert await world.tasks.program("kept-2") == b"\0asm"


async def test_more_than_one_transaction_s_worth_is_deleted(world: World, database: Database) -> None:
    spec = TaskSpec(name="add", image_url="localhost/add:1")
    async with database.transaction() as connection:
        tasks = [Task(f"t-{number}", spec, TaskState.COMPLETED, START) for number in range(1203)]
        await world.tasks.insert(connection, tasks)
    await world.housekeeping.prune_tasks()
    total, left = await world.tasks.page(0, 10)
    assert (total, [task.id for task in left]) == (3, ["t", "t-1201", "t-1202"])
