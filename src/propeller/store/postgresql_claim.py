"""The claim to a PostgreSQL server's database: two advisory locks, one of a connection that does nothing else, one of all others.

A process that lost the first one may live on for a while (it was stopped, the network was cut). So each connection that writes holds the
second lock, shared, and is opened only while the process has the first one; the next owner ends the connections that hold the second,
and has that alone for a moment before it begins (decision 0215).
"""

import asyncio
import contextlib
import os
import platform
import time
import zlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NoReturn

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from propeller.errors import StartError
from propeller.process.logs import get_logger

if TYPE_CHECKING:
    from propeller.store.postgresql import Postgresql

log = get_logger("store")

PROOF_S = 1.0
"""From one proof of the owner that it is there to the next, in seconds."""

ANSWER_S = 3.0
"""How long the server may take to answer one, in seconds; then the owner ends."""

SILENCE_S = 6.0
"""After how many seconds without one a standby ends the owner's connection: longer than an owner that runs goes on without an answer."""

CONNECT_S = 5.0
"""How long opening the connection may take, in seconds."""

_CLEAR_POLL_S = 0.05
_MAX_APPLICATION_NAME = 63

_CLASS = int.from_bytes(b"PROP")
"""The first half of the keys: advisory locks of others in the same database have another one."""

_PREPARE = """
SELECT set_config('application_name', $1, false), set_config('tcp_keepalives_idle', '5', false),
       set_config('tcp_keepalives_interval', '1', false), set_config('tcp_keepalives_count', '3', false)
"""
# The locks are of one backend of the server: its number, and when it began, as numbers come again.
_WHO_AM_I = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_HOLDERS = """
SELECT held.pid, activity.backend_start, activity.application_name, activity.state_change
FROM pg_locks held JOIN pg_database base ON base.oid = held.database LEFT JOIN pg_stat_activity activity ON activity.pid = held.pid
WHERE base.datname = current_database() AND held.locktype = 'advisory' AND held.granted
  AND held.classid = $1::int4::oid AND held.objid = $2::int4::oid AND held.objsubid = 2
"""
_TRY = "SELECT pg_try_advisory_lock($1::int4, $2::int4)"
_TRY_SHARED = "SELECT pg_try_advisory_lock_shared($1::int4, $2::int4)"
_UNLOCK = "SELECT pg_advisory_unlock($1::int4, $2::int4)"
_END_ALL = f"SELECT pg_terminate_backend(pid) FROM ({_HOLDERS}) AS holder"  # noqa: S608 - of constants alone
_END_SILENT = f"{_END_ALL} WHERE pid = $3 AND backend_start = $4 AND state_change = $5"

