"""How long a simulated device takes for a task, and whether it drops out: by distributions and a seed, or by a recorded trace."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from propeller.errors import InvalidError
from propeller.simulation.device_trace import DeviceTrace
from propeller.simulation.repeatable_draws import RepeatableDraws

LIVENESS_WINDOW_S = 30.0
"""After how many seconds without a word from it a fleet takes a device for gone, as fleets have it by default."""

_PARAMETERS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "uniform": ("low", "high"),
    "exponential": ("mean",),
    "lognormal": ("median", "sigma"),
}
"""The distributions and their parameters."""

_CHOICES = ("task", "client")
_LARGEST = 1e10
"""Of anything drawn; in seconds 300 years, which is past every deadline."""

_SMALLEST_SPEED = 1e-9


class _Stream(IntEnum):
    """What a stream of random numbers is for. Each has its own, so that one more distribution changes nothing else."""

    DROP_OUT = 0
    SECONDS = 1
    SECONDS_PER_SAMPLE = 2
    BYTES_PER_S = 3


@dataclass(frozen=True)
class Distribution:
    """A distribution of numbers of 0 or more.

    ``constant`` has ``value``; ``uniform`` is between ``low`` and ``high``; ``exponential`` has ``mean``; ``lognormal`` is
    ``median · exp(sigma · z)``, ``z`` from the standard normal distribution.

    Attributes:
        kind: which of these.
        parameters: in this order.
        by_client: whether a number is drawn once for each client, which is slow or fast by nature; else for each of its tasks.
    """

    kind: str
    parameters: tuple[float, ...]
    by_client: bool = False

    @classmethod
    def decode(cls, value: Any, where: str) -> "Distribution":
        """A number, or an object such as ``{"distribution": "lognormal", "median": 10, "sigma": 1, "by": "client"}``.

        Raises:
            InvalidError: it is none; the text begins with ``where``.
        """
        if isinstance(value, int | float) and not isinstance(value, bool):
            return cls("constant", (_number(value, where),))
        if not isinstance(value, dict):
            raise InvalidError(
                f"{where}: {value!r:.80} is neither a number nor a distribution such as "
                '{"distribution": "lognormal", "median": 10, "sigma": 1}'
            )
        fields = dict(value)
        kind, by = fields.pop("distribution", None), fields.pop("by", "task")
        if kind not in _PARAMETERS:
            raise InvalidError(f"{where}.distribution: {kind!r:.80} is none of {', '.join(_PARAMETERS)}")
        if by not in _CHOICES:
            raise InvalidError(f'{where}.by: {by!r:.80} is neither "task" nor "client"')
        names = _PARAMETERS[kind]
        if set(fields) != set(names):
            raise InvalidError(
                f"{where}: {kind} has {' and '.join(names)}, this one {', '.join(fields) or 'nothing'}"
            )
        numbers = tuple(_number(fields[name], f"{where}.{name}") for name in names)
        if kind == "uniform" and numbers[0] > numbers[1]:
            raise InvalidError(f"{where}: low is {numbers[0]:g}, above high, which is {numbers[1]:g}")
        return cls(kind, numbers, by == "client")

    @property
    def is_zero(self) -> bool:
        """Whether it gives nothing but 0."""
        return (self.parameters[-1] if self.kind == "uniform" else self.parameters[0]) == 0

    def draw(self, source: Callable[[], RepeatableDraws]) -> float:
        """One number; ``source`` gives the stream, if one is needed."""
        first, last = self.parameters[0], self.parameters[-1]
        match self.kind:
            case "uniform":
                found = first + (last - first) * float(source().uniforms(1)[0])
            case "exponential":
                found = -first * math.log(1 - float(source().uniforms(1)[0]))
            case "lognormal":
                exponent = last * float(source().normals(1)[0])
                found = first * math.exp(min(exponent, 300.0))
            case _:
                found = first
        return min(found, _LARGEST)


@dataclass(frozen=True)
class DropOut:
    """Devices that go silent in the middle of a task.

    Attributes:
        part: of tasks in which that happens.
        noticed_after_s: after how many seconds of silence the device counts as gone, and the round as one without it. A deadline that
            comes before closes the round without waiting for this.
    """

    part: float = 0.0
    noticed_after_s: float = LIVENESS_WINDOW_S


@dataclass(frozen=True)
class Draws:
    """What a device does with a task.

    Attributes:
        seconds: until its update is there; of a device that drops out, until it counts as gone.
        drops_out: whether it does.
    """

    seconds: float
    drops_out: bool


@dataclass(frozen=True)
class VirtualDevices:
    """Devices by their distributions, or by a trace.

    What is drawn follows from the seed, the client and how many tasks it has had: not from the order in which clients are asked about. It is
    the same with every version of NumPy; of exponential and lognormal numbers, the last bit may differ between machines.

    Attributes:
        seconds: of a task's computation.
        seconds_per_sample: beside these, for each sample that a client has.
        bytes_per_s: of a device's connection, each way; ``None``: what is sent takes no time.
        drop_out: devices that go silent.
        seed: of everything that is drawn.
        trace: what was recorded, in the place of the distributions; whether devices drop out too, if that was recorded.
    """

    seconds: Distribution = Distribution("constant", (1.0,))
    seconds_per_sample: Distribution | None = None
    bytes_per_s: Distribution | None = None
    drop_out: DropOut = DropOut()
    seed: int = 0
    trace: DeviceTrace | None = None

    def draw(self, client: int, task: int, sent_bytes: int, samples: Callable[[int], int]) -> Draws:
        """What a device does with a task.

        Args:
            client: the device, from 0.
            task: how many tasks it has had before.
            sent_bytes: model and update together.
            samples: how many samples a client has; asked if it matters.
        """
        if self.trace is not None:
            row = self.trace.row(client, task)
            seconds, speed, drops_out = row.seconds, row.bytes_per_s, row.drops_out
        else:
            seconds = self._draw(self.seconds, _Stream.SECONDS, client, task)
            if self.seconds_per_sample is not None:
                a_sample = self._draw(self.seconds_per_sample, _Stream.SECONDS_PER_SAMPLE, client, task)
                seconds += samples(client) * a_sample
            speed, drops_out = None, None
            if self.bytes_per_s is not None:
                speed = self._draw(self.bytes_per_s, _Stream.BYTES_PER_S, client, task)
        if speed is not None:
            seconds += sent_bytes / max(speed, _SMALLEST_SPEED)
        silent_at = 1.0
        if drops_out is None and self.drop_out.part > 0:
            chance = float(self._stream(_Stream.DROP_OUT, client, task).uniforms(1)[0])
            drops_out = chance < self.drop_out.part
            silent_at = chance / self.drop_out.part  # at a moment of the task that is as random as whether
        if drops_out:
            seconds = seconds * silent_at + self.drop_out.noticed_after_s
        return Draws(min(seconds, _LARGEST), bool(drops_out))

    def _draw(self, distribution: Distribution, stream: _Stream, client: int, task: int) -> float:
        # The number of a task begins at 1 here: 0 is the client itself.
        when = 0 if distribution.by_client else task + 1
        return distribution.draw(lambda: self._stream(stream, client, when))

    def _stream(self, stream: _Stream, client: int, task: int) -> RepeatableDraws:
        # The seed stands last, as it may have two words: the others have one each, so no two of these mean the same.
        return RepeatableDraws(stream, client, task, self.seed)


def _number(value: Any, where: str) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (0 <= value <= _LARGEST)  # false of NaN too
    ):
        raise InvalidError(f"{where}: {value!r:.80} is not a number from 0 to {_LARGEST:g}")
    return float(value)
