"""Federated averaging: the mean of the updates, weighted by their samples.

McMahan, Moore, Ramage, Hampson and Agüera y Arcas, *Communication-Efficient Learning of Deep Networks from Decentralized
Data*, AISTATS 2017 (arXiv:1602.05629), algorithm 1: ``w = Σ n_k / n · w_k``.

Exactness: sums are kept in float64, whatever the updates are in. With ``K`` updates the result differs from the exact mean
by at most ``(K + 2) · 2**-53 · Σ n_k |w_k| / n`` for each number, and then by the rounding to the updates' own type.
"""

import numpy as np
import numpy.typing as npt

from propeller.fl.tensors import Array, TensorError, Tensors, check_shapes, shapes_of

_CHUNK_NUMBERS = 8 * 1024
"""Numbers of a tensor that are summed at a time: in float64, those of ``_MAX_PENDING`` updates fit into the processor's cache."""

_MAX_PENDING = 8
"""Updates that are added in one pass over the sums: to read and write the sums is most of the work otherwise."""

_MAX_PENDING_BYTES = 256 * 1024 * 1024
"""Pending updates take at most this much memory and one update more; of larger ones fewer are pending."""

_Float64 = npt.NDArray[np.float64]


class FedAvg:
    """The weighted sums so far, one float64 for each number of a model, and a few pending updates that are not in them yet.

    Memory does not grow with the number of updates (docs/decisions/0042).
    """

    def __init__(self) -> None:
        """Start without updates."""
        self.num_samples = 0
        """Samples of all updates."""
        self._sums: dict[str, _Float64] = {}
        self._types: dict[str, np.dtype[np.generic]] = {}
        self._pending: list[tuple[Tensors, int]] = []
        self._pending_bytes = 0

    def accumulate(self, update: Tensors, num_samples: int) -> None:
        """Add an update of ``num_samples`` (at least 1) samples; its arrays must not change any more.

        Raises:
            TensorError: its names or shapes differ from those of the first one; then nothing was added.
        """
        if self._sums:
            check_shapes(update, shapes_of(self._sums), "the first update")
        else:
            self._sums = {name: np.zeros(array.shape, np.float64) for name, array in update.items()}
            self._types = {name: array.dtype for name, array in update.items()}
        for name, array in update.items():
            self._types[name] = np.result_type(self._types[name], array.dtype)
        self.num_samples += num_samples
        self._pending.append((update, num_samples))
        self._pending_bytes += sum(array.nbytes for array in update.values())
        if len(self._pending) == _MAX_PENDING or self._pending_bytes >= _MAX_PENDING_BYTES:
            self._add_pending()

    def apply(self) -> Tensors:
        """The mean: floating point tensors in the widest of their updates' types, integers as float64.

        Raises:
            TensorError: there was no update, or a sum is too large for float64.
        """
        if not self.num_samples:
            raise TensorError("there are no updates to average")
        self._add_pending()
        mean: Tensors = {}
        for name, total in self._sums.items():
            kind = self._types[name]
            mean[name] = np.empty(total.shape, kind if kind.kind == "f" else np.float64)
            if not _write_quotients(total.reshape(-1), self.num_samples, mean[name].reshape(-1)):
                raise TensorError("its weighted sum is too large for float64", name)
        return mean

    def _add_pending(self) -> None:
        """Add the pending updates to the sums."""
        weights = np.array([samples for _update, samples in self._pending], np.float64)
        scratch = np.empty((len(self._pending), _CHUNK_NUMBERS))
        # An infinite sum is reported at the end, with the tensor's name; numpy's warning would name none.
        with np.errstate(over="ignore", invalid="ignore"):
            for name, total in self._sums.items():
                rows = [update[name].reshape(-1) for update, _samples in self._pending]
                _add_weighted(total.reshape(-1), rows, weights, scratch)
        self._pending, self._pending_bytes = [], 0


def _add_weighted(sums: _Float64, rows: list[Array], weights: _Float64, scratch: _Float64) -> None:
    for start in range(0, sums.size, _CHUNK_NUMBERS):
        part = sums[start : start + _CHUNK_NUMBERS]
        block = scratch[:, : part.size]
        for number, row in enumerate(rows):
            block[number] = row[start : start + _CHUNK_NUMBERS]
        part += weights @ block


def _write_quotients(sums: _Float64, samples: int, into: Array) -> bool:
    """Write ``sums / samples`` into ``into``; whether all quotients are finite."""
    for start in range(0, sums.size, _CHUNK_NUMBERS):
        quotient = sums[start : start + _CHUNK_NUMBERS] / samples
        if not np.isfinite(quotient).all():
            return False
        into[start : start + _CHUNK_NUMBERS] = quotient
    return True
