"""How long a simulated device takes for a task, and whether it drops out: drawn anew for each client and round, by a seed."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from propeller.errors import InvalidError

Kind = Literal["constant", "uniform", "exponential", "lognormal"]

_PARAMETERS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "uniform": ("low", "high"),
    "exponential": ("mean",),
    "lognormal": ("median", "sigma"),
}
"""The distributions and their parameters."""


@dataclass(frozen=True)
class Distribution:
    """A distribution of numbers of 0 or more.

    ``constant`` has ``value``; ``uniform`` is between ``low`` and ``high``; ``exponential`` has ``mean``; ``lognormal`` is
    ``median · exp(sigma · z)``, ``z`` from the standard normal distribution.
    """

    kind: str
    parameters: tuple[float, ...]

    @classmethod
    def decode(cls, value: Any, where: str) -> "Distribution":
        """A number, or an object such as ``{"distribution": "lognormal", "median": 10, "sigma": 1}``.

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
        kind = fields.pop("distribution", None)
        if kind not in _PARAMETERS:
            raise InvalidError(f"{where}.distribution: {kind!r:.80} is none of {', '.join(_PARAMETERS)}")
        names = _PARAMETERS[kind]
        if set(fields) != set(names):
            raise InvalidError(
                f"{where}: {kind} has {' and '.join(names)}, this one {', '.join(fields) or 'nothing'}"
            )
        numbers = tuple(_number(fields[name], f"{where}.{name}") for name in names)
        if kind == "uniform" and numbers[0] > numbers[1]:
            raise InvalidError(f"{where}: low is {numbers[0]:g}, above high, which is {numbers[1]:g}")
        return cls(kind, numbers)

    def draw(self, source: np.random.Generator) -> float:
        """One number."""
        first, last = self.parameters[0], self.parameters[-1]
        match self.kind:
            case "uniform":
                return float(source.uniform(first, last))
            case "exponential":
                return float(source.exponential(first))
            case "lognormal":
                return float(first * math.exp(last * source.standard_normal()))
            case _:
                return first


@dataclass(frozen=True)
class Draws:
    """What a device does with a task: after how many seconds it is done, and whether it drops out instead."""

    seconds: float
    drops_out: bool


@dataclass(frozen=True)
class VirtualDevices:
    """Devices by their distributions.

    Attributes:
        seconds: of a task's computation.
        bytes_per_s: of a device's connection, each way; ``None``: what is sent takes no time.
        drop_out: the part of tasks in which the device drops out.
        seed: of everything that is drawn.
    """

    seconds: Distribution = field(default_factory=lambda: Distribution("constant", (1.0,)))
    bytes_per_s: Distribution | None = None
    drop_out: float = 0.0
    seed: int = 0

    def draw(self, client: int, task: int, sent_bytes: int) -> Draws:
        """What a device does with a task.

        Args:
            client: the device.
            task: a number of the round that tells it from others of the experiment.
            sent_bytes: model and update together.
        """
        source = np.random.default_rng([self.seed, client, task])
        drops_out = bool(source.random() < self.drop_out)
        seconds = self.seconds.draw(source)
        if self.bytes_per_s is not None:
            seconds += sent_bytes / max(self.bytes_per_s.draw(source), 1e-9)
        return Draws(seconds, drops_out)


def _number(value: Any, where: str) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and value >= 0)
    ):
        raise InvalidError(f"{where}: {value!r:.80} is not a number of 0 or more")
    return float(value)
