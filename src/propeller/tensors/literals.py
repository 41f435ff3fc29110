"""The numbers that a program writes down, in nested lists or as NumPy has them, as elements of an array."""

from typing import Any

from propeller.tensors.encoding import Number, encode
from propeller.tensors.shapes import (
    FLOAT,
    HALVES,
    INT,
    ITEM_BYTES,
    Spec,
    TensorError,
    dtype_name,
    is_floating,
    promote,
)
from propeller.tensors.tape import Handle

_NUMPY = {
    "float64": ("float64", "<f8"),
    "uint64": ("uint64", "<u8"),
    **dict.fromkeys(("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"), ("float32", "<f4")),
    **dict.fromkeys(("int64", "int32", "int16", "int8", "uint32", "uint16"), ("int64", "<i8")),
    "uint8": ("uint8", "u1"),
    "bool": ("bool", "?"),
}
"""NumPy's dtypes: ours, which has every number of it, and NumPy's name for that in little-endian order."""


def pack_numpy(values: Any) -> tuple[bytes, Spec]:
    """The little-endian elements of a NumPy array or scalar, and their spec: as a model's tensor of its dtype has it.

    Raises:
        TensorError: It has no numbers.
    """
    found, spec = as_numpy(values)
    return found.tobytes(), spec


def as_numpy(values: Any) -> tuple[Any, Spec]:
    """A NumPy array or scalar in one of our dtypes, and its spec; copied where its own is another one.

    Raises:
        TensorError: It has no numbers.
    """
    known = _NUMPY.get(str(values.dtype.name))
    if known is None:
        raise TensorError(
            f"array: {values.dtype} of NumPy is no dtype of numbers; there are {', '.join(_NUMPY)}"
        )
    dtype, wanted = known
    return values.astype(wanted, copy=False), (dtype, tuple(values.shape))


def is_numpy(values: Any) -> bool:
    """Whether this is a NumPy array or scalar; NumPy itself need not be there."""
    return hasattr(values, "__array_interface__")


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
    if not is_floating(kind) and kind not in HALVES:
        flat = [int(value) for value in flat]
    try:
        return encode(flat, kind), (kind, shape)
    except (OverflowError, TypeError) as error:
        raise TensorError(f"array: a value does not fit {kind}: {error}") from None


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
    if is_numpy(values):
        return _measure(values.tolist(), flat)
    if isinstance(values, Handle):
        raise TensorError("array: the list holds arrays; join them with stack([…]) or concatenate([…])")
    if not isinstance(values, list | tuple | range):
        raise TensorError(f"array: {type(values).__name__} is not a number or a list of them")
    shapes = {_measure(each, flat) for each in values}
    if len(shapes) > 1:
        raise TensorError("array: the lists are not of one length")
    return (len(values), *(shapes.pop() if shapes else ()))
