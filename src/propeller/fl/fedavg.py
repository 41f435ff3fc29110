"""Federated averaging: the mean of the updates, weighted by their samples.

McMahan, Moore, Ramage, Hampson and Agüera y Arcas, *Communication-Efficient Learning of Deep Networks from Decentralized
Data*, AISTATS 2017 (arXiv:1602.05629), algorithm 1: ``w = Σ n_k / n · w_k``.

Exactness: sums are kept in float64, whatever the updates are in. With ``K`` updates the result differs from the exact mean
by at most ``(K + 2) · 2**-53 · Σ n_k |w_k| / n`` for each number, and then by the rounding to the updates' own type.
"""

import numpy as np
import numpy.typing as npt

from propeller.fl.tensors import TensorError, Tensors, check_fits

_CHUNK = 32 * 1024
"""Numbers that are weighted at a time: their float64 products (256 KiB) stay in the processor's cache."""

_Float64 = npt.NDArray[np.float64]


class FedAvg:
    """The weighted sums so far; one float64 for each number of a model, however many updates there are."""

    def __init__(self) -> None:
        """Nothing is summed yet."""
        self.samples = 0
        """The samples behind the sums."""
        self._sums: dict[str, _Float64] = {}
        self._types: dict[str, np.dtype[np.generic]] = {}
        self._first: Tensors = {}
        self._scratch = np.empty(_CHUNK, np.float64)

    def fold(self, update: Tensors, num_samples: int) -> None:
        """Add an update of ``num_samples`` (at least 1) samples to the sums.

        Raises:
            TensorError: its names or shapes differ from those of the first one; then nothing was added.
        """
        if self._sums:
            check_fits(update, self._first, "the first update")
        else:
            self._begin(update)
        for name, array in update.items():
            self._add(self._sums[name], array, float(num_samples))
            self._types[name] = np.result_type(self._types[name], array.dtype)
        self.samples += num_samples

    def finish(self) -> Tensors:
        """The mean: floating point tensors in the widest of their updates' types, integers as float64.

        Raises:
            TensorError: there was no update, or a sum is too large for float64.
        """
        if not self.samples:
            raise TensorError("there are no updates to average")
        mean: Tensors = {}
        for name, total in self._sums.items():
            quotient = total / self.samples
            if not np.isfinite(quotient).all():
                raise TensorError("its weighted sum is too large for float64", name)
            kind = self._types[name]
            mean[name] = quotient.astype(kind if kind.kind == "f" else np.float64)
        return mean

    def _begin(self, update: Tensors) -> None:
        self._first = {name: np.broadcast_to(np.float64(0), array.shape) for name, array in update.items()}
        self._types = {name: array.dtype for name, array in update.items()}
        self._sums = {name: np.zeros(array.shape, np.float64) for name, array in update.items()}

    def _add(self, total: _Float64, array: npt.NDArray[np.generic], weight: float) -> None:
        numbers, sums = array.reshape(-1), total.reshape(-1)
        # An infinite sum is found at the end, by the tensor's name; numpy's warning would name nothing.
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, numbers.size, _CHUNK):
                part = numbers[start : start + _CHUNK]
                product = self._scratch[: part.size]
                np.multiply(part, weight, out=product, casting="unsafe", dtype=np.float64)
                sums[start : start + _CHUNK] += product
