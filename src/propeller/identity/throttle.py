"""Slows down whoever guesses passwords."""

import time
from collections.abc import Callable

FAILURES = 5
"""So many failed logins in a row are free."""

PAUSE_S = 30.0
"""How long the next one must wait after that, in seconds."""

_MOST_KEPT = 10_000


class Throttle:
    """Counts failures by key (a user name and the address it comes from, so that no one can lock another out)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[tuple[str, str], tuple[int, float]] = {}

    def wait_s(self, key: tuple[str, str]) -> float:
        """Seconds until the key may try again; 0 if now."""
        count, last = self._failures.get(key, (0, 0.0))
        return max(0.0, last + PAUSE_S - self._clock()) if count >= FAILURES else 0.0

    def failed(self, key: tuple[str, str]) -> None:
        """Note a failure."""
        count, last = self._failures.pop(key, (0, 0.0))
        if self._clock() - last > PAUSE_S:
            count = 0
        self._failures[key] = (count + 1, self._clock())
        if len(self._failures) > _MOST_KEPT:
            del self._failures[next(iter(self._failures))]  # the one that failed longest ago

    def succeeded(self, key: tuple[str, str]) -> None:
        """Forget the key's failures."""
        self._failures.pop(key, None)