_ERRORS = (DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class PostgresqlClaim:
    """The claim of one process; it needs a connection of its own, to the server itself or a pool that keeps it for it."""

    def __init__(self, server: "Postgresql", name: str, service: str) -> None:
        """``name`` is the database's, for errors; ``service`` whose it is."""
        self.owner = ""
        self._server, self._name, self._service = server, name, service
        self._connection: AsyncConnection | None = None
        self._driver: Any = None
        self._identity: tuple[Any, ...] = ()
        self._owner_key = self._writers_key = (_CLASS, 0)
        self._last_sign: tuple[Any, ...] = ()
        self._last_sign_at = 0.0

    async def take(self) -> bool:
        """See ``Claim``."""
        try:
            if self._driver is None:
                await self._open()
            if not await self._ask(_TRY, *self._owner_key):
                await self._watch_owner()
                return False
            await self._clear()
        except asyncpg.InsufficientPrivilegeError:
            await self.close()
            raise StartError(
                f"the {self._service}'s database {self._name} has connections of another role, which cannot be ended: "
                "use the same role for every process of a service"
            ) from None
        except _ERRORS as error:
            await self.close()
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise StartError(
                f"cannot open the database {self._name}: {reason or 'the server does not answer'}"
            ) from error
        self._server.admit = self._admit
        return True

    @contextlib.asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        """See ``Claim``."""
        proving = asyncio.create_task(self._prove())
        try:
            yield
        finally:
            proving.cancel()
            await asyncio.gather(proving, return_exceptions=True)

    async def close(self) -> None:
        """See ``Claim``."""
        connection, self._connection, self._driver = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(*_ERRORS):
                async with asyncio.timeout(ANSWER_S):
                    await connection.close()

    async def _open(self) -> None:
        self._connection = await self._server.connect_alone(CONNECT_S)
        self._driver = (await self._connection.get_raw_connection()).driver_connection
        # Schemas of one database are databases of their own, which a role may have.
        schema = await self._ask("SELECT current_schema()")
        self._owner_key = _key(schema, self._service, "owner")
        self._writers_key = _key(schema, self._service, "writers")
        name = f"propeller {self._service}, process {os.getpid()} on {platform.node()}"
        await self._ask(_PREPARE, name.encode()[:_MAX_APPLICATION_NAME].decode(errors="ignore"))
        self._identity = tuple(await self._driver.fetchrow(_WHO_AM_I, timeout=ANSWER_S))

    async def _ask(self, statement: str, *values: object) -> Any:
        return await self._driver.fetchval(statement, *values, timeout=ANSWER_S)

    async def _watch_owner(self) -> None:
        """Note who the owner is, and end its connection if it gives no sign of life: it was stopped, or cannot reach the server.

        What its server says of its last statement is compared with what it said before, by this process's clock: no clock is
        believed that may be set.
        """
        held = await self._driver.fetchrow(_HOLDERS, *self._owner_key, timeout=ANSWER_S)
        if held is None:  # it is gone meanwhile
            return
        self.owner = held["application_name"] or f"PostgreSQL's backend {held['pid']}"
        sign, moment = tuple(held), time.monotonic()
        is_recorded = held["state_change"] is not None
        if sign != self._last_sign or not is_recorded:
            self._last_sign, self._last_sign_at = sign, moment
        elif moment - self._last_sign_at > SILENCE_S:
            log.warning("the owner is silent: its connection is ended", database=self._name, owner=self.owner)
            silent = held["pid"], held["backend_start"], held["state_change"]  # if it still is
            await self._ask(_END_SILENT, *self._owner_key, *silent)

    async def _clear(self) -> None:
        """End the connections of owners before this one, and see that there are none."""
        while not await self._ask(_TRY, *self._writers_key):
            await self._driver.fetch(_END_ALL, *self._writers_key, timeout=ANSWER_S)
            await asyncio.sleep(_CLEAR_POLL_S)
        await self._ask(_UNLOCK, *self._writers_key)

    async def _admit(self, connection: Any) -> None:
        """Let a new connection of this process read and write, if this process is the owner still."""
        # In this order: a next owner looks for this lock after it has the other one.
        if not await connection.fetchval(_TRY_SHARED, *self._writers_key, timeout=ANSWER_S):
            self._end_process("another process is about to own it")
        held = await connection.fetchrow(_HOLDERS, *self._owner_key, timeout=ANSWER_S)
        if held is None or tuple(held)[: len(self._identity)] != self._identity:
            self._end_process("the lock is not this process's any more")

    async def _prove(self) -> None:
        while True:
            await asyncio.sleep(PROOF_S)
            try:
                held = await self._driver.fetchrow(_HOLDERS, *self._owner_key, timeout=ANSWER_S)
            except _ERRORS as error:
                reason = "the server does not answer" if isinstance(error, TimeoutError) else error
                self._end_process(f"the lock cannot be asked for: {reason}")
            if held is None or tuple(held)[: len(self._identity)] != self._identity:
                self._end_process("the lock is not this process's any more")

    def _end_process(self, reason: str) -> NoReturn:
        """At once: what runs here believes that it owns the database, and acts on it."""
        log.error(
            "this process does not own its database any more, and ends", database=self._name, reason=reason
        )
        os._exit(1)


def _key(schema: str | None, service: str, what: str) -> tuple[int, int]:
    """A lock's two numbers of 31 bits: PostgreSQL takes them signed and shows them unsigned."""
    return _CLASS, zlib.crc32(f"{schema} {service} {what}".encode()) & 0x7FFF_FFFF
