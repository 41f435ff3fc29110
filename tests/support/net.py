"""Free ports, and waiting until something is there, or gone."""

import asyncio
import contextlib
import fcntl
import functools
import itertools
import os
import random
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar, overload

import psutil

T = TypeVar("T")


_FIRST, _BLOCKS, _BLOCK = 10_000, 20, 500
"""Below the range from which the system takes the ports of outgoing connections, and that of stacks on free ports."""


@functools.cache
def _ports() -> Iterator[int]:
    """The ports of this process: of a block that no other one has, of this run of tests or another, for as long as it lives."""
    folder = Path(tempfile.gettempdir()) / f"propeller-test-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for block in random.SystemRandom().sample(range(_BLOCKS), _BLOCKS):
        held = os.open(folder / str(block), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
        else:  # it stays open
            return itertools.cycle(range(_FIRST + block * _BLOCK, _FIRST + (block + 1) * _BLOCK))
    raise RuntimeError(f"{_BLOCKS} processes that run tests have all ports: let one end")


def free_port() -> int:
    """A TCP port of loopback that nothing listens on, and that no other process that runs tests gives to anybody.

    None is given twice before all were: a port is free until its user comes.
    """
    while True:
        port = next(_ports())
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_port(port: int, timeout: float = 10.0) -> None:
    """Block until something accepts connections on a port."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise TimeoutError(f"nothing listens on port {port}")


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits only for its parent to take note.

    A process closes its files a moment before that: who read the end of its output has to wait for this.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return True


def wait_until(check: Callable[[], T], timeout: float = 10.0, what: str = "") -> T:
    """Call ``check`` until what it returns is true; return that. Blocks."""
    end = time.monotonic() + timeout
    while not (value := check()):
        if time.monotonic() > end:
            raise AssertionError(f"did not happen within {timeout} s: {what or check}")
        time.sleep(0.02)
    return value


@overload
async def eventually(
    check: Callable[[], Coroutine[Any, Any, T]], timeout: float = ..., what: str = ...
) -> T: ...
@overload
async def eventually(check: Callable[[], T], timeout: float = ..., what: str = ...) -> T: ...
async def eventually(check: Callable[[], Any], timeout: float = 10.0, what: str = "") -> Any:
    """Call ``check`` until what it returns is true; return that."""
    end = time.monotonic() + timeout
    while True:
        value = check()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"did not happen within {timeout} s: {what or check}")
        await asyncio.sleep(0.02)
