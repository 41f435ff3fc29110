"""Element types and shapes: what an array is, before any element of it is touched.

A *spec* is ``(dtype, shape)``. Python numbers take part as *weak* ones, of dtype ``float`` or ``int`` and shape ``()``: they take the dtype of
the array beside them, as in NumPy 2 (NEP 50). Beyond that, where an integer meets a float32 the result is float32.
"""

from collections.abc import Sequence
from typing import Any

from propeller.errors import InvalidError

Spec = tuple[str, tuple[int, ...]]

ITEM_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int64": 8,
    "float32": 4,
    "float64": 8,
    "uint64": 8,
    "float16": 2,
    "bfloat16": 2,
}
"""Bytes an element, by dtype."""

HALVES = frozenset({"float16", "bfloat16"})
"""The dtypes of floats that are kept and sent in half the bytes."""

CARRIED = {"uint64": "int64", **dict.fromkeys(sorted(HALVES), "float32")}
"""The dtypes that no operation but ``cast`` takes, and what to compute in: uint64 holds what a model has and int64 cannot."""

MAX_RANK = 32
"""The most dimensions a tensor may have, in programs and models alike: as many as every version of NumPy has."""

FLOAT, INT = "float", "int"
WEAK = {FLOAT, INT}
"""The dtypes of weak numbers."""

TYPECODES = {
    "float32": "f",
    "float64": "d",
    "int64": "q",
    "uint8": "B",
    "bool": "B",
    "uint64": "Q",
    FLOAT: "d",
    INT: "q",
}
"""The type codes of Python's ``array`` module, by dtype; the halves have none."""

_RANGES = {
    "bool": (0, 1),
    "uint8": (0, 255),
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
    INT: (-(2**63), 2**63 - 1),
}

_RANK = {"bool": 0, "uint8": 1, "int64": 2, "float32": 3, "float64": 4}


class TensorError(InvalidError):
    """Tensors that cannot be read or do not fit, or an operation that cannot be done on them; the text says what would do.

    Attributes:
        tensor: the name of the tensor that is wrong, or ``None`` when the fault is not in one of them.
    """

    def __init__(self, reason: str, tensor: str | None = None) -> None:
        self.tensor = tensor
        super().__init__(reason if tensor is None else f"tensor {tensor[:80]!r}: {reason}")


def dtype_name(dtype: Any) -> Any:
    """A dtype's name, where Python's type stands for what its numbers become: ``float`` for float32."""
    return {float: "float32", int: "int64", bool: "bool"}.get(dtype, dtype)


def elements(shape: Sequence[int]) -> int:
    """How many elements an array of this shape has."""
    count = 1
    for size in shape:
        count *= size
    return count


def size_bytes(spec: Spec) -> int:
    """The bytes that an array of this spec takes."""
    return elements(spec[1]) * ITEM_BYTES.get(spec[0], 8)


def fits(value: float, dtype: str) -> bool:
    """Whether an array of this dtype can hold a number: integers take no fraction, and none beyond their range."""
    if is_floating(dtype) or dtype in HALVES:
        return True
    low, high = _RANGES[dtype]
    return not isinstance(value, float) and low <= value <= high


def promote(first: str, second: str) -> str:
    """The dtype in which two meet."""
    if first == second:
        return first
    if first in _RANK and second in _RANK:
        return first if _RANK[first] > _RANK[second] else second
    if first in _RANK:
        first, second = second, first
    # Now the first is weak.
    if second in {FLOAT, INT}:
        return FLOAT
    if first == FLOAT:
        return second if _RANK[second] >= _RANK["float32"] else "float32"
    return second if _RANK[second] >= _RANK["int64"] else "int64"


def is_floating(dtype: str) -> bool:
    """Whether this is a dtype of floats to compute with."""
    return dtype in {"float32", "float64", FLOAT}


def floating(dtype: str) -> str:
    """The dtype of a result that is never an integer."""
    return dtype if is_floating(dtype) else FLOAT if dtype == INT else "float32"


def sum_dtype(dtype: str) -> str:
    """The dtype of a sum of elements."""
    return "int64" if dtype in {"bool", "uint8"} else dtype


def broadcast(name: str, first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """The shape in which two meet, by NumPy's rule.

    Raises:
        TensorError: They do not.
    """
    if first == second or not second:
        return tuple(first)
    if not first:
        return tuple(second)
    long, short = (first, second) if len(first) >= len(second) else (second, first)
    ahead = len(long) - len(short)
    shape = list(long[:ahead])
    for one, other in zip(long[ahead:], short, strict=True):
        if one != other and 1 not in {one, other}:
            raise TensorError(f"{name}: shapes {list(first)} and {list(second)} do not fit together")
        shape.append(one if other == 1 else other)
    return tuple(shape)


def axis_of(name: str, axis: Any, rank: int) -> int:
    """An axis as a number from 0.

    Raises:
        TensorError: There is no such axis.
    """
    if not isinstance(axis, int) or isinstance(axis, bool):
        raise TensorError(f"{name}: an axis is an integer, not of type {type(axis).__name__}")
    if not -rank <= axis < rank:
        raise TensorError(f"{name}: there is no axis {axis!r} in {rank} dimensions")
    return axis % rank


def shape_of(name: str, sizes: Any) -> tuple[int, ...]:
    """A shape that came from outside.

    Raises:
        TensorError: It is none.
    """
    if not isinstance(sizes, list | tuple) or not all(type(size) is int and size >= 0 for size in sizes):
        raise TensorError(f"{name}: {sizes!r:.80} is not a shape")
    if len(sizes) > MAX_RANK:
        raise TensorError(f"{name}: {len(sizes)} dimensions; at most {MAX_RANK}")
    return tuple(sizes)
