"""Time that nobody sets: the wall clock as it was when the process began, and what has passed since.

Deadlines and liveness are kept by it, so that a wall clock that is set, by a person or by NTP after a start without a battery, makes no device dead and
no round late. It goes on while the machine sleeps, as deadlines do.
"""

import os
import time
from datetime import UTC, datetime

from propeller.process.logs import get_logger

log = get_logger("clock")

TELL_S = 60.0
"""The wall clock was set if it differs by more than this, in seconds."""

_PASSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SteadyClock:
    """Seconds since 1970 by the wall clock of its beginning."""

    def __init__(self) -> None:
        self._offset, self._told = 0.0, 0.0
        self.restart()

    def restart(self) -> None:
        """Begin anew, with the wall clock as it is now."""
        self._offset, self._told = time.time() - time.clock_gettime(_PASSED), 0.0

    def time(self) -> float:
        """Seconds since 1970; later than any time that was given before. A wall clock that was set is told once."""
        found = self._offset + time.clock_gettime(_PASSED)
        difference = time.time() - found
        if abs(difference - self._told) > TELL_S:
            self._told = difference
            log.warning(
                "the wall clock was set; rounds and devices go on by the time of before, which is shown until the next start",
                seconds=round(difference),
            )
        return found


_CLOCK = SteadyClock()
os.register_at_fork(after_in_child=_CLOCK.restart)


def steady_time() -> float:
    """Seconds since 1970 by this process's steady clock."""
    return _CLOCK.time()


def steady_now() -> datetime:
    """This moment by this process's steady clock, in UTC."""
    return datetime.fromtimestamp(steady_time(), UTC)
