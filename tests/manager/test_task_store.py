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
from propeller.manager.task import EndedBy, State, Task, TaskSpec
from propeller.manager.task_store import TaskStore
from propeller.store.database import Database
from propeller.store.migrations import migrate

MOMENT = datetime(2026, 1, 21, 16, 12, 11, 123456, tzinfo=UTC)


async def test_a_task_comes_back_as_it_went_in(database: Database) -> None:
    task = Task(
        id="t",
        spec=TaskSpec(
            name="näme", inputs=[1, 2.5, "3"], env={"A": "b"}, monitoring_profile={"enabled": True}
        ),
        state=State.FAILED,
        created_at=MOMENT,
        proplet_id="p",
        round_id="r",
        results={"deep": [1, None, "x\0"]},
        error="trap",
        ended_by=EndedBy.LOST,
        stopping_on="q",
        start_time=MOMENT,
        finish_time=MOMENT,
        updated_at=MOMENT,
    )
    store = TaskStore(database)
    await store.add(task, b"\0asm")
    assert await store.get("t") == task
    assert await store.file("t") == b"\0asm"
    await store.remove("t")
    assert await store.get("t") is None
    assert await store.file("t") is None


@settings(max_examples=15, deadline=None)
@given(count=st.integers(0, 12), limit=st.integers(1, 5))
def test_pages_cover_every_task_once_in_order(count: int, limit: int) -> None:
    async def check(folder: str) -> None:
        database = Database(str(Path(folder) / "manager.db"))
        await migrate(database, tables.SCHEMA)
        store, ids = TaskStore(database), [f"t-{(number * 7) % 13}" for number in range(count)]
        for task_id in ids:  # all made at the same moment
            await store.add(Task(task_id, TaskSpec(name="a"), State.PENDING, MOMENT))
        got = []
        for offset in range(0, count + 2 * limit, limit):
            total, page = await store.page(offset, limit)
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
