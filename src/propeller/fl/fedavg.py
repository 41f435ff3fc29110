"""Federated averaging: the mean of the updates, weighted by their samples.

McMahan, Moore, Ramage, Hampson and Agüera y Arcas, *Communication-Efficient Learning of Deep Networks from Decentralized
Data*, AISTATS 2017 (arXiv:1602.05629), algorithm 1: ``w = Σ n_k / n · w_k``.

Exactness: sums are kept in float64, whatever the updates are in. With ``K`` updates the result differs from the exact mean
by at most ``(K + 2) · 2**-53 · Σ n_k |w_k| / n`` for each number, and then by the rounding to the updates' own type.
"""

import numpy as np
import numpy.typing as npt

from propeller.fl.tensors import Array, TensorError, Tensors, check_fits

_CHUNK = 8 * 1024
"""Numbers of a tensor that are summed at a time: in float64, those of ``_TOGETHER`` updates stay in the processor's cache."""

_TOGETHER = 8
"""Updates that are summed in one pass over the sums; reading and writing those is most of the work otherwise."""

_HELD_BYTES = 256 * 1024 * 1024
"""Updates that wait for each other take no more memory than this and one of them; larger ones wait less."""

_Float64 = npt.NDArray[np.float64]


class FedAvg:
    """The weighted sums so far, one float64 for each number of a model, and a few updates that are not in them yet.

    Memory does not grow with the number of updates (docs/decisions/0042).
    """

    def __init__(self) -> None:
        """Nothing is summed yet."""
        self.samples = 0
        """The samples behind the sums."""
        self._sums: dict[str, _Float64] = {}
        self._types: dict[str, np.dtype[np.generic]] = {}
        self._waiting: list[tuple[Tensors, int]] = []
        self._held = 0

    def fold(self, update: Tensors, num_samples: int) -> None:
        """Add an update of ``num_samples`` (at least 1) samples; its arrays must not change any more.

        Raises:
            TensorError: its names or shapes differ from those of the first one; then nothing was added.
        """
        if self._sums:
            check_fits(update, self._sums, "the first update")
        else:
            self._sums = {name: np.zeros(array.shape, np.float64) for name, array in update.items()}
            self._types = {name: array.dtype for name, array in update.items()}
        for name, array in update.items():
            self._types[name] = np.result_type(self._types[name], array.dtype)
        self.samples += num_samples
        self._waiting.append((update, num_samples))
        self._held += sum(array.nbytes for array in update.values())
        if len(self._waiting) == _TOGETHER or self._held >= _HELD_BYTES:
            self._sum()

    def finish(self) -> Tensors:
        """The mean: floating point tensors in the widest of their updates' types, integers as float64.

        Raises:
            TensorError: there was no update, or a sum is too large for float64.
        """
        if not self.samples:
            raise TensorError("there are no updates to average")
        self._sum()
        mean: Tensors = {}
        for name, total in self._sums.items():
            kind = self._types[name]
            mean[name] = np.empty(total.shape, kind if kind.kind == "f" else np.float64)
            if not _divide(total.reshape(-1), self.samples, mean[name].reshape(-1)):
                raise TensorError("its weighted sum is too large for float64", name)
        return mean

    def _sum(self) -> None:
        """Bring the updates that wait into the sums."""
        weights = np.array([samples for _update, samples in self._waiting], np.float64)
        scratch = np.empty((len(self._waiting), _CHUNK))
        # An infinite sum is found at the end, by the tensor's name; numpy's warning would name nothing.
        with np.errstate(over="ignore", invalid="ignore"):
            for name, total in self._sums.items():
                rows = [update[name].reshape(-1) for update, _samples in self._waiting]
                _add(total.reshape(-1), rows, weights, scratch)
        self._waiting, self._held = [], 0


def _add(sums: _Float64, rows: list[Array], weights: _Float64, scratch: _Float64) -> None:
    for start in range(0, sums.size, _CHUNK):
        part = sums[start : start + _CHUNK]
        block = scratch[:, : part.size]
        for number, row in enumerate(rows):
            block[number] = row[start : start + _CHUNK]
        part += weights @ block


def _divide(sums: _Float64, samples: int, into: Array) -> bool:
    """Write the quotients; whether all of them are finite."""
    for start in range(0, sums.size, _CHUNK):
        quotient = sums[start : start + _CHUNK] / samples
        if not np.isfinite(quotient).all():
            return False
        into[start : start + _CHUNK] = quotient
    return True
