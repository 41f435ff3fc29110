"""Distributions of numbers, as they are written down, and drawn by a seed."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from propeller.errors import InvalidError
from propeller.simulation.repeatable_draws import Floats, RepeatableDraws

_PARAMETERS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "uniform": ("low", "high"),
    "exponential": ("mean",),
    "lognormal": ("median", "sigma"),
}
"""The distributions and their parameters."""

_CHOICES = ("task", "client")
LARGEST = 1e10
"""Of anything drawn; in seconds 300 years, which is past every deadline."""


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
        return min(found, LARGEST)

    def draws(self, source: RepeatableDraws, count: int) -> Floats:
        """Numbers, shape [count]; those of the first clients do not depend on how many there are."""
        first, last = self.parameters[0], self.parameters[-1]
        match self.kind:
            case "uniform":
                found = first + (last - first) * source.uniforms(count)
            case "exponential":
                found = -first * np.log(1 - source.uniforms(count))
            case "lognormal":
                radius, angle = source.uniforms(2 * count).reshape(count, 2).T
                normals = np.sqrt(-2 * np.log(1 - radius)) * np.cos(2 * math.pi * angle)
                found = first * np.exp(np.minimum(last * normals, 300.0))
            case _:
                found = np.full(count, first)
        return np.minimum(found, LARGEST)


ONE = Distribution("constant", (1.0,))
"""Always 1."""


def _number(value: Any, where: str) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (0 <= value <= LARGEST)  # false of NaN too
    ):
        raise InvalidError(f"{where}: {value!r:.80} is not a number from 0 to {LARGEST:g}")
    return float(value)
