"""Differences of integers, exact."""

import numpy as np

from propeller.fl.tensors.dtypes import DTYPES, Array, is_floating, name_of, without_loss
from propeller.tensors.shapes import TensorError

_LARGEST = 2**63 - 1


def exact_difference(values: Array, base: Array) -> Array:
    """``values - base`` of integers, in the base model's dtype if that holds it, else in int64.

    Numbers of floating point are rounded to integers first, as every strategy does it.

    Raises:
        TensorError: a number is none of the base model's dtype, or a difference is beyond int64.
    """
    whole = without_loss(np.rint(values) if is_floating(values.dtype) else values, base.dtype)
    if whole is None:
        raise TensorError(f"holds a number that {name_of(base.dtype)}, the base model's dtype, does not")
    wide = np.uint64 if base.dtype == DTYPES["U64"] else np.int64
    first, second = whole.astype(wide), base.astype(wide)
    below = first < second
    with np.errstate(over="ignore"):  # modulo 2**64 the smaller from the larger is right
        gap = np.where(
            below,
            second.view(np.uint64) - first.view(np.uint64),
            first.view(np.uint64) - second.view(np.uint64),
        )
    if gap.size and gap.max() > _LARGEST:
        raise TensorError("differs from the base model by more than int64 holds")
    difference = np.where(below, -gap.astype(np.int64), gap.astype(np.int64))
    narrow = without_loss(difference, base.dtype)
    return difference if narrow is None else narrow
