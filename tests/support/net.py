"""Free ports, and waiting until something is there."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, overload

T = TypeVar("T")


def free_port() -> int:
    """A TCP port of loopback that nothing listens on.

    It lies below the range from which the system takes the ports of outgoing connections, and that of stacks on free
    ports, so that none of those gets it before its user does.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 20_000)
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
