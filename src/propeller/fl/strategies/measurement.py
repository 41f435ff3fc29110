"""The first pass over a round's updates: norms or inner products of their differences to their base models."""

from collections.abc import Mapping, Sequence

import numpy as np

from propeller.fl.strategies.contribution import Contribution, UpdateError
from propeller.fl.strategies.strategy import Measure, Measured, Strategy
from propeller.fl.strategies.sums import ROW_BLOCK, blocks
from propeller.fl.tensors import Array, Float64, TensorError, Tensors


class Measurement:
    """Measures updates part by part; integers, truth values, personal and extra tensors do not count.

    For each part: ``begin`` with its base models, ``add`` for each update, ``end``. The results do not depend on which tensors are
    in which part, as long as their order is the same. Norms keep no update; inner products keep those of one part until ``end``.
    """

    def __init__(self, strategy: Strategy, contributions: Sequence[Contribution]) -> None:
        """Measure what the strategy asks for."""
        self._strategy = strategy
        self._contributions = contributions
        count = len(contributions)
        self._squares = np.zeros(count)
        side = (
            count if strategy.measure is Measure.GRAM else 0
        )  # 100,000 updates would have 75 GiB of products
        self._gram = np.zeros((side, side))
        self._bases: Sequence[Tensors] = ()
        self._names: list[str] = []
        self._rows: dict[int, Mapping[str, Array]] = {}

    def begin(self, bases: Sequence[Tensors]) -> None:
        """Begin a part, with its tensors of each base model."""
        self._bases, self._rows = bases, {}
        self._names = [name for name, array in bases[0].items() if self._strategy.learns(name, array)]

    def add(self, number: int, update: Tensors) -> None:
        """Measure an update's tensors of this part; it is the ``number``-th contribution, from 0.

        Raises:
            UpdateError: it holds NaN or an infinity.
        """
        if self._strategy.measure is Measure.GRAM:
            self._rows[number] = update
            return
        for name in self._names:
            self._squares[number] += self._square(number, update, name)

    def end(self) -> None:
        """End the part.

        Raises:
            UpdateError: as ``add``.
        """
        if self._strategy.measure is not Measure.GRAM:
            return
        count = len(self._contributions)
        for name in self._names:
            # Rows whose squares leave float64 have none of their products: they are infinitely far from all others.
            squares = np.array([self._square(number, self._rows[number], name) for number in range(count)])
            usable = [number for number in range(count) if np.isfinite(squares[number])]
            gram = np.diag(squares)
            if usable:
                gram[np.ix_(usable, usable)] = self._products(name, usable)
            self._gram += gram
        self._rows = {}

    def result(self) -> Measured:
        """What was measured of all parts so far."""
        if self._strategy.measure is Measure.NONE:
            return Measured()
        squares = np.diag(self._gram) if self._strategy.measure is Measure.GRAM else self._squares
        gram = self._gram if self._strategy.measure is Measure.GRAM else None
        return Measured(np.sqrt(squares), gram)

    def _products(self, name: str, numbers: Sequence[int]) -> Float64:
        gram = np.zeros((len(numbers), len(numbers)))
        for start, end in blocks(self._bases[0][name].size, ROW_BLOCK):
            rows = [self._difference(number, self._rows[number], name, start, end) for number in numbers]
            matrix = np.stack(rows)
            gram += matrix @ matrix.T
        return gram

    def _square(self, number: int, update: Mapping[str, Array], name: str) -> float:
        """The squared norm of one tensor's difference; infinity where it leaves float64."""
        total = 0.0
        with np.errstate(over="ignore"):
            for start, end in blocks(update[name].size, ROW_BLOCK):
                block = self._difference(number, update, name, start, end)
                total += float(block @ block)
        if not np.isfinite(total) and not np.isfinite(update[name]).all():
            error = TensorError("holds NaN or an infinity; every number must be finite", name)
            raise UpdateError(number, self._contributions[number], error)
        return total if np.isfinite(total) else np.inf

    def _difference(
        self, number: int, update: Mapping[str, Array], name: str, start: int, end: int
    ) -> Float64:
        contribution = self._contributions[number]
        values: Float64 = update[name].reshape(-1)[start:end].astype(np.float64)
        if contribution.kind == "weights":
            values -= self._bases[contribution.base][name].reshape(-1)[start:end]
        return values
