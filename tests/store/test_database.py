"""The database: what committed is there after kill -9, writers wait for each other, readers for no one."""

import asyncio
import shutil
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Connection,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError, OperationalError, ResourceClosedError

from propeller.errors import StartError
from propeller.store.database import Database, DatabaseConnection
from propeller.store.sqlite import DatabaseBusyError
from support.postgresql import create_database

TABLES = MetaData()
ROWS = Table("rows", TABLES, Column("id", Integer, primary_key=True), Column("who", String(40)))
PARTS = Table("parts", TABLES, Column("row", ForeignKey(ROWS.c.id), nullable=False))

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
    last = 0
    for _ in range(times):
        async with database.transaction(durable=last % 2 == 0) as connection:
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
    async with database.read() as connection:
        await add(database)
        assert (await connection.execute(query)).scalar_one() == 3


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


async def trace(database: Database, callback: Callable[[str], None]) -> None:
    """Has the connection that writes call it before each statement, in the thread that executes it."""

    def start(connection: Connection) -> None:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.set_trace_callback(callback)

    async with database.transaction() as connection:
        await connection.run_sync(start)


async def test_a_commit_waits_for_the_disk_in_a_thread_if_it_has_to(database: Database) -> None:
    commits = []

    def note(statement: str) -> None:
        if statement == "COMMIT":
            commits.append(threading.current_thread() is threading.main_thread())

    await trace(database, note)
    commits.clear()
    await add(database)
    async with database.transaction():
        pass
    async with database.transaction(durable=False) as connection:
        await connection.execute(insert(ROWS).values(who="b"))
    await create_tables(database)
    assert commits == [False, True, True, False]
    assert await count(database) == 2


async def test_who_is_cancelled_in_the_commit_ends_when_it_is_done(database: Database) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def hold(statement: str) -> None:
        if statement == "COMMIT" and threading.current_thread() is not threading.main_thread():
            begun.set()
            may_end.wait(10)

    may_end.set()
    await trace(database, hold)
    may_end.clear()
    begun.clear()
    first = asyncio.create_task(add(database))
    await asyncio.to_thread(begun.wait, 10)
    first.cancel()
    second = asyncio.create_task(add(database))
    assert await count(database) == 0  # a reader waits for no one
    assert not first.done()
    assert not second.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert await count(database) == 2


async def test_a_writer_of_another_process_is_waited_for(database: Database, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "sub" / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writers = [asyncio.create_task(add(database, who)) for who in "ab"]
    assert await count(database) == 0
    writers[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await writers[0]
    other.execute("COMMIT")
    await asyncio.wait_for(writers[1], 5)
    other.close()
    assert await count(database) == 1


async def test_a_writer_of_another_process_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "a.db"), write_wait_s=0.05)
    await create_tables(database)
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(OperationalError, match="database is locked"):
        await add(database)
    other.close()
    await add(database)
    await database.close()


async def test_what_was_read_in_part_holds_nothing_open(database: Database, tmp_path: Path) -> None:
    async def read_one(block: Callable[[], AbstractAsyncContextManager[DatabaseConnection]]) -> None:
        async with block() as connection:
            result = await connection.execute(select(ROWS.c.id))
            assert result.fetchone() is not None
            results.append(result)

    async with database.transaction() as connection:
        await connection.execute(insert(ROWS), [{"who": "a"}] * 500)
    results: list[Any] = []
    await read_one(database.read)
    await read_one(database.transaction)
    other = sqlite3.connect(tmp_path / "sub" / "a.db", isolation_level=None)
    assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    other.close()
    assert [len(result.fetchmany(9)) + len(result.all()) for result in results] == [499, 499]


async def test_a_violated_constraint_costs_the_transaction_not_the_connection(database: Database) -> None:
    async def violate() -> None:
        async with database.transaction() as connection:
            await connection.execute(insert(ROWS).values(who="b"))
            await connection.execute(insert(PARTS).values(row=77))

    async with database.transaction() as connection:
        await connection.exec_driver_sql("CREATE TEMP TABLE of_this_connection (id)")
    with pytest.raises(IntegrityError):
        await violate()
    async with database.transaction() as connection:
        await connection.execute(text("SELECT * FROM of_this_connection"))
    assert await count(database) == 0


