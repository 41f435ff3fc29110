"""Locks between the processes of a machine: ``flock(2)`` on a file or a folder.

The system takes a lock back from a process that ends, however it ends. The lock belongs to the open file: children that
inherit the descriptor hold it too, and every open of the same file in one process is another holder.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_POLL_S = 0.01
"""Between checks of a lock that another process holds, where the wait is bounded: nothing announces its release."""


class LockedError(Exception):
    """Another holder has the lock."""


class FileLock:
    """An exclusive lock; as a context manager it waits for as long as it takes."""

    def __init__(self, path: Path, *, folder: bool = False) -> None:
        """``path`` is a folder that exists, or a file, which is made (for its owner only) if it is missing.

        With ``folder`` it must be a folder and no link: else FileNotFoundError or NotADirectoryError is raised at ``acquire``.
        """
        self._path = path
        self._folder = folder
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """The open file while it is locked: to read what its holder wrote into it, or to hand on to a child."""
        if self._descriptor is None:
            raise RuntimeError(f"{self._path} is not locked")
        return self._descriptor

    @property
    def held(self) -> bool:
        """Whether this object has the lock."""
        return self._descriptor is not None

    def acquire(self, wait_s: float = float("inf")) -> None:
        """Take the lock.

        Args:
            wait_s: seconds to wait for another holder at the most; 0 does not wait.

        Raises:
            LockedError: another holder still has it.
            OSError: the file cannot be opened, or its file system has no locks.
        """
        with self._opened() as descriptor:
            if wait_s == float("inf"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                return
            end = time.monotonic() + wait_s
            while not self._try(descriptor, end):
                time.sleep(_POLL_S)

    async def acquire_async(self, wait_s: float = float("inf")) -> None:
        """Take the lock as ``acquire`` does, without holding up the event loop."""
        with self._opened() as descriptor:
            end = time.monotonic() + wait_s
            while not self._try(descriptor, end):  # noqa: ASYNC110 - see _POLL_S
                await asyncio.sleep(_POLL_S)

    def release(self) -> None:
        """Let go, once; again, it does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.release()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The open file, kept as the locked one if the block ends without an error."""
        if self._folder:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        elif self._path.is_dir():
            descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _try(self, descriptor: int, end: float) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise LockedError(f"{self._path} is locked by another process") from None
            return False
        return True


def read_holder(path: Path) -> str | None:
    """What the holder of a lock wrote into its file, for people; ``None`` if nobody holds it.

    Whoever wants the lock at this moment may find it taken.
    """
    asked = FileLock(path)
    try:
        asked.acquire(0)
    except LockedError:
        return read_text(path)
    except OSError:
        return None
    asked.release()
    return None


def read_text(path: Path) -> str:
    """What is in the file of a lock; ``unknown`` if that is nothing, or cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text() or "unknown"
    return "unknown"
