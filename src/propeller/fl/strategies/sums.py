"""Weighted sums of updates that come one at a time, in float64 and in memory that does not grow with their number."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from propeller.fl.strategies.strategy import Float64
from propeller.fl.tensors import Array, Shapes, TensorError

BLOCK = 8 * 1024
"""Numbers of a tensor that are worked on at a time: in float64, those of ``_MAX_PENDING`` updates fit into the processor's cache."""

_MAX_PENDING = 8
"""Updates that are added in one pass over the sums: to read and write the sums is most of the work otherwise."""

_MAX_PENDING_BYTES = 256 * 1024 * 1024
"""Pending updates take at most this much memory and one update more; of larger ones fewer are pending."""


class WeightedSums:
    """``Σ c_k · x_k`` for each of some tensors.

    With ``K`` updates each sum differs from the exact one by at most ``(K + 1) · 2**-53 · Σ |c_k x_k|``.
    """

    def __init__(self, shapes: Shapes, refuse: Callable[[int, TensorError], Exception]) -> None:
        """Start without updates; ``refuse`` makes the error for an update, by its number, that holds NaN or an infinity."""
        self._sums: dict[str, Float64] = {name: np.zeros(shape).reshape(-1) for name, shape in shapes.items()}
        self._refuse = refuse
        self._pending: list[tuple[int, Mapping[str, Array], float]] = []
        self._pending_bytes = 0

    def add(self, number: int, update: Mapping[str, Array], coefficient: float) -> None:
        """Add an update, whose arrays must not change until ``sums`` has been called; other tensors in it are ignored.

        Raises:
            Exception: what ``refuse`` makes, here or for an earlier update.
        """
        if not self._sums or not coefficient:
            return
        self._pending.append((number, update, coefficient))
        self._pending_bytes += sum(update[name].nbytes for name in self._sums)
        if len(self._pending) == _MAX_PENDING or self._pending_bytes >= _MAX_PENDING_BYTES:
            self._add_pending()

    def sums(self) -> dict[str, Float64]:
        """The sums, flat.

        Raises:
            Exception: what ``refuse`` makes.
            TensorError: a sum is too large for float64.
        """
        self._add_pending()
        return self._sums

    def _add_pending(self) -> None:
        if not self._pending:
            return
        coefficients = np.array([coefficient for _number, _update, coefficient in self._pending])
        scratch = np.empty((len(self._pending), BLOCK))
        # numpy's warnings about NaN and overflow would name neither tensor nor update.
        with np.errstate(over="ignore", invalid="ignore"):
            for name, total in self._sums.items():
                rows = [update[name].reshape(-1) for _number, update, _coefficient in self._pending]
                for start, end in blocks(total.size):
                    part, block = total[start:end], scratch[:, : end - start]
                    for row, into in zip(rows, block, strict=True):
                        into[:] = row[start:end]
                    part += coefficients @ block
                    # NaN and infinities stay in a sum: to look at it is cheaper than to look at every update.
                    if not np.isfinite(part).all():
                        self._refuse_pending(name)
        self._pending, self._pending_bytes = [], 0

    def _refuse_pending(self, name: str) -> None:
        for number, update, _coefficient in self._pending:
            if not np.isfinite(update[name]).all():
                raise self._refuse(
                    number, TensorError("holds NaN or an infinity; every number must be finite", name)
                )
        raise TensorError("its weighted sum is too large for float64", name)


def blocks(size: int) -> Iterator[tuple[int, int]]:
    """Where the blocks of so many numbers begin and end."""
    for start in range(0, size, BLOCK):
        yield start, min(start + BLOCK, size)
