"""One owner for one database: of the processes of a service that are given the same one, one works and the others wait (decision 0215).

A service keeps in memory what its database says. Two of them would start tasks twice and count what the other does not know of.
"""

import asyncio
import contextlib
import os
import platform
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from propeller.errors import StartError
from propeller.process.file_lock import FileLock, LockedError, read_text
from propeller.process.logs import get_logger
from propeller.store.database import Database
from propeller.store.sqlite import SqliteFile

log = get_logger("store")

POLL_S = 0.25
"""How often a standby asks whether the owner is gone, in seconds."""

SAY_AGAIN_S = 600.0
"""How often a standby says that it waits, in seconds, if nothing else changes."""


class Claim(Protocol):
    """What one process does to be the owner of a database.

    Attributes:
        owner: who was found to be it when ``take`` last failed, for people.
    """

    owner: str

    async def take(self) -> bool:
        """Become the owner; ``False`` if another process is it.

        Raises:
            StartError: that cannot be found out; the text says what to do.
        """

    def holding(self) -> AbstractAsyncContextManager[None]:
        """Stay the owner for the length of the block. The process ends at once where that cannot be."""

    async def close(self) -> None:
        """Let the next one in."""


@contextlib.asynccontextmanager
async def owned(url: str, service: str, stop: asyncio.Event) -> AsyncIterator[Database | None]:
    """The database of a service, once this process is its owner, and for the length of the block.

    Called before the service listens, subscribes or reads anything: until the other processes that were given this database are
    gone, it is a standby, which does nothing but wait.

    Args:
        url: as ``Database`` takes it.
        service: whose database it is: several services may share one.
        stop: ends the waiting.

    Yields:
        ``None`` if ``stop`` was set while it waited.

    Raises:
        StartError: the URL is not one, or the database cannot be reached or locked.
    """
    async with contextlib.AsyncExitStack() as stack:
        database = Database(url)
        claim = _create_claim(database, service)
        stack.push_async_callback(claim.close)
        if not await _wait(claim, database, stop):
            yield None
            return
        await stack.enter_async_context(claim.holding())
        stack.push_async_callback(database.close)  # before the next owner is let in
        yield database


def _create_claim(database: Database, service: str) -> Claim:
    if isinstance(database.backend, SqliteFile):
        return FileClaim(database.backend.file, service)
    from propeller.store.postgresql_claim import PostgresqlClaim  # as it needs the driver

    return PostgresqlClaim(database.backend, str(database), service)


async def _wait(claim: Claim, database: Database, stop: asyncio.Event) -> bool:
    """Whether this process has become the owner; ``False`` if it was stopped before."""
    waiting = asyncio.create_task(_until_taken(claim, str(database)))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([waiting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            return False
        await waiting
        return True
    finally:
        waiting.cancel()
        stopping.cancel()
        await asyncio.gather(waiting, stopping, return_exceptions=True)


async def _until_taken(claim: Claim, database: str) -> None:
    if await claim.take():
        return
    begun = time.monotonic()
    said, said_at, trouble = "", 0.0, ""
    while True:
        now = trouble or claim.owner
        if now != said or time.monotonic() - said_at > SAY_AGAIN_S:
            said, said_at = now, time.monotonic()
            if trouble:
                log.warning("standby: cannot ask for the database, and tries again", reason=trouble)
            else:
                log.warning("standby: another process owns the database", database=database, owner=said)
        await asyncio.sleep(POLL_S)
        trouble = ""
        try:
            if await claim.take():
                break
        except StartError as error:  # the server is away for a while: what a standby is for
            trouble = str(error)
    log.info(
        "the standby takes over the database",
        database=database,
        waited_s=round(time.monotonic() - begun, 3),
    )


class FileClaim:
    """The claim to a SQLite file: ``flock`` on a file beside it, which the system takes back from a process however it ends.

    Not on the database itself: SQLite locks ranges of that one, and who closes it would drop the lock.
    """

    def __init__(self, file: Path, service: str) -> None:
        """``file`` is the database's, which need not exist; its folder does."""
        self.owner = ""
        # A link and what it points to are one database.
        self._path = Path(f"{file.resolve()}.{service}.lock")
        self._lock = FileLock(self._path)

    async def take(self) -> bool:
        """See ``Claim``."""
        try:
            self._lock.acquire(0)
        except LockedError:
            self.owner = self._read_owner()
            return False
        except OSError as error:
            raise StartError(
                f"cannot lock {self._path}: {error.strerror}; the database's folder must be one that this user may write to, "
                "on a file system with locks"
            ) from None
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        said = f"process {os.getpid()} on {platform.node()}, since {since}"
        with contextlib.suppress(OSError):  # for people alone: a full disk keeps nobody from reading
            os.ftruncate(self._lock.descriptor, 0)
            os.pwrite(self._lock.descriptor, said.encode(), 0)
        return True

    @contextlib.asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        """See ``Claim``; nothing takes a lock from a process that lives."""
        yield

    async def close(self) -> None:
        """See ``Claim``."""
        self._lock.release()

    def _read_owner(self) -> str:
        return read_text(self._path)
