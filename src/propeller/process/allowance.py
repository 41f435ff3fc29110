"""How much somebody may do: so much at once, and again as time passes."""

import contextlib
import ipaddress
from dataclasses import dataclass

_IPV6_NETWORK = 64
"""One subscriber has so many bits of an address: all below are the same caller."""


def caller_at(address: str) -> str:
    """As whom a caller counts that is known by its address alone: of IPv6 its network."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(address).version == 6:
            return str(ipaddress.ip_network(f"{address}/{_IPV6_NETWORK}", strict=False))
    return address


@dataclass
class Allowance:
    """An amount that is spent, and fills up again steadily (a token bucket).

    Attributes:
        rate: what comes back in a second.
        most: what there is when nothing was spent for long.
        at: when ``left`` was right, in seconds of a monotonic clock.
        left: what may be spent; below 0 if more was done than was allowed.
    """

    rate: float
    most: float
    at: float
    left: float = 0.0

    @classmethod
    def full(cls, rate: float, most: float, now: float) -> "Allowance":
        """One that nothing was taken from."""
        return cls(rate, most, now, most)

    def take(self, amount: float, now: float) -> bool:
        """Spend an amount, unless nothing is left; what it is more than was left is owed."""
        self._fill(now)
        if self.left <= 0:
            return False
        self.left -= amount
        return True

    def charge(self, amount: float, now: float) -> bool:
        """Spend what was done already; whether it was allowed."""
        self._fill(now)
        self.left -= amount
        return self.left >= 0

    def _fill(self, now: float) -> None:
        self.left = min(self.most, self.left + max(0.0, now - self.at) * self.rate)
        self.at = now
