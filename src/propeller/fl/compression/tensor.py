"""One tensor of an update: its difference to the base model compressed, and decompressed.

It is done a segment at a time, so that what is held beside the tensors is small; with ``top_k`` or error feedback, one array more of
the tensor's size.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from propeller.fl.compression.scheme import Scheme, ValueForm
from propeller.fl.compression.sparsity import SEGMENT, from_gaps, largest, to_gaps
from propeller.fl.compression.values import Random, decode_values, encode_values
from propeller.fl.tensors.dtypes import DTYPES, Array, all_finite, name_of
from propeller.tensors.shapes import TensorError


@dataclass(frozen=True)
class Sent:
    """What stands for a tensor.

    Attributes:
        form: of its numbers.
        count: how many of them were sent.
        values: those, in that form.
        scales: of their blocks, where the form has any.
        gaps: where they belong; ``None``: all were sent.
    """

    form: ValueForm
    count: int
    values: Array
    scales: Array | None
    gaps: Array | None = None


@dataclass
class SquaredNorms:
    """Of what was to be sent, and of what is missing of it."""

    wanted: float = 0.0
    missing: float = 0.0

    @property
    def relative_error(self) -> float | None:
        """The norm of what is missing beside that of what was to be sent; 0 where that is nothing, ``None`` where it is beyond float64."""
        if not self.wanted:
            return 0.0
        error = math.sqrt(self.missing / self.wanted) if math.isfinite(self.missing) else math.inf
        return error if math.isfinite(self.wanted) and math.isfinite(error) else None


@dataclass(frozen=True)
class Difference:
    """What is to be sent of a tensor: ``update - base + residual``, rounded once to ``dtype``.

    Attributes:
        update: new weights, or a difference where there is no ``base``.
        base: of the same shape.
        residual: what earlier updates have left, of the same shape.
        dtype: that it is worked on and decoded in.
    """

    update: Array
    base: Array | None = None
    residual: Array | None = None
    dtype: np.dtype[Any] = field(default_factory=lambda: DTYPES["F32"])

    def segment(self, start: int) -> Array:
        """``SEGMENT`` numbers of it, or those that are left.

        Raises:
            TensorError: one is too large for the dtype.
        """
        part = slice(start, start + SEGMENT)
        numbers = self.update.reshape(-1)[part].astype(np.float64)
        if self.base is not None:
            numbers -= self.base.reshape(-1)[part].astype(np.float64)
        if self.residual is not None:
            numbers += self.residual.reshape(-1)[part]
        with np.errstate(over="ignore"):
            rounded: Array = numbers.astype(self.dtype)
        if not all_finite(rounded):
            raise TensorError(f"its difference to the base model is too large for {name_of(self.dtype)}")
        return rounded


def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """In which a tensor of the base model is compressed: float64 for float64, else float32, which holds the others."""
    return DTYPES["F64"] if dtype == DTYPES["F64"] else DTYPES["F32"]


def encode_tensor(
    difference: Difference, scheme: Scheme, random: Random, norms: SquaredNorms, residual: Array | None = None
) -> Sent:
    """Compress a tensor.

    Args:
        difference: what is to be sent.
        scheme: how.
        random: what stochastic rounding draws from.
        norms: to which this tensor's are added.
        residual: takes what is not sent: ``difference - decode_tensor(…)``; of its size and dtype.

    Raises:
        TensorError: a number is too large.
    """
    if scheme.top_k is None:
        return _encode_all(difference, scheme.values, random, norms, residual)
    size = difference.update.size
    wanted = np.empty(size, difference.dtype) if residual is None else residual.reshape(-1)
    for start in range(0, size, SEGMENT):
        wanted[start : start + SEGMENT] = difference.segment(start)
    norms.wanted += _squared_norm(wanted)
    places = largest(wanted, scheme.top_k)
    sent = replace(_encode_numbers(scheme.values, wanted[places], random), gaps=to_gaps(places))
    wanted[places] -= decode_values(sent.form, sent.values, sent.scales, sent.count, difference.dtype)
    norms.missing += _squared_norm(wanted)
    return sent


def decode_tensor(sent: Sent, size: int, dtype: np.dtype[Any]) -> Array:
    """What arrives of a tensor of ``size`` numbers, in one dimension.

    Raises:
        TensorError: ``sent`` is not what ``encode_tensor`` gives.
    """
    numbers = decode_values(sent.form, sent.values, sent.scales, sent.count, dtype)
    if sent.gaps is None:
        if sent.count != size:
            raise TensorError(f"has {sent.count} numbers, its shape {size}")
        return numbers
    if sent.gaps.size != sent.count:
        raise TensorError(f"has {sent.count} numbers and {sent.gaps.size} places")
    whole = np.zeros(size, dtype)
    whole[from_gaps(sent.gaps, size)] = numbers
    return whole


def _encode_all(
    difference: Difference, form: ValueForm, random: Random, norms: SquaredNorms, residual: Array | None
) -> Sent:
    size, parts = difference.update.size, list[Sent]()
    for start in range(0, size, SEGMENT):
        wanted = difference.segment(start)
        sent = _encode_numbers(form, wanted, random)
        parts.append(sent)
        norms.wanted += _squared_norm(wanted)
        wanted -= decode_values(form, sent.values, sent.scales, sent.count, difference.dtype)
        norms.missing += _squared_norm(wanted)
        if residual is not None:
            residual.reshape(-1)[start : start + SEGMENT] = wanted
    return _joined(form, parts, random, difference.dtype)


def _encode_numbers(form: ValueForm, numbers: Array, random: Random) -> Sent:
    parts = []
    for start in range(0, numbers.size, SEGMENT):
        part = numbers[start : start + SEGMENT]
        parts.append(Sent(form, part.size, *encode_values(form, part, random)))
    return _joined(form, parts, random, numbers.dtype)


def _joined(form: ValueForm, parts: list[Sent], random: Random, dtype: np.dtype[Any]) -> Sent:
    if not parts:
        return Sent(form, 0, *encode_values(form, np.empty(0, dtype), random))
    if len(parts) == 1:
        return parts[0]
    scales = [part.scales for part in parts if part.scales is not None]
    return Sent(
        form,
        sum(part.count for part in parts),
        np.concatenate([part.values for part in parts]),
        np.concatenate(scales) if scales else None,
    )


def _squared_norm(numbers: Array) -> float:
    """In float64, whatever the numbers' own dtype."""
    total = 0.0
    with np.errstate(over="ignore"):
        for start in range(0, numbers.size, SEGMENT):
            total += float(np.square(numbers[start : start + SEGMENT], dtype=np.float64).sum())
    return total
