"""Tables get from any earlier version to the newest one, once, whole or not at all, and from a later one never back."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, insert, text

from propeller.coordinator import tables as coordinator
from propeller.errors import StartError
from propeller.identity import tables as identity
from propeller.identity.absences import AbsenceChanges, read_absences, write_absences
from propeller.manager import tables as manager
from propeller.store.database import Database
from propeller.store.migrations import Schema, migrate, run_migrations
from support.net import eventually

SCHEMAS = [identity.SCHEMA, manager.SCHEMA, coordinator.SCHEMA]

ZOO = """
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table
from propeller.store.migrations import Schema

tables = MetaData()
Table("animals", tables, Column("id", Integer, primary_key=True), Column("name", String(40), nullable=False),
      Column("legs", Integer, index=True))
Table("visits", tables, Column("id", Integer, primary_key=True),
      Column("animal", ForeignKey("animals.id", ondelete="CASCADE"), nullable=False))
SCHEMA = Schema("zoo", tables, "zoo.migrations")
"""

FIRST = """
from alembic import op
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table
from propeller.store.migrations import create_missing

revision, down_revision = "0001", None
tables = MetaData()
Table("animals", tables, Column("id", Integer, primary_key=True), Column("name", String(20)),
      Column("legs", Integer, index=True))
Table("visits", tables, Column("id", Integer, primary_key=True),
      Column("animal", ForeignKey("animals.id", ondelete="CASCADE"), nullable=False))

def upgrade():
    create_missing(op.get_bind(), tables)
"""

SECOND = """
from alembic import op
import sqlalchemy as sa

revision, down_revision = "0002", "0001"

def upgrade():
    op.execute("UPDATE animals SET name = 'nameless' WHERE name IS NULL")
    op.execute("INSERT INTO animals (name, legs) VALUES ('once', 0)")
    with op.batch_alter_table("animals") as table:
        table.alter_column("name", type_=sa.String(40), existing_type=sa.String(20), nullable=False)
"""

MIGRATE = "import asyncio, zoo; from propeller.store.database import Database; from propeller.store.migrations import migrate"


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = Database(url)
    yield opened
    await opened.close()


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package of a service with two revisions."""
    folder = tmp_path / "package" / "zoo"
    (folder / "migrations").mkdir(parents=True)
    (folder / "__init__.py").write_text(ZOO)
    (folder / "migrations" / "__init__.py").touch()
    (folder / "migrations" / "0001_first.py").write_text(FIRST)
    (folder / "migrations" / "0002_names.py").write_text(SECOND)
    monkeypatch.syspath_prepend(folder.parent)
    for name in [name for name in sys.modules if name.partition(".")[0] == "zoo"]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def schema_of(_zoo: Path) -> Schema:
    schema = import_module("zoo").SCHEMA
    assert isinstance(schema, Schema)
    return schema


async def execute(database: Database, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements in one transaction; gives the rows of the last one."""
    async with database.transaction() as connection:
        for statement in statements:
            result = await connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


async def make_old_zoo(database: Database) -> None:
    """The zoo's first table, as it was before there were revisions and legs."""
    old = MetaData()
    Table("animals", old, Column("id", Integer, primary_key=True), Column("name", String(20)))
    async with database.transaction() as connection:
        await connection.run_sync(old.create_all)


async def differences(database: Database, schema: Schema) -> list[Any]:
    """What the database has otherwise than the tables of the code."""

    def compare(connection: Connection) -> list[Any]:
        options = {"version_table": schema.version_table.name}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), schema.tables))

    async with database.read() as connection:
        return await connection.run_sync(compare)


async def revision(database: Database, schema: Schema) -> str | None:
    async with database.read() as connection:
        return await connection.run_sync(schema.read_revision)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.service)
async def test_migrations_lead_to_the_tables_of_the_code(database: Database, schema: Schema) -> None:
    async with database.migration(lock=1) as connection:
        await connection.run_sync(run_migrations, schema)
    assert await differences(database, schema) == []
    assert await revision(database, schema) == schema.revisions[-1]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.service)
async def test_a_new_database_has_the_tables_of_the_code(database: Database, schema: Schema) -> None:
    await migrate(database, schema)
    assert await differences(database, schema) == []
    assert await revision(database, schema) == schema.revisions[-1]


