"""Arrays of the numbers that a program writes down: in nested lists, as text to cross with."""

import sys
from array import array as _buffer
from collections.abc import Sequence
from typing import Any

from propeller.tensors import session
from propeller.tensors.shapes import (
    FLOAT,
    INT,
    ITEM_BYTES,
    TensorError,
    dtype_name,
    elements,
    promote,
)
from propeller.tensors.tape import Handle

TYPECODES = {"float32": "f", "float64": "d", "int64": "q", "uint8": "B", "bool": "B", FLOAT: "d", INT: "q"}
"""Of the ``array`` module, for the elements of each dtype."""

Number = float | int | bool


def literal(values: Any, dtype: Any = None) -> Any:
    """An array of a number, or of nested lists of numbers.

    Raises:
        TensorError: The lists are ragged, hold something else, or an integer does not fit the dtype.
    """
    flat: list[Number] = []
    shape = _measure(values, flat)
    kind = dtype_name(dtype) or _kind(flat)
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
    return frombytes(data.tobytes(), kind, shape)


def frombytes(data: bytes, dtype: str, shape: Sequence[int]) -> Any:
    """An array of little-endian elements.

    Raises:
        TensorError: There are not as many bytes as the shape takes.
    """
    if len(data) != elements(shape) * ITEM_BYTES.get(dtype, 0):
        raise TensorError(f"array: {len(data)} bytes are not {elements(shape)} elements of {dtype}")
    return session.main().create(data, (dtype, tuple(shape)))


def _kind(flat: list[Number]) -> str:
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
