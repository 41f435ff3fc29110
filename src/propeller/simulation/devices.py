"""How long a simulated device takes for a task, and whether it drops out: by distributions and a seed, or by a recorded trace."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from propeller.simulation.availability import Availability
from propeller.simulation.device_trace import DeviceTrace
from propeller.simulation.distributions import LARGEST, ONE, Distribution
from propeller.simulation.repeatable_draws import RepeatableDraws

LIVENESS_WINDOW_S = 30.0
"""After how many seconds without a word from it a fleet takes a device for gone, as fleets have it by default."""

_SMALLEST_SPEED = 1e-9


class _Stream(IntEnum):
    """What a stream of random numbers is for. Each has its own, so that one more distribution changes nothing else."""

    DROP_OUT = 0
    SECONDS = 1
    SECONDS_PER_SAMPLE = 2
    BYTES_PER_S = 3


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
        availability: when devices are there; ``None``: always.
    """

    seconds: Distribution = ONE
    seconds_per_sample: Distribution | None = None
    bytes_per_s: Distribution | None = None
    drop_out: DropOut = DropOut()
    seed: int = 0
    trace: DeviceTrace | None = None
    availability: Availability | None = None

    def draw(
        self, client: int, task: int, sent_bytes: int, samples: Callable[[int], int], now: float = 0.0
    ) -> Draws:
        """What a device does with a task.

        Args:
            client: the device, from 0.
            task: how many tasks it has had before.
            sent_bytes: model and update together.
            samples: how many samples a client has; asked if it matters.
            now: when it begins, in seconds.
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
            seconds *= silent_at
        if self.availability is not None:
            left = self.availability.ends(client, now) - now
            if left < seconds:
                seconds, drops_out = left, True
        if drops_out:
            seconds += self.drop_out.noticed_after_s
        return Draws(min(seconds, LARGEST), bool(drops_out))

    def _draw(self, distribution: Distribution, stream: _Stream, client: int, task: int) -> float:
        # The number of a task begins at 1 here: 0 is the client itself.
        when = 0 if distribution.by_client else task + 1
        return distribution.draw(lambda: self._stream(stream, client, when))

    def _stream(self, stream: _Stream, client: int, task: int) -> RepeatableDraws:
        # The seed stands last, as it may have two words: the others have one each, so no two of these mean the same.
        return RepeatableDraws(stream, client, task, self.seed)
