"""Tasks in the database: they come back as they went in, and pages cover them once."""

import asyncio
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from propeller.manager import tables
from propeller.manager.task import EndCause, Task, TaskSpec, TaskState
from propeller.manager.task_repository import TaskRepository
from propeller.store.database import Database
from propeller.store.migrations import migrate

MOMENT = datetime(2026, 1, 21, 16, 12, 11, 123456, tzinfo=UTC)


async def test_a_task_comes_back_as_it_went_in(database: Database) -> None:
    task = Task(
        id="t",
        spec=TaskSpec(
            name="näme", inputs=[1, 2.5, "3"], env={"A": "b"}, monitoring_profile={"enabled": True}
        ),
        state=TaskState.FAILED,
        created_at=MOMENT,
        proplet_id="p",
        round_id="r",
        results={"deep": [1, None, "x\0"]},
        error="trap",
        ended_by=EndCause.LOST,
        stopping_on="q",
        start_time=MOMENT,
        finish_time=MOMENT,
        updated_at=MOMENT,
    )
    repository = TaskRepository(database)
    await repository.add(task, b"\0asm")
    assert await repository.find("t") == task
    assert await repository.program("t") == b"\0asm"
    await repository.delete("t")
    assert await repository.find("t") is None
    assert await repository.program("t") is None


@settings(max_examples=15, deadline=None)
@given(count=st.integers(0, 12), limit=st.integers(1, 5))
def test_pages_cover_every_task_once_in_order(count: int, limit: int) -> None:
    async def check(folder: str) -> None:
        database = Database(str(Path(folder) / "manager.db"))
        await migrate(database, tables.SCHEMA)
        repository, ids = TaskRepository(database), [f"t-{(number * 7) % 13}" for number in range(count)]
        for task_id in ids:  # all made at the same moment
            await repository.add(Task(task_id, TaskSpec(name="a"), TaskState.PENDING, MOMENT))
        got = []
        for offset in range(0, count + 2 * limit, limit):
            total, page = await repository.page(offset, limit)
            assert total == count
            got += [task.id for task in page]
        assert got == ids
        await database.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(folder))


def test_every_table_can_be_made_on_postgresql() -> None:
    for table in tables.metadata.sorted_tables:
        text = str(CreateTable(table).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
        assert f"CREATE TABLE {table.name}" in text
        if "seq" in table.c:
            assert "BIGSERIAL" in text