async def test_absences_of_clients_can_be_kept_after_the_migration(database: Database) -> None:
    async with database.migration(lock=1) as connection:
        await connection.run_sync(run_migrations, identity.SCHEMA)
    first, then = (
        AbsenceChanges({"a": 1.5, "b": 2.5}),
        AbsenceChanges({"b": 1.7e9 + 0.5}, frozenset({"a", "c"})),
    )
    for changes in (first, first, then):  # it may be written twice
        await write_absences(database, changes)
    assert await read_absences(database) == {"b": 1.7e9 + 0.5}


async def test_services_may_share_a_database(database: Database) -> None:
    await migrate(database, identity.SCHEMA)
    await migrate(database, manager.SCHEMA)
    assert await revision(database, identity.SCHEMA) == identity.SCHEMA.revisions[-1]
    assert await revision(database, manager.SCHEMA) == manager.SCHEMA.revisions[-1]


async def test_a_database_of_before_there_were_revisions_is_brought_up(database: Database) -> None:
    first: MetaData = import_module("propeller.manager.migrations.0001_first").tables
    async with database.transaction() as connection:
        await connection.run_sync(first.create_all)
        row = {"id": "t", "spec": {"name": "a"}, "state": 3, "created_at": 1}
        await connection.execute(insert(manager.tasks).values(row))
    await execute(
        database,
        "ALTER TABLE tasks DROP COLUMN usage",
        "DROP INDEX tasks_by_state",
        "DROP TABLE task_metrics",
    )
    await migrate(database, manager.SCHEMA)
    assert await execute(database, "SELECT id, state, usage FROM tasks") == [("t", 3, None)]
    assert await differences(database, manager.SCHEMA) == []
    assert await revision(database, manager.SCHEMA) == manager.SCHEMA.revisions[-1]


async def test_the_database_of_another_service_is_refused(database: Database) -> None:
    await migrate(database, coordinator.SCHEMA)
    with pytest.raises(
        StartError, match=r"table rounds .* no column skipped: is this the database of another service"
    ):
        await migrate(database, manager.SCHEMA)
    assert await revision(database, manager.SCHEMA) is None


async def test_each_migration_after_the_revision_of_the_database_is_run(
    database: Database, zoo: Path
) -> None:
    schema, second = schema_of(zoo), zoo / "migrations" / "0002_names.py"
    later = second.rename(zoo / "0002_names.py")
    earlier = Schema(schema.service, schema.tables, schema.migrations)
    async with database.migration(lock=1) as connection:
        await connection.run_sync(run_migrations, earlier)
    await execute(
        database,
        "INSERT INTO animals (id, name, legs) VALUES (7, NULL, 4)",
        "INSERT INTO visits (id, animal) VALUES (1, 7)",
    )
    later.rename(second)
    await migrate(database, schema)
    assert await execute(database, "SELECT name, legs FROM animals ORDER BY legs") == [
        ("once", 0),
        ("nameless", 4),
    ]
    # SQLite makes the table anew for this; what refers to its rows must still be there, and be held to it again.
    assert await execute(database, "SELECT animal FROM visits") == [(7,)]
    assert await execute(database, "DELETE FROM animals WHERE id = 7", "SELECT count(*) FROM visits") == [
        (0,)
    ]
    assert await differences(database, schema) == []


async def test_a_migration_that_fails_leaves_everything_as_it_was(database: Database, zoo: Path) -> None:
    schema = schema_of(zoo)
    await make_old_zoo(database)
    third = zoo / "migrations" / "0003_fails.py"
    third.write_text(
        'from alembic import op\nrevision, down_revision = "0003", "0002"\ndef upgrade():\n    op.execute("nonsense")\n'
    )
    with pytest.raises(
        StartError,
        match=r"zoo's tables .* cannot be brought to revision 0003, and are as they were: .*nonsense",
    ):
        await migrate(database, schema)
    assert await execute(database, "SELECT count(*) FROM animals") == [(0,)]
    assert await revision(database, schema) is None
    with pytest.raises(Exception, match="legs"):
        await execute(database, "SELECT legs FROM animals")


async def test_tables_of_a_later_version_are_refused_and_left_alone(database: Database, zoo: Path) -> None:
    schema = schema_of(zoo)
    await migrate(database, schema)
    await execute(database, "UPDATE alembic_version_zoo SET version_num = '0009'")
    with pytest.raises(
        StartError, match=r"zoo's tables .* revision 0009, .* up to 0002: install .* or restore"
    ):
        await migrate(database, schema)
    assert await execute(database, "SELECT version_num FROM alembic_version_zoo") == [("0009",)]


