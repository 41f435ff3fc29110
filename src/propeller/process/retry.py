"""Trying again: one helper for calls that may succeed later, and the waits between reconnects."""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

Failed = Callable[[BaseException, float], None]
"""Called with the error of a try that failed, and the seconds until the next one."""


def doubling(first_s: float, longest_s: float) -> tuple[float, ...]:
    """Delays that double from ``first_s`` up to ``longest_s``, both in seconds."""
    delays = [first_s]
    while delays[-1] < longest_s:
        delays.append(min(2 * delays[-1], longest_s))
    return tuple(delays)


async def retry(
    work: Callable[[], Awaitable[T]],
    *,
    delays: tuple[float, ...],
    on: Callable[[BaseException], bool],
    forever: bool = False,
    timeout_s: float | None = None,
    failed: Failed | None = None,
    spread: bool = False,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """Do ``work`` until it succeeds, and return what it returns.

    Args:
        work: called once a try.
        delays: seconds before the second try, the third one and so on.
        on: whether an error may pass by itself; any other is raised at once.
        forever: go on after the last delay, with that delay; else the error of the last try is raised.
        timeout_s: no new try begins when this many seconds have gone by.
        failed: called after each try that failed and is not the last one.
        spread: wait between half and all of each delay, so that many that failed together do not all try together.
        sleep: waits between tries; one that returns earlier, as when a connection is back, makes the next try earlier.

    Raises:
        Exception: of the last try, as ``work`` raised it.
    """
    begin = time.monotonic()
    for number in itertools.count():
        try:
            return await work()
        except Exception as error:
            is_last = number >= len(delays) and not forever
            delay = delays[min(number, len(delays) - 1)] if delays else 0.0
            delay = spread_out(delay) if spread else delay
            if is_last or not on(error):
                raise
            if timeout_s is not None and time.monotonic() - begin + delay >= timeout_s:
                raise
            if failed is not None:
                failed(error, delay)
        await sleep(delay)
    raise AssertionError("it counts without end")


def spread_out(delay_s: float) -> float:
    """Between half and all of a delay, in seconds."""
    return delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads tries, no secret


class Backoff:
    """The waits before something that ended is started again: longer each time, spread at random."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        """The first wait and the longest, in seconds."""
        self._delays = doubling(first_s, longest_s)
        self._failures = 0

    def reset(self) -> None:
        """It worked: the next wait is the first again."""
        self._failures = 0

    @property
    def delay_s(self) -> float:
        """The next wait before it is spread, in seconds."""
        return self._delays[min(self._failures, len(self._delays) - 1)]

    async def wait(self) -> None:
        """Wait between half and all of the delay, so that many that failed together do not all come back together."""
        delay = self.delay_s
        self._failures += 1
        await asyncio.sleep(spread_out(delay))
