"""Free ports, and waiting until something is there, or gone."""

import asyncio
import contextlib
import itertools
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, overload

import psutil

T = TypeVar("T")


_FIRST, _COUNT = 10_000, 10_000
"""Below the range from which the system takes the ports of outgoing connections, and that of stacks on free ports."""

_given = itertools.count(random.SystemRandom().randrange(_COUNT))


def free_port() -> int:
    """A TCP port of loopback that nothing listens on, and that this run of tests gave to nobody else.

    Each worker of a run has ports of its own, and gives none twice before it gave them all: a port is free until its user comes.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = _FIRST + (next(_given) * workers + worker) % (_COUNT - _COUNT % workers)
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
