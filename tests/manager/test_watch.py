"""Tasks are given up when their proplet was silent for its window, while the manager could hear it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from propeller.manager import tables
from propeller.manager.failures import Failures
from propeller.manager.proplets import Fleet
from propeller.manager.runs import Runs
from propeller.manager.samples import Samples
from propeller.manager.task import State, Task, TaskSpec
from propeller.manager.task_store import TaskStore
from propeller.manager.tasks import Tasks
from propeller.manager.watch import Watch
from propeller.protocol.proplet import HeartbeatMessage
from propeller.store.database import Database

START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """A watch with a clock and a connection that are moved by hand."""

    def __init__(self, database: Database) -> None:
        self.now, self.connected = START, True
        self.fleet = Fleet(database, interval_s=10, clock=lambda: self.now)
        self.store = TaskStore(database)
        nobody: Any = None  # no message is sent here
        runs = Runs(Tasks(self.store, self.fleet, nobody), self.fleet, nobody, Failures(None))
        self.watch = Watch(
            self.fleet,
            self.store,
            runs,
            nobody,
            Samples(database),
            interval_s=10,
            tasks_keep=2,
            is_connected=lambda: self.connected,
        )

    async def after(self, seconds: float) -> State:
        """The state of the task some time later."""
        self.now += timedelta(seconds=seconds)
        await self.watch.give_up_lost()
        task = await self.store.get("t")
        assert task is not None
        return task.state


@pytest.fixture
async def world(database: Database) -> World:
    made = World(database)
    await made.fleet.heartbeat(HeartbeatMessage(proplet_id="p"))
    spec = TaskSpec(name="add", image_url="localhost/add:1")
    await made.store.add(Task("t", spec, State.RUNNING, START, proplet_id="p"))
    return made


async def test_silence_for_the_window(world: World) -> None:
    assert await world.after(29) is State.RUNNING
    assert world.watch.next_look() == 1
    assert await world.after(1) is State.FAILED


async def test_a_last_will_alone_does_not_end_a_task(world: World) -> None:
    await world.fleet.heartbeat(HeartbeatMessage(proplet_id="p", status="offline"))
    assert await world.after(20) is State.RUNNING
    await world.fleet.heartbeat(HeartbeatMessage(proplet_id="p"))
    assert await world.after(20) is State.RUNNING


async def test_silence_counts_only_while_the_manager_listens(world: World) -> None:
    world.connected = False
    assert await world.after(500) is State.RUNNING
    world.connected = True
    world.watch.listen()
    assert await world.after(29) is State.RUNNING
    assert await world.after(1) is State.FAILED


async def test_the_task_of_a_deleted_proplet_is_given_up(world: World) -> None:
    await world.fleet.remove("p")
    assert await world.after(0) is State.FAILED


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
    made: list[tuple[str, State, str | None]] = [
        ("old", State.FAILED, None),
        ("of-open", State.FAILED, "r-open"),
        ("of-over", State.COMPLETED, "r-over"),
        ("new", State.PENDING, None),
        ("kept-1", State.COMPLETED, None),
        ("kept-2", State.FAILED, "r-over"),
    ]
    for task_id, state, round_id in made:
        await world.store.add(Task(task_id, spec, state, START, round_id=round_id), b"\0asm")
    await world.watch.prune_tasks()
    _, left = await world.store.page(0, 10)
    assert [task.id for task in left] == ["t", "of-open", "new", "kept-1", "kept-2"]
    assert await world.store.file("old") is None
    assert await world.store.file("kept-2") == b"\0asm"


async def test_more_than_one_transaction_s_worth_is_deleted(world: World, database: Database) -> None:
    spec = TaskSpec(name="add", image_url="localhost/add:1")
    async with database.transaction() as connection:
        tasks = [Task(f"t-{number}", spec, State.COMPLETED, START) for number in range(1203)]
        await world.store.insert(connection, tasks)
    await world.watch.prune_tasks()
    total, left = await world.store.page(0, 10)
    assert (total, [task.id for task in left]) == (3, ["t", "t-1201", "t-1202"])
