"""The throttle of logins: against guessing passwords, and against having this service hash them all day.

It locks no one else out: an account is slowed down for addresses from which it has not been used, and an address for accounts that have not
been used from it.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator

from cachetools import TTLCache

from propeller.errors import ThrottledError
from propeller.process.allowance import caller_at

FREE_FAILURES = 5
"""This many failed logins in a row, of one account from one address, cost no wait."""

PAUSE_S = 30.0
"""How long the next one must wait after that, in seconds."""

BURST, PER_S = 20, 1.0
"""Failures of one account from all unknown addresses, or of one address with all unknown accounts, before they are slowed down; to so many a second."""

MAX_AT_ONCE, MAX_AT_ONCE_OF_ADDRESS = 64, 8
"""Logins that wait for a processor, as hashing a password takes one for 50 ms and 64 MiB: of all, and of one address."""

_MAX_CALLERS = 10_000
_KNOWN_S = 30 * 86400.0
Guess = tuple[str, str]
"""An account, and the address that it is used from."""


class LoginThrottle:
    """Counts failures and decides who must wait. Memory is bounded: those longest ago are forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, what: str = "logins") -> None:
        """``what`` is tried, for errors."""
        self._clock, self._what = clock, what
        # How often it failed in a row, and when last; forgotten when it may try again.
        self._failures: TTLCache[Guess, tuple[int, float]] = TTLCache(_MAX_CALLERS, PAUSE_S, clock)
        self._accounts: TTLCache[str, tuple[float, float]] = TTLCache(_MAX_CALLERS, 2 * BURST / PER_S, clock)
        self._addresses: TTLCache[str, tuple[float, float]] = TTLCache(_MAX_CALLERS, 2 * BURST / PER_S, clock)
        self._known: TTLCache[Guess, bool] = TTLCache(_MAX_CALLERS, _KNOWN_S, clock)
        self._at_once: Counter[str] = Counter()

    def wait_s(self, guess: Guess) -> float:
        """Seconds until this account may be tried again from this address; 0 if now."""
        account, address = guess = _normal(guess)
        count, last = self._failures.get(guess, (0, 0.0))
        if count >= FREE_FAILURES:
            return max(0.0, last + PAUSE_S - self._clock())
        if guess in self._known:
            return 0.0
        fullest = max(self._level(self._accounts, account), self._level(self._addresses, address))
        return max(0.0, (fullest - BURST) / PER_S)

    @contextlib.contextmanager
    def trying(self, guess: Guess) -> Iterator[None]:
        """While a password is looked at.

        Raises:
            ThrottledError: it must wait, or too many are at it.
        """
        if wait := self.wait_s(guess):
            raise ThrottledError(f"too many {self._what} failed: try again in {wait:.0f} s", wait)
        guess = _normal(guess)
        address = guess[1]
        crowded = self._at_once[address] >= MAX_AT_ONCE_OF_ADDRESS or self._at_once.total() >= MAX_AT_ONCE
        if crowded and guess not in self._known:
            raise ThrottledError(f"too many {self._what} at once: try again in a second", 1.0)
        self._at_once[address] += 1
        try:
            yield
        finally:
            self._at_once[address] -= 1
            if not self._at_once[address]:
                del self._at_once[address]

    def note_failure(self, guess: Guess) -> None:
        """Count a failed login."""
        account, address = guess = _normal(guess)
        count, _last = self._failures.get(guess, (0, 0.0))
        now = self._clock()
        self._failures[guess] = (count + 1, now)
        if guess not in self._known:
            self._accounts[account] = (self._level(self._accounts, account) + 1, now)
            self._addresses[address] = (self._level(self._addresses, address) + 1, now)

    def note_success(self, guess: Guess) -> None:
        """Forget the failures of this account from this address, which is now known to be its user's."""
        guess = _normal(guess)
        self._failures.pop(guess, None)
        self._known[guess] = True

    def _level(self, levels: "TTLCache[str, tuple[float, float]]", name: str) -> float:
        """How many failures have not leaked away yet."""
        level, at = levels.get(name, (0.0, 0.0))
        return max(0.0, level - (self._clock() - at) * PER_S)


def _normal(guess: Guess) -> Guess:
    account, address = guess
    return account, caller_at(address)
