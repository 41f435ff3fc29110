"""When simulated devices are there: hours of the day by a distribution and a seed, or as they were recorded.

A device that is away is not chosen; one whose time ends in the middle of a task drops out of it. Moments are virtual time in seconds; each
window's are computed in one way, so that a device is there at the very moment at which it was said to come.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from propeller.simulation.device_trace import read_devices, read_number
from propeller.simulation.distributions import Distribution
from propeller.simulation.repeatable_draws import Floats, RepeatableDraws

_HOUR_S, _DAY_S = 3600.0, 86400.0
_BEGINS, _HOURS = 4, 5
"""Streams of random numbers, after those of ``devices``."""

_NEEDED = {"begins": "the hour at which the device came", "ends": "the hour at which it went"}
"""Columns of a trace."""

_KEPT_DAYS = 4
_MOST_WINDOWS = 400
"""One after the other without a gap, of a device that is then always there."""

Mask = npt.NDArray[np.bool_]


class Availability(ABC):
    """When devices are there."""

    @abstractmethod
    def at(self, now: float, count: int) -> Mask:
        """Which of the first so many devices are there at a moment, shape [count]."""

    @abstractmethod
    def next_begin(self, now: float, count: int) -> float:
        """The first moment after this one at which one of them comes."""

    def ends(self, client: int, now: float) -> float:
        """Until when a device that is there stays; of one that is not, the same moment."""
        at = now
        for _ in range(_MOST_WINDOWS):
            end = max((end for begin, end in self._around(client, at) if begin <= at < end), default=at)
            if end == at:
                return at
            at = end
        return math.inf

    @abstractmethod
    def _around(self, client: int, moment: float) -> Iterator[tuple[float, float]]:
        """The windows of a device that a moment may be in."""


@dataclass(frozen=True)
class DailyHours(Availability):
    """One window a day.

    Attributes:
        begins: the hour of the day.
        hours: how long, at most a day.
        start: the hour of the day at which the experiment begins.
        seed: of what is drawn: for each client and day, or for each client.
    """

    begins: Distribution
    hours: Distribution
    start: float = 0.0
    seed: int = 0
    _days: LRUCache[int, tuple[Floats, Floats]] = field(
        default_factory=lambda: LRUCache(_KEPT_DAYS), compare=False, repr=False
    )

    def at(self, now: float, count: int) -> Mask:
        """As ``Availability.at``."""
        there = np.zeros(count, bool)
        for day in self._recent(now):
            begins, ends = self._windows(day, count)
            there |= (begins <= now) & (now < ends)
        return there

    def next_begin(self, now: float, count: int) -> float:
        """As ``Availability.next_begin``."""
        found = math.inf
        for day in (self._day(now), self._day(now) + 1):
            begins, _ends = self._windows(day, count)
            found = min(found, float(begins[begins > now].min(initial=math.inf)))
        return found

    def _around(self, client: int, moment: float) -> Iterator[tuple[float, float]]:
        for day in self._recent(moment):
            begins, ends = self._windows(day, client + 1)
            yield float(begins[client]), float(ends[client])

    def _day(self, now: float) -> int:
        return math.floor((now + self.start * _HOUR_S) / _DAY_S)

    def _recent(self, now: float) -> tuple[int, int]:
        return self._day(now) - 1, self._day(now)

    def _windows(self, day: int, count: int) -> tuple[Floats, Floats]:
        """When the devices' windows of a day begin and end, each of shape [count]."""
        if day not in self._days or len(self._days[day][0]) < count:
            # A number does not depend on how many are drawn. Days begin at 1 here, as the one before the first counts too; 0 is all days.
            when = day + 2
            begins = self.begins.draws(self._stream(_BEGINS, self.begins, when), count) % 24
            hours = np.minimum(self.hours.draws(self._stream(_HOURS, self.hours, when), count), 24.0)
            first = (day * 24 + begins - self.start) * _HOUR_S
            self._days[day] = first, first + hours * _HOUR_S
        begin, end = self._days[day]
        return begin[:count], end[:count]

    def _stream(self, purpose: int, distribution: Distribution, when: int) -> RepeatableDraws:
        return RepeatableDraws(purpose, 0 if distribution.by_client else when, self.seed)


class RecordedHours(Availability):
    """What was recorded: for each device its windows, in hours from the midnight before the recording.

    Clients replay the devices as of a ``DeviceTrace``. The recording begins again after whole days.
    """

    def __init__(self, devices: Sequence[Sequence[tuple[float, float]]], start: float = 0.0) -> None:
        """``devices`` have a window each at least; ``start`` is the hour of the recording at which the experiment begins."""
        windows = [window for mine in devices for window in mine]
        self._begins, self._ends = np.array(windows, np.float64).T
        self._owners = np.array([at for at, mine in enumerate(devices) for _window in mine], np.int64)
        self._first = np.searchsorted(self._owners, np.arange(len(devices) + 1))
        self._devices, self._start = len(devices), start
        self._period = max(1, math.ceil(float(self._ends.max()) / 24)) * 24.0

    @classmethod
    def read(cls, path: Path, start: float = 0.0) -> "RecordedHours":
        """Read a CSV file with the columns ``client``, ``begins`` and ``ends``, the latter two in hours; a line a window.

        Raises:
            InvalidError: it cannot be read so; the text names the lines.
        """
        return cls(
            read_devices(path, "devices.available.trace", ("client", *_NEEDED), _NEEDED, _decode), start
        )

    def at(self, now: float, count: int) -> Mask:
        """As ``Availability.at``."""
        begins, ends = self._windows(self._turn(now))
        there = np.zeros(self._devices, bool)
        there[self._owners[(begins <= now) & (now < ends)]] = True
        return there[np.arange(count) % self._devices]

    def next_begin(self, now: float, count: int) -> float:
        """As ``Availability.next_begin``."""
        mine = slice(self._first[min(count, self._devices)])
        found = math.inf
        for turn in (self._turn(now), self._turn(now) + 1):
            begins = self._windows(turn)[0][mine]
            found = min(found, float(begins[begins > now].min(initial=math.inf)))
        return found

    def _around(self, client: int, moment: float) -> Iterator[tuple[float, float]]:
        device = client % self._devices
        begins, ends = self._windows(self._turn(moment))
        mine = slice(self._first[device], self._first[device + 1])
        return zip(begins[mine].tolist(), ends[mine].tolist(), strict=True)

    def _turn(self, now: float) -> int:
        """How often the recording was replayed before."""
        return math.floor((now / _HOUR_S + self._start) / self._period)

    def _windows(self, turn: int) -> tuple[Floats, Floats]:
        first = turn * self._period - self._start
        return (first + self._begins) * _HOUR_S, (first + self._ends) * _HOUR_S


def _decode(fields: Mapping[str, str]) -> tuple[float, float]:
    begins, ends = (read_number(fields[name]) for name in ("begins", "ends"))
    if begins is None or ends is None or begins >= ends:
        raise ValueError(
            f"begins is {fields['begins']!r:.40} and ends {fields['ends']!r:.40}: write hours of 0 or more, the second the greater one"
        )
    return begins, ends
