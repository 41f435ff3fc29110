"""Which numbers of a tensor are sent where only the largest are, and how their places are written.

Top-k with memory is Stich, Cordonnier and Jaggi 2018, "Sparsified SGD with Memory"; with what was not sent added to the next update it
converges as fast as if all were sent, but for terms of higher order (Karimireddy et al. 2019, "Error Feedback Fixes SignSGD and other
Gradient Compression Schemes", theorem II).
"""

import math

import numpy as np
import numpy.typing as npt

from propeller.fl.tensors.dtypes import Array, name_of
from propeller.tensors.shapes import TensorError

SEGMENT = 2**20
"""Numbers of a tensor that are worked on at a time, and among which the largest are looked for: memory does not grow with tensors.
What the papers prove needs no more: that of each vector a part ``k`` of its squared norm is kept."""

Places = npt.NDArray[np.int64]

_GAPS = (np.uint8, np.uint16, np.uint32)


def largest(numbers: Array, fraction: float) -> Places:
    """The places of the largest numbers of each segment, by magnitude, in ascending order; zeros are never among them.

    Args:
        numbers: finite, in one dimension.
        fraction: how many of a segment, rounded up; of equal ones the first.
    """
    found = [
        start + _largest_of_segment(np.abs(numbers[start : start + SEGMENT]), fraction)
        for start in range(0, numbers.size, SEGMENT)
    ]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _largest_of_segment(sizes: Array, fraction: float) -> Places:
    count = math.ceil(fraction * sizes.size)
    least = np.partition(sizes, sizes.size - count)[sizes.size - count]
    above = np.flatnonzero(sizes > least)
    if least == 0:
        return above
    equal = np.flatnonzero(sizes == least)[: count - above.size]
    return np.sort(np.concatenate([above, equal]))


def to_gaps(places: Places) -> Array:
    """Ascending places as the distance of each from the one before it, and of the first from -1, in the smallest dtype that holds them."""
    gaps = np.diff(places, prepend=-1)
    most = int(gaps.max(initial=0))
    dtype = next(dtype for dtype in _GAPS if most <= np.iinfo(dtype).max)
    return gaps.astype(dtype)


def from_gaps(gaps: Array, size: int) -> Places:
    """The places again, of a tensor with ``size`` numbers.

    Raises:
        TensorError: they are none: two are the same, or one is beyond the end.
    """
    if gaps.dtype not in _GAPS or gaps.ndim != 1:
        raise TensorError(
            f"its gaps are {name_of(gaps.dtype)} of shape {list(gaps.shape)}; they must be U8, U16 or U32 in one dimension"
        )
    if gaps.size > size:
        raise TensorError(f"has {gaps.size} places of {size}")
    if gaps.size and gaps.min() == 0:
        raise TensorError("a place comes twice: gaps must be 1 or more")
    places = np.cumsum(gaps, dtype=np.int64) - 1
    if places.size and places[-1] >= size:
        raise TensorError(f"a place is {places[-1]}, beyond its {size} numbers")
    return places
