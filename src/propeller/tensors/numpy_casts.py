"""Elements in another dtype, in NumPy. bfloat16, which it has not, is its bits in uint16."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from propeller.tensors.operations import Kernel
from propeller.tensors.shapes import HALVES, Spec, is_floating


def cast(specs: Sequence[Spec], _params: Any, out: Spec) -> Kernel:
    """The kernel of the operation."""
    source, target = specs[0][0], out[0]
    if source == target:
        return np.array
    if source in HALVES:
        then = cast([("float32", specs[0][1])], None, out)
        return lambda x: then(from_bfloat16(x) if source == "bfloat16" else np.asarray(x).astype(np.float32))
    if target == "bfloat16":
        return lambda x: to_bfloat16(np.asarray(x).astype(np.float32))
    dtype = np.dtype(target)
    if dtype.kind not in "iu" or not (is_floating(source) or "uint64" in {source, target}):
        return lambda x: np.asarray(x).astype(dtype)
    if not is_floating(source):
        return lambda x: _whole_in_range(x, dtype)
    return lambda x: _whole(x, dtype)


def from_bfloat16(bits: Any) -> Any:
    """Bits as float32, of which they are the upper half."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(x: Any) -> Any:
    """The bits of float32, rounded to the nearest, of two to the even one."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    # Of NaN the upper half might be infinity.
    return np.where(np.isnan(x), bits >> np.uint32(16) | np.uint32(0x40), rounded).astype(np.uint16)


def _whole(x: Any, dtype: Any) -> Any:
    """Floats as integers; what processors make of one that does not fit differs."""
    whole = np.trunc(x)
    if not np.all((whole >= float(np.iinfo(dtype).min)) & (whole < float(np.iinfo(dtype).max) + 1)):
        raise ValueError(f"a value does not fit {dtype}")
    return np.asarray(whole).astype(dtype)


def _whole_in_range(x: Any, dtype: Any) -> Any:
    limits, array = np.iinfo(dtype), np.asarray(x)
    if array.size and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
        raise ValueError(f"a value does not fit {dtype}")
    return array.astype(dtype)
