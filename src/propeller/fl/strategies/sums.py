"""Weighted sums of updates that come one at a time, in float64 and in memory that does not grow with their number."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from propeller.fl.tensors import Array, Float64, Shapes, TensorError

SUM_BLOCK = 16 * 1024
"""Numbers of a tensor that are summed at a time."""

ROW_BLOCK = 8 * 1024
"""Numbers of a tensor that are worked on at a time where those of all updates are needed at once."""

MAX_PENDING = 32
"""Updates that are added in one pass over the sums: to read and write the sums is most of the work otherwise."""

MAX_PENDING_BYTES = 128 * 1024 * 1024
"""Pending updates take at most this much memory and one update more; of larger ones fewer are pending."""

_COLUMNS = 256
"""Columns of one matrix product: OpenBLAS computes one of this size in the thread that asks; larger ones it divides, and waits."""


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
        self._product = _WeightedProduct()

    def add(self, number: int, update: Mapping[str, Array], coefficient: float) -> None:
        """Add an update, whose arrays must not change until ``sums`` has been called; other tensors in it are ignored.

        Raises:
            Exception: what ``refuse`` makes, here or for an earlier update.
        """
        if not self._sums or not coefficient:
            return
        self._pending.append((number, update, coefficient))
        self._pending_bytes += sum(update[name].nbytes for name in self._sums)
        if len(self._pending) == MAX_PENDING or self._pending_bytes >= MAX_PENDING_BYTES:
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
        # numpy's warnings about NaN and overflow would name neither tensor nor update.
        with np.errstate(over="ignore", invalid="ignore"):
            for name, total in self._sums.items():
                rows = [update[name].reshape(-1) for _number, update, _coefficient in self._pending]
                for start, end in blocks(total.size, SUM_BLOCK):
                    part = total[start:end]
                    part += self._product.of(coefficients, rows, start, end)
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


class _WeightedProduct:
    """``Σ c_k · x_k`` of a block of each of some arrays, converted to float64 on the way (docs/decisions/0111)."""

    def __init__(self) -> None:
        pieces = SUM_BLOCK // _COLUMNS
        self._rows = np.zeros((MAX_PENDING, SUM_BLOCK))
        self._matrices = self._rows.reshape(MAX_PENDING, pieces, _COLUMNS).transpose(1, 0, 2)
        self._products = np.empty((pieces, 1, _COLUMNS))

    def of(self, coefficients: Float64, arrays: Sequence[Array], start: int, end: int) -> Float64:
        """The sum of these numbers of the flat arrays; valid until the next call."""
        size, count = end - start, len(arrays)
        for array, row in zip(arrays, self._rows, strict=False):
            row[:size] = array[start:end]
        pieces = -(-size // _COLUMNS)
        matrices, products = self._matrices[:pieces, :count], self._products[:pieces]
        np.matmul(coefficients[None, None, :], matrices, out=products)
        return products.reshape(-1)[:size]


def blocks(size: int, block: int) -> Iterator[tuple[int, int]]:
    """Where the blocks of so many numbers begin and end."""
    for start in range(0, size, block):
        yield start, min(start + block, size)
