"""Of processes that are given one database one works; the next one takes over when it is gone, and it writes nothing any more."""

import asyncio
import contextlib
import errno
import json
import os
import signal
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from propeller.errors import StartError
from propeller.store.database import Database
from propeller.store.ownership import FileClaim, owned
from propeller.store.postgresql_claim import ANSWER_S, PROOF_S, SILENCE_S
from support.net import eventually
from support.postgresql import create_database

PROGRAM = """
import asyncio, os, sys
from sqlalchemy import text
from propeller.process.logs import configure
from propeller.process.run import run
from propeller.store import postgresql_claim
from propeller.store.ownership import owned

url, who = sys.argv[1:]
postgresql_claim.SILENCE_S, postgresql_claim.ANSWER_S = 2.0, 0.5  # for a short test; the last one looks at how they are
configure("test")

async def write(database):
    async with database.transaction() as connection:
        await connection.execute(text("INSERT INTO written VALUES (:who)"), {"who": who})

async def main(stop):
    async with owned(url, "zoo", stop) as database:
        if database is None:
            print("stopped", flush=True)
            return
        async with database.transaction() as connection:
            await connection.execute(text("CREATE TABLE IF NOT EXISTS written (who VARCHAR(20))"))
        print("owner", flush=True)
        while not stop.is_set():
            try:
                await write(database)
            except Exception as error:
                print(type(error).__name__, flush=True)
            await asyncio.sleep(0.005)

sys.exit(run(main))
"""


TRANSACTION = "xmin::text::bigint"
"""The number of the transaction that wrote a row."""


class Process:
    """One that owns the database, or waits for it, and then writes its name all the time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.logs: list[dict[str, Any]] = []
        self._reading = asyncio.create_task(self._read_logs())

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, url: str, who: str) -> AsyncIterator["Process"]:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, url, who, stdout=pipe, stderr=pipe
        )
        started = cls(process)
        try:
            yield started
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            await started._reading

    async def says(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), 20)).decode().strip()

    async def waits(self, owner: "Process") -> None:
        """Until it has said that it is the standby of this owner."""
        name = f"process {owner.process.pid} on"
        await eventually(lambda: any(name in line.get("owner", "") for line in self.logs))

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ends(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 20)

    async def _read_logs(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            with contextlib.suppress(ValueError):
                self.logs.append(json.loads(line))


async def count(url: str, who: str) -> int:
    """How often it has written its name."""
    database = Database(url)
    try:
        async with database.read() as connection:
            found = await connection.exec_driver_sql(f"SELECT count(*) FROM written WHERE who = '{who}'")
            return int(found.scalar_one())
    finally:
        await database.close()


async def end_connections(url: str, like: str) -> None:
    """End those of the server's connections whose name is like this."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE $1", like
    )
    await connection.close()


async def test_one_of_two_takes_over_when_the_owner_is_killed(url: str) -> None:
    async with Process.started(url, "first") as first:
        assert await first.says() == "owner"
        async with Process.started(url, "second") as second, Process.started(url, "third") as third:
            await second.waits(first)
            await third.waits(first)
            assert await count(url, "second") == await count(url, "third") == 0
            first.send(signal.SIGKILL)
            saying = [asyncio.create_task(process.says()) for process in (second, third)]
            done, _ = await asyncio.wait(saying, return_when=asyncio.FIRST_COMPLETED, timeout=20)
            assert [task.result() for task in done] == ["owner"]
            before = await count(url, "first")
            heir, waiting = (second, third) if saying[0] in done else (third, second)
            await waiting.waits(heir)
            waiting.send(signal.SIGTERM)  # one that waits can be stopped
            assert await next(task for task in saying if task not in done) == "stopped"
            assert await waiting.ends() == 0
            assert await count(url, "first") == before


async def test_an_owner_that_stops_lets_the_next_one_in(url: str) -> None:
    async with Process.started(url, "first") as first:
        assert await first.says() == "owner"
        async with Process.started(url, "second") as second:
            await second.waits(first)
            first.send(signal.SIGTERM)
            assert await first.ends() == 0
            assert await second.says() == "owner"
            assert [line["msg"] for line in second.logs][-1].startswith("the standby takes over")


