"""The databases of services under test: SQLite files, or with ``PROPELLER_TEST_DATABASE=postgresql`` PostgreSQL's.

So the same tests are of both: what a service is given as its file stands for a database then, which is made when it is first asked for.
The server belongs to the process of the tests, and ends with it.
"""

import asyncio
import atexit
import contextlib
import functools
import os
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import Connection, text

from propeller.store.database import Database
from support.postgresql import create_database, find_programs, open_postgresql

POSTGRESQL = "postgresql"

T = TypeVar("T")


def database_at(file: Path) -> str:
    """What a service's database setting is to be: the file, or the database that stands for it."""
    if os.environ.get("PROPELLER_TEST_DATABASE") != POSTGRESQL:
        return str(file)
    return _database_for(file)


def execute(file: Path, statement: str, **values: Any) -> list[tuple[Any, ...]]:
    """Execute a statement from outside, as another process would; the rows that it gives."""

    def run(connection: Connection) -> list[tuple[Any, ...]]:
        result = connection.execute(text(statement), values)
        return [tuple(row) for row in result] if result.returns_rows else []

    return change(file, run)


def change(file: Path, function: Callable[[Connection], T]) -> T:
    """Call a function with a connection, in a transaction; what it gives."""

    async def run() -> T:
        database = Database(database_at(file))
        try:
            async with database.transaction() as connection:
                return await connection.run_sync(function)
        finally:
            await database.close()

    return _in_another_thread(run())


@functools.cache
def _database_for(_file: Path) -> str:
    """A schema of a role of its own: as good as a database of its own, which takes the server 50 ms more."""
    server, role = _server(), f"r{uuid.uuid4().hex}"

    async def create() -> None:
        connection = await asyncpg.connect(server)
        try:
            await connection.execute(f"CREATE ROLE {role} LOGIN; CREATE SCHEMA AUTHORIZATION {role}")
        finally:
            await connection.close()

    _in_another_thread(create())
    return server.replace("tests@", f"{role}@")


@functools.cache
def _server() -> str:
    programs = find_programs()
    if programs is None:
        raise RuntimeError("PostgreSQL is not installed (on Debian: apt-get install postgresql)")
    running = contextlib.ExitStack()
    host = running.enter_context(open_postgresql(programs))
    atexit.register(running.close)
    return create_database(programs, host, "tests")


def _in_another_thread(work: Coroutine[Any, Any, T]) -> T:
    """This one may have an event loop."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(asyncio.run, work).result()
