"""The dtypes that a model may have: all of safetensors', as numpy dtypes; those that numpy lacks are ml_dtypes'."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from propeller.tensors.shapes import TensorError

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Dtype = np.dtype[Any]

DTYPES: dict[str, Dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""By the names of safetensors, which are those in errors, headers and databases."""

_NOT_FINITE = {"F16": 0x7C00, "BF16": 0x7F80, "F8_E4M3": 0x7F, "F8_E5M2": 0x7C}
"""The bits of the first positive value that is not finite: an infinity, or NaN where there is none."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def name_of(dtype: Dtype) -> str:
    """A dtype's name in ``DTYPES``, whatever its byte order.

    Raises:
        TensorError: a model cannot have it.
    """
    name = _NAMES.get(dtype) or _NAMES.get(dtype.newbyteorder("<"))
    if name is None:
        raise TensorError(f"{dtype} is no dtype of a model; use one of {', '.join(DTYPES)}")
    return name


def is_floating(dtype: Dtype) -> bool:
    """Whether a dtype of ``DTYPES`` is floating point; numpy does not count those of ml_dtypes."""
    return dtype.kind not in "iub"


def is_integer(dtype: Dtype) -> bool:
    """Whether a dtype is an integer, signed or not; BOOL is none."""
    return dtype.kind in "iu"


def bounds(dtype: Dtype) -> tuple[float, float]:
    """The smallest and the largest number that a dtype holds: exact integers for integers, 0 and 1 for BOOL."""
    if is_floating(dtype):
        largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
        return -largest, largest
    if is_integer(dtype):
        limits = np.iinfo(dtype)
        return int(limits.min), int(limits.max)
    return 0, 1


_SMALL = 4096
"""Numbers of which it costs less to look at each than to go through them twice."""


def all_finite(array: Array) -> bool:
    """Whether no number of an array is NaN or infinite. No more than a few pages are allocated."""
    if not is_floating(array.dtype) or not array.size:
        return True
    if array.size <= _SMALL and array.dtype.kind == "f":
        return bool(np.isfinite(array).all())
    first = _NOT_FINITE.get(name_of(array.dtype))
    if first is None:  # the extremes carry any NaN or infinity
        return all(map(math.isfinite, extremes(array)))
    # By the bits, as numpy's minimum of these is thirty times slower. With the sign they are the larger half of the
    # unsigned integers; without it they are the positive ones of the signed.
    kind = f"{array.dtype.byteorder if array.dtype.kind == 'f' else '='}{{}}{array.dtype.itemsize}"
    sign = 1 << 8 * array.dtype.itemsize - 1
    return bool(
        array.view(kind.format("i")).max() < first and array.view(kind.format("u")).max() < sign + first
    )


def extremes(array: Array) -> tuple[float, float]:
    """The smallest and the largest number of an array that is not empty, as Python's; NaN if one is."""
    if array.dtype.kind == "b":
        return int(array.min()), int(array.max())
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of each NaN
        low, high = array.min(), array.max()
    return (int(low), int(high)) if is_integer(array.dtype) else (float(low), float(high))


def without_loss(array: Array, dtype: Dtype) -> Array | None:
    """The finite array in another dtype, if every number of it is the same there, else ``None``."""
    # numpy calls int64 to float64 safe, which it is not.
    widens = np.can_cast(array.dtype, dtype) and not (is_integer(array.dtype) and is_floating(dtype))
    if widens or not array.size:
        return array.astype(dtype, copy=False)
    low, high = extremes(array)
    least, most = bounds(dtype)
    if not least <= low <= high <= most:
        return None
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        if is_integer(array.dtype) and is_floating(dtype):
            # Back in the integers, where two that a float cannot tell apart differ; 2**63 would not fit there.
            within = bounds(array.dtype)
            if not all(math.isfinite(end) and within[0] <= end <= within[1] for end in extremes(cast)):
                return None
            same = cast.astype(np.float64).astype(array.dtype) == array
        else:
            same = cast.astype(array.dtype) == array
    return cast if bool(np.all(same)) else None
