"""Started rounds in the database: they come back as they went in, and their deadline decides which are open."""

from datetime import UTC, datetime, timedelta

from propeller.manager.round_repository import RoundRepository, SkippedParticipant, StartedRound
from propeller.manager.task import Task, TaskSpec, TaskState
from propeller.manager.task_repository import TaskRepository
from propeller.protocol.rounds import Experiment
from propeller.store.database import Database

START = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def started_round(round_id: str, timeout_s: float = 30.0) -> StartedRound:
    experiment = Experiment(
        experiment_id="e",
        round_id=round_id,
        participants=["p1", "p2"],
        hyperparams={"lr": 0.1},
        timeout_s=timeout_s,
        task_wasm_image="localhost/fl:1",
    )
    return StartedRound(experiment, START, [SkippedParticipant("p2", "proplet not found")])


async def store(database: Database, started: StartedRound, *states: TaskState) -> None:
    round_id = started.experiment.round_id
    tasks = [
        Task(
            f"{round_id}-{number}",
            TaskSpec(name="fl"),
            state,
            START,
            proplet_id="p1",
            round_id=round_id,
            error="trap" if state is TaskState.FAILED else None,
        )
        for number, state in enumerate(states)
    ]
    async with database.transaction() as connection:
        await RoundRepository(database).insert(connection, started)
        await TaskRepository(database).insert(connection, tasks)


async def test_a_round_comes_back_as_it_went_in(database: Database) -> None:
    rounds, started = RoundRepository(database), started_round("r", 0.25)
    await store(database, started, TaskState.RUNNING)
    assert await rounds.find("r") == started
    assert started.deadline == START + SECOND / 4
    assert await rounds.find("other") is None


async def test_rounds_are_overdue_after_their_deadline_while_tasks_of_them_are_in_the_state(
    database: Database,
) -> None:
    rounds = RoundRepository(database)
    await store(database, started_round("r-short", 30), TaskState.RUNNING, TaskState.RUNNING)
    await store(database, started_round("r-long", 60), TaskState.RUNNING)
    await store(database, started_round("r-ended", 30), TaskState.COMPLETED)
    assert await rounds.overdue(START + 30 * SECOND, TaskState.RUNNING) == {}
    assert await rounds.overdue(START + 31 * SECOND, TaskState.RUNNING) == {"r-short": START + 30 * SECOND}
    assert await rounds.overdue(START + 31 * SECOND, TaskState.SCHEDULED) == {}
    assert set(await rounds.overdue(START + 61 * SECOND, TaskState.RUNNING)) == {"r-short", "r-long"}


async def test_failed_and_skipped_participants_of_open_rounds(database: Database) -> None:
    rounds = RoundRepository(database)
    await store(database, started_round("r-over", 30), TaskState.FAILED)
    await store(database, started_round("r-open", 60), TaskState.FAILED, TaskState.RUNNING)
    assert await rounds.failures(START + 30 * SECOND) == [
        ("r-open", "p1", "trap"),
        ("r-open", "p2", "skipped: proplet not found"),
    ]
