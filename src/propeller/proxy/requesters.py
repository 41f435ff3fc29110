"""What each proplet asks of the proxy: bounded, so that one alone can keep neither registries nor broker busy.

What is over a bound is dropped and not answered with a failure: a proplet repeats what it hears nothing of, so an honest one is only slowed
down.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import LRUCache

from propeller.process.allowance import Allowance

MAX_OPEN = 64
"""Requests of one proplet that are being answered."""

REQUESTS_BURST_S, BYTES_BURST_S = 30.0, 60.0
"""A full allowance is what a proplet may ask for in so many seconds."""

ALL_COMPAT = 100
"""Those of absmach/propeller, whom the topic does not tell apart, may do together so much more than one that it names."""

_MAX_REMEMBERED = 10_000


@dataclass(frozen=True)
class RequestLimits:
    """What a proplet may ask for, for longer than a moment.

    Attributes:
        requests: a second.
        bytes: of programs, a second.
    """

    requests: float = 10.0
    bytes: float = 16.0 * 1024 * 1024


class _Requester:
    def __init__(self, requests: float, size: float, open_: int, now: float) -> None:
        self.requests = Allowance.full(requests, requests * REQUESTS_BURST_S, now)
        self.bytes = Allowance.full(size, size * BYTES_BURST_S, now)
        self.most_open, self.open = open_, 0


class Requesters:
    """Who asks for programs, and what each may still ask for."""

    def __init__(self, limits: RequestLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` counts seconds."""
        self._limits, self._clock = limits, clock
        self._busy: dict[str | None, _Requester] = {}
        self._idle: LRUCache[str | None, _Requester] = LRUCache(_MAX_REMEMBERED)

    def begin(self, sender: str | None, *, repeated: bool = False) -> str | None:
        """Count a request that is to be answered; ``end`` it. Why it may not be answered, or ``None``.

        Args:
            sender: the proplet, as the topic says; ``None`` for all of absmach/propeller's together.
            repeated: it was counted by an earlier process, so it may be answered in any case.
        """
        one = self._find(sender)
        if not repeated:
            if one.open >= one.most_open:
                return f"{one.open} of its requests are not answered yet"
            if not one.requests.take(1, self._clock()):
                return f"it asks more than {one.requests.rate:g} times a second (PROXY_CLIENT_REQUESTS)"
        one.open += 1
        self._idle.pop(sender, None)
        self._busy[sender] = one
        return None

    def end(self, sender: str | None) -> None:
        """A request that began is over."""
        one = self._busy[sender]
        one.open -= 1
        if one.open == 0:
            self._idle[sender] = self._busy.pop(sender)

    def take_bytes(self, sender: str | None, size: int) -> str | None:
        """Spend the bytes that a request which began asks for; why it may not have them, or ``None``.

        A program that is larger than what is left may be had, and is owed. With 0: whether anything is left.
        """
        one = self._busy[sender]
        if one.bytes.take(size, self._clock()):
            return None
        return f"it asks for more than {one.bytes.rate:g} bytes a second (PROXY_CLIENT_BYTES)"

    def _find(self, sender: str | None) -> _Requester:
        one = self._busy.get(sender) or self._idle.get(sender)
        if one is None:
            times = ALL_COMPAT if sender is None else 1
            limits = self._limits
            one = _Requester(limits.requests * times, limits.bytes * times, MAX_OPEN * times, self._clock())
        return one
