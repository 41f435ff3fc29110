"""The versions of a service's tables: brought to the newest one when the service starts.

A service has a package of migrations beside its tables: modules ``NNNN_what_it_does.py`` of alembic, one after the other, whose
number is the revision. Its database keeps the revision that it is at. How to add a migration:
docs/decisions/0045-schema-migrations.md.
"""

import re
import zlib
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

from sqlalchemy import Column, Connection, MetaData, String, Table, insert, inspect, select
from sqlalchemy.exc import DBAPIError

from propeller.errors import StartError
from propeller.process.logs import get_logger
from propeller.store.database import RESTORE, Database

log = get_logger("store")

_MODULE = re.compile(r"([0-9]{4})_\w+\.py")


@dataclass(frozen=True)
class Schema:
    """The tables of a service and the migrations that lead to them.

    Attributes:
        service: its name, for errors and for the table that keeps the revision.
        tables: what the newest revision has.
        migrations: the package of the migrations, as ``propeller.manager.migrations``.
    """

    service: str
    tables: MetaData
    migrations: str

    @cached_property
    def revisions(self) -> list[str]:
        """Every revision that this version of Propeller knows, the newest last."""
        names = (entry.name for entry in resources.files(self.migrations).iterdir())
        return sorted(match[1] for name in names if (match := _MODULE.fullmatch(name)))

    @cached_property
    def version_table(self) -> Table:
        """Where the database keeps its revision, in alembic's form; each service has its own, as two may share a database."""
        revision = Column("version_num", String(32), primary_key=True)
        return Table(f"alembic_version_{self.service}", MetaData(), revision)

    def read_revision(self, connection: Connection) -> str | None:
        """The revision that a database is at; ``None`` where there are no tables, or those of before there were revisions."""
        if not inspect(connection).has_table(self.version_table.name):
            return None
        return connection.execute(select(self.version_table.c.version_num)).scalar()


async def migrate(database: Database, schema: Schema) -> None:
    """Make a service's tables, or bring them to the newest revision; of several processes one does it, the others wait.

    It is one transaction: if it fails, the database is as it was.

    Raises:
        StartError: the database cannot be opened, is damaged, or a newer version of Propeller has changed it.
    """
    try:
        async with database.read() as connection:
            is_newest = await connection.run_sync(schema.read_revision) == schema.revisions[-1]
        if is_newest:
            await database.check()
            return
        async with database.migration(lock=zlib.crc32(f"propeller {schema.service}".encode())) as connection:
            await connection.run_sync(_migrate, schema, str(database))
        await database.check()
    except (DBAPIError, OSError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise StartError(f"cannot open the database {database}: {reason}{_remedy(reason)}") from error


def _remedy(reason: object) -> str:
    """What to do about a file that is damaged."""
    is_damaged = any(text in str(reason) for text in ("file is not a database", "malformed", "corrupt"))
    return f"; {RESTORE}" if is_damaged else ""


def _migrate(connection: Connection, schema: Schema, database: str) -> None:
    revision, newest = schema.read_revision(connection), schema.revisions[-1]
    if revision == newest:  # another process has done it meanwhile
        return
    if revision is not None and revision not in schema.revisions:
        raise StartError(
            f"the {schema.service}'s tables in the database {database} have revision {revision}, and this version of Propeller "
            f"knows them up to {newest}: install the version that was used last, or restore a backup of before it"
        )
    if revision is None and not set(inspect(connection).get_table_names()) & set(schema.tables.tables):
        # A new database needs no history, and alembic would stay in memory (11 MB) for the life of the process.
        schema.tables.create_all(connection)
        schema.version_table.create(connection)
        connection.execute(insert(schema.version_table), {"version_num": newest})
        return
    try:
        run_migrations(connection, schema)
    except DBAPIError as error:
        raise StartError(
            f"the {schema.service}'s tables in the database {database} cannot be brought to revision {newest}, "
            f"and are as they were: {error.orig}"
        ) from error
    log.info("tables brought to a new revision", database=database, before=revision or "none", after=newest)


def run_migrations(connection: Connection, schema: Schema) -> None:
    """Run every migration after the revision that a database is at; the caller commits."""
    from alembic import command  # 80 ms and 11 MB that a usual start does without
    from alembic.config import Config

    package, _, folder = schema.migrations.rpartition(".")
    config = Config()
    config.set_main_option("script_location", "propeller.store:alembic")
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", f"{package}:{folder}")
    config.attributes.update(connection=connection, version_table=schema.version_table.name)
    command.upgrade(config, "head")


def create_missing(connection: Connection, tables: MetaData) -> None:
    """Create the tables, nullable columns and indexes that a database lacks which an earlier version of ``tables`` made.

    Raises:
        StartError: a column that may not be NULL is missing: these are not the tables of that service.
    """
    tables.create_all(connection)
    found = inspect(connection)
    names = connection.dialect.identifier_preparer
    for table in tables.sorted_tables:
        present = {column["name"] for column in found.get_columns(table.name)}
        for column in table.columns:
            if column.name in present:
                continue
            if not column.nullable:
                raise StartError(
                    f"the table {table.name} in the database has no column {column.name}: "
                    "is this the database of another service?"
                )
            definition = f"{names.quote(column.name)} {column.type.compile(connection.dialect)}"
            connection.exec_driver_sql(f"ALTER TABLE {names.format_table(table)} ADD COLUMN {definition}")
        for index in table.indexes:
            index.create(connection, checkfirst=True)
