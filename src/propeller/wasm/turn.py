"""Turns among the processes of a machine that share a folder: what one makes, the others need not make too."""

import asyncio
import contextlib
import errno
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

_LOOK_EVERY_S = 0.01


@contextlib.asynccontextmanager
async def turn(path: Path, wait_s: float = float("inf")) -> AsyncIterator[bool]:
    """Hold the lock of a file, which is made if it is missing; gives whether it is held.

    The system takes the lock back from a process that ends, whatever way it ends. A file system without locks, or a
    file that cannot be opened, gives none: whoever asks then goes on without, and at worst something is made twice.

    Args:
        path: the file.
        wait_s: seconds after which the block is entered without the lock.
    """
    held = False
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield False
        return
    try:
        held = await _lock(fd, wait_s)
        yield held
    finally:
        os.close(fd)


async def _lock(fd: int, wait_s: float) -> bool:
    loop = asyncio.get_running_loop()
    end = loop.time() + wait_s
    while True:
        with contextlib.suppress(BlockingIOError):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}:
                    return False
                raise
            return True
        if loop.time() >= end:
            return False
        await asyncio.sleep(_LOOK_EVERY_S)  # nothing tells when another process lets go