async def test_services_that_share_a_database_have_an_owner_each(url: str) -> None:
    stop = asyncio.Event()
    async with owned(url, "zoo", stop) as first, owned(url, "museum", stop) as second:
        assert first is not None
        assert second is not None


async def test_who_is_to_stop_already_owns_nothing(url: str) -> None:
    stop = asyncio.Event()
    async with owned(url, "zoo", asyncio.Event()):
        waiting = asyncio.create_task(_own(url, stop))
        stop.set()
        assert await asyncio.wait_for(waiting, 5) is None


async def _own(url: str, stop: asyncio.Event) -> Database | None:
    async with owned(url, "zoo", stop) as database:
        return database


async def test_what_is_left_of_a_dead_owner_is_no_obstacle(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    lock = tmp_path / "a.db.zoo.lock"
    lock.write_text("process 1 on another machine")
    async with owned(str(file), "zoo", asyncio.Event()) as database:
        assert database is not None
        assert lock.read_text().startswith(f"process {os.getpid()} on")
    lock.unlink()
    async with owned(str(file), "zoo", asyncio.Event()):
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600


async def test_a_link_to_the_file_is_the_same_database(tmp_path: Path) -> None:
    (tmp_path / "b.db").symlink_to(tmp_path / "a.db")
    stop = asyncio.Event()
    async with owned(str(tmp_path / "a.db"), "zoo", asyncio.Event()):
        waiting = asyncio.create_task(_own(f"sqlite:///{tmp_path / 'b.db'}", stop))
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        stop.set()
        assert await waiting is None


async def test_a_folder_that_cannot_be_written_to_says_so() -> None:
    with pytest.raises(
        StartError, match=r"cannot lock /proc/\d+/a.db.zoo.lock: .*must be one that this user may write"
    ):
        await _own("/proc/self/a.db", asyncio.Event())


async def test_a_standby_that_cannot_ask_tries_again_and_says_each_thing_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: Iterator[Any] = iter([False, False, StartError("away"), StartError("away"), False, True])

    async def take(claim: FileClaim) -> bool:
        claim.owner, answer = "another", next(answers)
        if isinstance(answer, StartError):
            raise answer
        return bool(answer)

    monkeypatch.setattr(FileClaim, "take", take)
    monkeypatch.setattr("propeller.store.ownership.POLL_S", 0.001)
    with capture_logs() as logs:
        assert await _own(str(tmp_path / "a.db"), asyncio.Event()) is not None
    told = [log.get("owner") or log.get("reason") or log["event"] for log in logs]
    assert told == ["another", "away", "another", "the standby takes over the database"]


async def test_a_full_disk_keeps_nobody_from_being_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("propeller.store.ownership.os.pwrite", refuse)
    claim = FileClaim(tmp_path / "a.db", "zoo")
    assert await claim.take()
    waiting = FileClaim(tmp_path / "a.db", "zoo")
    assert not await waiting.take()
    assert waiting.owner == "unknown"
    await claim.close()


async def test_the_lock_is_not_on_the_database_itself(tmp_path: Path) -> None:
    async with owned(str(tmp_path / "a.db"), "zoo", asyncio.Event()):
        other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)  # as a backup is made
        other.execute("CREATE TABLE a (id)")
        other.close()


@pytest.fixture
def server(postgresql: tuple[Path, str]) -> str:
    """An empty database of PostgreSQL."""
    return create_database(*postgresql, f"d{os.urandom(8).hex()}")


