"""The database: what committed is there after kill -9, writers wait for each other, readers for no one."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, func, insert, select

from propeller.errors import StartError
from propeller.store.database import Database
from propeller.store.sqlite import DatabaseBusyError

TABLES = MetaData()
ROWS = Table("rows", TABLES, Column("id", Integer, primary_key=True), Column("who", String(40)))

WRITER = """
import asyncio, sys
from sqlalchemy import Column, Integer, MetaData, String, Table, func, insert, select
from propeller.store.database import Database

tables = MetaData()
rows = Table("rows", tables, Column("id", Integer, primary_key=True), Column("who", String(40)))

async def main(path, who, times):
    database = Database(path)
    async with database.transaction() as connection:
        await connection.run_sync(tables.create_all)
    for _ in range(times):
        async with database.transaction() as connection:
            # Read, then write what depends on it: lost if two writers could read the same.
            last = (await connection.execute(select(func.max(rows.c.id)))).scalar() or 0
            await connection.execute(insert(rows).values(id=last + 1, who=who))
        print(last + 1, flush=True)
    await database.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def create_tables(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.run_sync(TABLES.create_all)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(str(tmp_path / "sub" / "a.db"))
    await create_tables(opened)
    yield opened
    await opened.close()


async def count(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(ROWS))).scalar_one())


async def add(database: Database, who: str = "a") -> None:
    async with database.transaction() as connection:
        await connection.execute(insert(ROWS).values(who=who))


async def writer(path: Path, who: str, times: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, path, who, str(times), stdout=asyncio.subprocess.PIPE
    )


async def test_a_transaction_commits_at_its_end_and_rolls_back_when_it_fails(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as connection:
            await connection.execute(insert(ROWS).values(who="b"))
            raise KeyError

    await add(database)
    with pytest.raises(KeyError):
        await fail()
    assert await count(database) == 1


async def test_a_cancelled_transaction_is_rolled_back_and_lets_the_next_in(database: Database) -> None:
    begun = asyncio.Event()

    async def write() -> None:
        async with database.transaction() as connection:
            await connection.execute(insert(ROWS).values(who="b"))
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write())
    await begun.wait()
    waiting = asyncio.create_task(add(database, "c"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(waiting, 5)
    assert await count(database) == 1


async def test_readers_see_one_moment_and_wait_for_no_writer(database: Database) -> None:
    await add(database)
    async with database.transaction() as connection:
        await connection.execute(insert(ROWS).values(who="b"))
        assert await asyncio.wait_for(count(database), 2) == 1
    async with database.read() as connection:
        query = select(func.count()).select_from(ROWS)
        assert (await connection.execute(query)).scalar_one() == 2
        await asyncio.wait_for(add(database), 2)
        assert (await connection.execute(query)).scalar_one() == 2
    assert await count(database) == 3


async def test_many_writers_in_one_process_take_turns(database: Database) -> None:
    await asyncio.gather(*(add(database) for _ in range(50)))
    assert await count(database) == 50


async def test_a_transaction_inside_another_is_an_error_not_a_hang(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "a.db"), write_wait_s=0.1)
    await create_tables(database)
    async with database.transaction():
        with pytest.raises(DatabaseBusyError, match="is this one inside it"):
            await add(database)
    await add(database)
    await database.close()


async def test_commits_are_on_disk(database: Database) -> None:
    async with database.read() as connection:
        assert (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar_one() == "wal"
        assert (await connection.exec_driver_sql("PRAGMA synchronous")).scalar_one() == 2  # FULL
        assert (await connection.exec_driver_sql("PRAGMA foreign_keys")).scalar_one() == 1


async def test_what_was_committed_survives_kill_9(tmp_path: Path) -> None:
    path, said = tmp_path / "a.db", 0
    for _ in range(2):
        process = await writer(path, "a", 100_000)
        assert process.stdout is not None
        for _ in range(30):
            said = int(await asyncio.wait_for(process.stdout.readline(), 20))
        process.send_signal(signal.SIGKILL)
        rest = await process.stdout.read()
        await process.wait()
        said = max([said, *map(int, rest.split()[:-1])])
    database = Database(str(path))
    stored = await count(database)
    await database.close()
    assert stored >= said >= 60


async def test_two_processes_write_in_turns(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    processes = [await writer(path, who, 60) for who in ("a", "b")]
    outputs = [await asyncio.wait_for(process.communicate(), 60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    numbers = sorted(int(line) for out, _err in outputs for line in out.split())
    assert numbers == list(range(1, 121))


async def test_a_process_that_fails_without_closing_ends(tmp_path: Path) -> None:
    code = WRITER.replace("    await database.close()", "    raise SystemExit(3)")
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, tmp_path / "a.db", "a", "1")
    assert await asyncio.wait_for(process.wait(), 20) == 3
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize("name", ["a.db", "ä b?c#d%20.db", "sqlite:///{folder}/b.db"])
async def test_paths_and_urls(tmp_path: Path, name: str) -> None:
    url = name.format(folder=tmp_path) if "://" in name else str(tmp_path / name)
    database = Database(url)
    await create_tables(database)
    await database.close()
    assert database.is_sqlite
    assert len(list(tmp_path.glob("*.db"))) == 1


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("://", "cannot be read"),
        ("postgresql://me:hunter2@host:port/x", "cannot be read"),
        ("mysql://me:hunter2@host/x", "mysql is not a database that is supported"),
        ("sqlite://", "in memory would be lost"),
        (":memory:", "in memory would be lost"),
        ("/dev/null/x/a.db", "cannot open the database /dev/null/x/a.db"),
    ],
)
def test_a_wrong_url_says_what_to_write_and_no_password(url: str, says: str) -> None:
    with pytest.raises(StartError, match=says) as error:
        Database(url)
    assert "hunter2" not in str(error.value)
