"""Reading texts that others have sent: long ones in a thread, so that others are answered meanwhile."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

THREAD_FROM_BYTES = 64 * 1024
"""Reading a shorter text takes some milliseconds at most, and a thread would take as long."""


async def decode(read: Callable[[bytes], T], text: bytes) -> T:
    """What ``read`` makes of a text; a long one is read in a thread.

    Raises:
        Exception: as ``read`` does.
    """
    if len(text) <= THREAD_FROM_BYTES:
        return read(text)
    return await decode_in_thread(read, text)


async def decode_in_thread(read: Callable[[bytes], T], text: bytes) -> T:
    """What ``read`` makes of a text, in a thread however short it is: it may be long without its content coding.

    Raises:
        Exception: as ``read`` does.
    """
    return await asyncio.to_thread(_read_without_collector, read, text)


def _read_without_collector(read: Callable[[bytes], T], text: bytes) -> T:
    with _paused.collector():
        return read(text)


class _Paused:
    """The garbage collector, off while long texts are read: it would look through a hundred thousand new values again and again, for
    cycles that they cannot have, and nobody else runs meanwhile.
    """

    def __init__(self) -> None:
        self._lock, self._readers = threading.Lock(), 0

    @contextlib.contextmanager
    def collector(self) -> Iterator[None]:
        with self._lock:
            self._readers += 1
            gc.disable()
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if not self._readers:
                    gc.enable()


_paused = _Paused()