async def test_an_owner_that_was_stopped_writes_nothing_when_it_goes_on(server: str) -> None:
    async with Process.started(server, "first") as first:
        assert await first.says() == "owner"
        async with Process.started(server, "second") as second:
            await second.waits(first)
            first.send(signal.SIGSTOP)
            assert await second.says() == "owner"
            before = await count(server, "first")
            first.send(signal.SIGCONT)
            assert await first.ends() == 1
            assert "does not own its database any more" in first.logs[-1]["msg"]
            assert await count(server, "first") == before
            connection = await asyncpg.connect(server)
            rows = [
                row[0] for row in await connection.fetch(f"SELECT who FROM written ORDER BY {TRANSACTION}")
            ]
            await connection.close()
            assert rows == sorted(rows)
            assert rows[-1] == "second"


async def test_an_owner_whom_the_server_does_not_answer_ends(server: str) -> None:
    connection = await asyncpg.connect(server)
    async with Process.started(server, "first") as first:
        assert await first.says() == "owner"
        async with Process.started(server, "second") as second:
            await second.waits(first)
            name = f"propeller zoo, process {first.process.pid} %"
            query = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE $1"
            backend = await connection.fetchval(query, name)
            os.kill(backend, signal.SIGSTOP)
            try:
                assert await first.ends() == 1
                assert "the server does not answer" in first.logs[-1]["reason"]
            finally:
                os.kill(backend, signal.SIGCONT)
            assert await second.says() == "owner"
    await connection.close()


@pytest.mark.parametrize("standby", [True, False], ids=["with a standby", "alone"])
async def test_an_owner_that_loses_its_connection_ends(server: str, *, standby: bool) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Process.started(server, "first"))
        assert await first.says() == "owner"
        if standby:
            second = await stack.enter_async_context(Process.started(server, "second"))
            await second.waits(first)
        await end_connections(server, f"propeller zoo, process {first.process.pid} %")
        assert await first.ends() == 1
        assert "does not own its database any more" in first.logs[-1]["msg"]
        if standby:
            assert await second.says() == "owner"


async def test_schemas_of_one_database_have_an_owner_each(server: str) -> None:
    role = f"r{os.urandom(8).hex()}"
    connection = await asyncpg.connect(server)
    await connection.execute(f"CREATE ROLE {role} SUPERUSER LOGIN")
    await connection.execute(f"CREATE SCHEMA {role}; ALTER ROLE {role} SET search_path = {role}")
    await connection.close()
    stop = asyncio.Event()
    async with owned(server, "zoo", stop), owned(server.replace("tests@", f"{role}@"), "zoo", stop) as second:
        assert second is not None
        async with second.read() as reader:
            found = await reader.exec_driver_sql("SELECT current_schema()")
            assert found.scalar_one() == role


async def test_a_standby_outlasts_the_end_of_its_connection(server: str) -> None:
    async with Process.started(server, "first") as first:
        assert await first.says() == "owner"
        async with Process.started(server, "second") as second:
            await second.waits(first)
            await end_connections(server, f"propeller zoo, process {second.process.pid} %")
            first.send(signal.SIGKILL)
            assert await second.says() == "owner"


async def test_a_connection_of_who_lost_the_database_is_refused(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EndedError(Exception):
        pass

    def end(_code: int) -> None:
        raise EndedError

    monkeypatch.setattr("propeller.store.postgresql_claim.os._exit", end)
    monkeypatch.setattr("propeller.store.postgresql_claim.PROOF_S", 60.0)
    async with owned(server, "zoo", asyncio.Event()) as database:
        assert database is not None
        async with database.transaction():  # one connection is open, and another one is not yet
            await end_connections(server, f"propeller zoo, process {os.getpid()} %")
            with pytest.raises(EndedError):
                async with database.transaction():
                    pass


async def test_a_server_that_is_not_there_says_so(postgresql: tuple[Path, str]) -> None:
    with pytest.raises(StartError, match=r"cannot open the database postgresql.*missing") as error:
        await _own(f"postgresql://tests:hunter2@/missing?host={postgresql[1]}", asyncio.Event())
    assert "hunter2" not in str(error.value)


def test_an_owner_ends_before_a_standby_takes_it_for_silent() -> None:
    assert PROOF_S + ANSWER_S < SILENCE_S < 10