async def test_errors_name_the_database_and_no_password(postgresql: tuple[Path, str], zoo: Path) -> None:
    database = Database(f"postgresql://tests:hunter2@/missing?host={postgresql[1]}")
    with pytest.raises(StartError, match=r"cannot open the database postgresql.*missing") as error:
        await migrate(database, schema_of(zoo))
    await database.close()
    assert "hunter2" not in str(error.value)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"not a database" * 100)
    database = Database(str(path))
    with pytest.raises(
        StartError, match=r"cannot open the database .*a\.db: file is not a database; restore it from"
    ):
        await migrate(database, manager.SCHEMA)
    await database.close()


@pytest.mark.parametrize("damage", ["a page", "the end"])
async def test_a_database_that_is_damaged_is_named_with_the_remedy(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.db"
    database = Database(str(path))
    await migrate(database, manager.SCHEMA)
    await database.close()
    with path.open("r+b") as file:
        if damage == "a page":
            file.seek(3 * 4096)
            file.write(b"\xff" * 4096)
        else:
            file.truncate(5 * 4096)
    database = Database(str(path))
    with pytest.raises(StartError, match=r"a\.db.*; restore it from a backup \(propeller restore\)"):
        await migrate(database, manager.SCHEMA)
    await database.close()


@pytest.mark.parametrize("damaged", [False, True])
async def test_a_large_database_is_looked_through_while_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, damaged: bool
) -> None:
    monkeypatch.setattr("propeller.store.database.MAX_CHECKED_BYTES", 4096)
    monkeypatch.setattr("propeller.store.integrity.BEGIN_AFTER_S", 0.0)
    path = tmp_path / "a b?.db"
    database = Database(str(path))
    await migrate(database, manager.SCHEMA)
    await database.close()
    if damaged:
        with path.open("r+b") as file:
            file.seek(3 * 4096)
            file.write(b"\xff" * 4096)
    database = Database(str(path))
    with structlog.testing.capture_logs() as logs:
        await migrate(database, manager.SCHEMA)  # it starts: nobody waits for a large file
        assert database.health() == {}
        [line] = await eventually(lambda: [line for line in logs if "database" in line["event"]], 30)
    assert line["log_level"] == ("error" if damaged else "info")
    told = database.health().get("database", "")
    assert told.startswith("a b?.db is damaged (") is damaged
    assert (
        told.endswith("restore it from a backup (propeller restore), or move it away to begin anew")
        is damaged
    )
    await database.close()


async def test_a_look_ends_with_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("propeller.store.database.MAX_CHECKED_BYTES", 4096)
    monkeypatch.setattr("propeller.store.integrity.BEGIN_AFTER_S", 0.0)
    monkeypatch.setattr("propeller.store.integrity._LOOK", "import time; time.sleep(600)")
    database = Database(str(tmp_path / "a.db"))
    await migrate(database, manager.SCHEMA)
    [looking] = await eventually(
        lambda: [
            one for one in psutil.Process().children() if "import time; time.sleep(600)" in one.cmdline()
        ]
    )
    await database.close()
    assert not looking.is_running()


@pytest.mark.parametrize("old", [True, False], ids=["old", "new"])
async def test_of_processes_that_start_together_one_migrates(url: str, zoo: Path, *, old: bool) -> None:
    if old:
        database = Database(url)
        await make_old_zoo(database)
        await database.close()
    code = f"{MIGRATE}\nasyncio.run(migrate(Database({url!r}), zoo.SCHEMA))"
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            code,
            env=os.environ | {"PYTHONPATH": str(zoo.parent)},
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(5)
    ]
    errors = [(await process.communicate())[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 5, errors
    database = Database(url)
    assert await revision(database, schema_of(zoo)) == "0002"
    assert await execute(database, "SELECT name FROM animals") == ([("once",)] if old else [])
    await database.close()


async def test_a_usual_start_asks_for_the_revision_alone_and_does_not_import_alembic(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from propeller.manager.tables import SCHEMA
from propeller.store.database import Database
from propeller.store.migrations import migrate

async def start():
    database = Database({str(tmp_path / "d.db")!r})
    await migrate(database, SCHEMA)
    await database.close()

for _ in range(2):
    asyncio.run(start())
print("alembic" in sys.modules)
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert output == b"False\n"