async def test_a_commit_that_fails_in_the_thread_is_rolled_back(database: Database) -> None:
    async def violate() -> None:
        async with database.transaction() as connection:
            await connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")  # the commit looks at them
            await connection.execute(insert(PARTS).values(row=77))

    with pytest.raises(IntegrityError):
        await violate()
    await add(database)
    assert await count(database) == 1
    async with database.read() as connection:
        assert await connection.scalar(select(func.count()).select_from(PARTS)) == 0


@pytest.mark.parametrize("kind", ["transaction", "read"])
async def test_a_connection_that_cannot_roll_back_is_not_kept(database: Database, kind: str) -> None:
    def close(connection: Connection) -> None:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.close()

    async def fail() -> None:
        block: Callable[[], AbstractAsyncContextManager[DatabaseConnection]] = getattr(database, kind)
        async with block() as connection:
            await connection.run_sync(close)
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    await add(database)
    assert await count(database) == 1


@pytest.mark.parametrize("kind", ["transaction", "read"])
async def test_after_another_error_the_connection_is_a_new_one(database: Database, kind: str) -> None:
    block: Callable[[], AbstractAsyncContextManager[DatabaseConnection]] = getattr(database, kind)
    async with block() as connection:
        await connection.exec_driver_sql("CREATE TEMP TABLE of_this_connection (id)")
    for missing in ("missing", "of_this_connection"):
        with pytest.raises(OperationalError, match=f"no such table: {missing}"):
            async with block() as connection:
                await connection.execute(text(f"SELECT * FROM {missing}"))
    await add(database)
    assert await count(database) == 1


async def test_a_file_that_was_replaced_is_opened_anew(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "sub" / "a.db"
    await add(database)
    other = sqlite3.connect(file)
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    shutil.copyfile(file, tmp_path / "backup.db")
    await add(database)
    assert await count(database) == 2
    for suffix in ("-wal", "-shm"):
        Path(f"{file}{suffix}").unlink()
    (tmp_path / "backup.db").replace(file)
    assert await count(database) == 1
    await add(database)
    assert await count(database) == 2


async def test_a_connection_is_of_no_use_after_its_block(database: Database) -> None:
    async with database.transaction() as connection:
        pass
    with pytest.raises(ResourceClosedError):
        await connection.execute(insert(ROWS).values(who="b"))


async def test_many_read_at_once(database: Database) -> None:
    async def read(number: int) -> int:
        async with database.read() as connection:
            before = await connection.scalar(select(func.count()).select_from(ROWS))
            await barrier.wait()
            if number == 0:
                await add(database)
                changed.set()
            await changed.wait()
            assert await connection.scalar(select(func.count()).select_from(ROWS)) == before
            return int(before or 0)

    barrier, changed = asyncio.Barrier(10), asyncio.Event()
    assert await asyncio.gather(*map(read, range(10))) == [0] * 10
    assert await count(database) == 1


def test_event_loops_one_after_the_other(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "a.db"))

    async def use() -> int:
        await create_tables(database)
        await asyncio.gather(*(add(database) for _ in range(5)))
        return await count(database)

    async def use_and_close() -> int:
        try:
            return await use()
        finally:
            await database.close()

    assert [asyncio.run(use()), asyncio.run(use_and_close()), asyncio.run(use_and_close())] == [5, 10, 15]


async def test_what_need_not_be_durable_leaves_the_next_transaction_durable(database: Database) -> None:
    async def synchronous(*, durable: bool) -> int:
        async with database.transaction(durable=durable) as connection:
            return int(await connection.scalar(text("PRAGMA synchronous")))

    assert [await synchronous(durable=durable) for durable in (False, False, True, False, True)] == [
        1,
        1,
        2,
        1,
        2,
    ]


async def test_the_log_of_what_need_not_be_durable_does_not_grow_for_ever(
    database: Database, tmp_path: Path
) -> None:
    for _ in range(250):
        async with database.transaction(durable=False) as connection:
            await connection.execute(insert(ROWS).values(who="x" * 50_000))
    assert (tmp_path / "sub" / "a.db-wal").stat().st_size < 8_000_000


async def test_postgresql_does_not_wait_for_what_need_not_be_durable(postgresql: tuple[Path, str]) -> None:
    database = Database(create_database(*postgresql, "durable"))
    answers = []
    for durable in (False, True):
        async with database.transaction(durable=durable) as connection:
            answers.append(await connection.scalar(text("SHOW synchronous_commit")))
    await database.close()
    assert answers == ["off", "on"]


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
