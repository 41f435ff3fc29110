"""The numbers that a program writes down, in nested lists, as elements of an array."""

import sys
from array import array as _buffer
from typing import Any

from propeller.tensors.shapes import (
    FLOAT,
    INT,
    ITEM_BYTES,
    TYPECODES,
    Spec,
    TensorError,
    dtype_name,
    promote,
)
from propeller.tensors.tape import Handle

Number = float | int | bool


def pack(values: Any, dtype: Any = None) -> tuple[bytes, Spec]:
    """The little-endian elements of a number or of nested lists of numbers, and their spec.

    Raises:
        TensorError: The lists are ragged, hold something else, or an integer does not fit the dtype.
    """
    flat: list[Number] = []
    shape = _measure(values, flat)
    kind = dtype_name(dtype) or _common_dtype(flat)
    if kind not in ITEM_BYTES:
        raise TensorError(f"there is no dtype {kind!r}; there are {', '.join(ITEM_BYTES)}")
    if not kind.startswith("float"):
        flat = [int(value) for value in flat]
    try:
        data = _buffer(TYPECODES[kind], flat)
    except (OverflowError, TypeError) as error:
        raise TensorError(f"array: a value does not fit {kind}: {error}") from None
    if sys.byteorder == "big":
        data.byteswap()
    return data.tobytes(), (kind, shape)


def _common_dtype(flat: list[Number]) -> str:
    kinds = {
        "bool" if isinstance(value, bool) else INT if isinstance(value, int) else FLOAT for value in flat
    }
    if kinds == {"bool"}:
        return "bool"
    kind = FLOAT if not kinds or FLOAT in kinds else INT
    return promote(kind, "bool")


def _measure(values: Any, flat: list[Number]) -> tuple[int, ...]:
    """The shape of nested lists; their numbers go to ``flat``."""
    if isinstance(values, bool | int | float):
        flat.append(values)
        return ()
    if isinstance(values, Handle):
        raise TensorError("array: the list holds arrays; join them with stack([…]) or concatenate([…])")
    if not isinstance(values, list | tuple | range):
        raise TensorError(f"array: {type(values).__name__} is not a number or a list of them")
    shapes = {_measure(each, flat) for each in values}
    if len(shapes) > 1:
        raise TensorError("array: the lists are not of one length")
    return (len(values), *(shapes.pop() if shapes else ()))
