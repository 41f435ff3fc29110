"""Tensors as JSON: nested lists of numbers, as absmach/propeller writes them (``{"w": [0.1, 0.2], "b": 0}``).

JSON names no dtypes. Numbers are float64 unless a base model says that they are integers; true and false are BOOL.
"""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from propeller.fl.tensors.base import Specs, Tensors, TensorSpec, check_array
from propeller.fl.tensors.dtypes import DTYPES, Array, is_floating
from propeller.tensors.limits import MAX_ELEMENTS, check_count, check_elements, check_name
from propeller.tensors.shapes import MAX_RANK, TensorError

if TYPE_CHECKING:
    from propeller.protocol.number_lists import NumberList

_NUMBER_TYPES = frozenset({int, float})
_WRITTEN_AT_ONCE = 8192
"""Numbers."""

_MAX_EXACT = 2.0**53
"""Integers below this are exact in float64 (RFC 8259, section 6)."""


def from_json(mapping: Mapping[str, Any], base: Specs | None = None) -> Tensors:
    """Read numbers and nested lists of numbers as float64 arrays, those of true and false as BOOL.

    A top-level ``version`` is not a tensor and is ignored, whatever it holds. Integers beyond 2**53 are rounded, but
    where the base model's tensor has an integer dtype: there whole numbers become int64 or uint64 and are exact.

    Args:
        mapping: names to numbers or nested lists of equal lengths, at most ``MAX_RANK`` deep.
        base: the model that the tensors are for, if it is known.

    Raises:
        TensorError: naming the tensor that is ragged, too deep, not finite, or not made of numbers.
    """
    if not isinstance(mapping, Mapping):
        raise TensorError(f"expected an object of names and numbers, got {_kind(mapping)}")
    named = {check_name(name): value for name, value in mapping.items() if name != "version"}
    check_count(len(named))
    tensors: Tensors = {name: _array(name, value, (base or {}).get(name)) for name, value in named.items()}
    check_elements(array.size for array in tensors.values())
    return tensors


def to_json(tensors: Tensors) -> dict[str, Any]:
    """Write arrays as Python numbers, true and false in nested lists; each float's ``repr`` reads back as the same float."""
    return {name: array.tolist() for name, array in tensors.items()}


def decode_json(body: bytes) -> tuple[Tensors, dict[str, str]]:
    """Decode a JSON document; JSON carries no metadata.

    Raises:
        TensorError: it is not a JSON object of tensors.
    """
    # Here, as it has pydantic loaded: a process that compresses updates is small without.
    from propeller.protocol.wire import MalformedMessageError, decode_tensors

    try:
        mapping = decode_tensors(body)
    except MalformedMessageError as error:
        raise TensorError(str(error)) from None
    return from_json(mapping), {}


def encode_json(tensors: Tensors, _metadata: Mapping[str, str]) -> bytes:
    """Encode as compact JSON.

    A tensor of whole numbers is written without fractions (``[0,0,0]``), as Go writes it: the same numbers, and
    what the users of absmach/propeller expect to see. An empty tensor loses the sizes after its first 0.
    """
    text = bytearray(b"{")
    for name, array in tensors.items():
        text += b"," if len(text) > 1 else b""
        text += f"{json.dumps(name, ensure_ascii=False)}:".encode()
        _write(_whole(array) if _is_whole(array) else array, text)
    return bytes(text + b"}")


def _write(array: Array, text: bytearray) -> None:
    """Append an array, some thousand numbers at a time: in a thread, others go on in between."""
    if array.size <= _WRITTEN_AT_ONCE:
        text += json.dumps(array.tolist(), separators=(",", ":"), allow_nan=False).encode()
        return
    row = array.size // len(array)
    text += b"["
    for begin in range(0, len(array), rows := max(1, _WRITTEN_AT_ONCE // row)):
        text += b"," if begin else b""
        if row > _WRITTEN_AT_ONCE:
            _write(array[begin], text)
        else:
            part = array[begin : begin + rows].tolist()
            text += json.dumps(part, separators=(",", ":"), allow_nan=False)[1:-1].encode()
    text += b"]"


def _is_whole(array: Array) -> bool:
    if not is_floating(array.dtype):
        return False
    if array.dtype.itemsize < 4:
        array = array.astype(np.float32)  # where the bound below is no infinity
    with np.errstate(invalid="ignore"):
        whole = (np.abs(array) < _MAX_EXACT) & (np.trunc(array) == array)
        # -0.0 is kept as it is: the integer 0 has no sign.
        return bool(np.all(whole & ~(np.signbit(array) & (array == 0))))


def _whole(array: Array) -> Array:
    return array.astype(np.int64)


def _array(name: str, value: Any, base: TensorSpec | None) -> Array:
    if not isinstance(value, list | float | int):
        from propeller.protocol.number_lists import NumberList  # as above

        if isinstance(value, NumberList):
            return _read_list(name, value, base)
    shape, row = _flatten(name, value)
    # An empty tensor shows its sizes up to its first 0 only.
    if not row and base is not None and base.shape[: len(shape)] == shape:
        return np.empty(base.shape, DTYPES[base.dtype])
    if row and type(row[0]) is bool:
        if base is not None and base.dtype != "BOOL":
            raise TensorError(f"holds true and false; the base model has {base.dtype}", name)
        return np.array(row, np.bool_).reshape(shape)
    array = None
    if row and base is not None and not is_floating(DTYPES[base.dtype]):
        array = _integers(name, row)
    if array is None:
        try:
            array = np.array(row, dtype=np.float64)
        except OverflowError:
            raise TensorError("holds a number too large for float64", name) from None
    array = array.reshape(shape)
    check_array(name, array)
    return array


def _read_list(name: str, value: "NumberList", base: TensorSpec | None) -> Array:
    """The numbers of a long list, which are exact in float64."""
    if math.prod(value.shape) > MAX_ELEMENTS:
        raise TensorError(f"has more than {MAX_ELEMENTS} numbers", name)
    array = np.frombuffer(value.numbers, np.float64).reshape(value.shape)
    if base is not None and not is_floating(DTYPES[base.dtype]) and bool(np.all(np.trunc(array) == array)):
        return array.astype(np.int64)
    return array


def _flatten(name: str, value: Any) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of nested lists, and their elements: numbers, or true and false, but not both."""
    shape: list[int] = []
    row = [value]
    # Level by level: all lists of a level must have one length, and the last level only numbers.
    while True:
        kinds = set(map(type, row))
        if kinds <= _NUMBER_TYPES or kinds == {bool}:
            break
        if kinds != {list}:
            raise TensorError(_misfit(kinds), name)
        if len(shape) == MAX_RANK:
            raise TensorError(f"is nested deeper than {MAX_RANK} lists", name)
        lengths = set(map(len, row))
        if len(lengths) != 1:
            raise TensorError(
                f"is ragged: lists of lengths {', '.join(map(str, sorted(lengths)[:4]))} at one depth", name
            )
        shape.append(lengths.pop())
        row = [item for inner in row for item in inner]
        if len(row) > MAX_ELEMENTS:
            raise TensorError(f"has more than {MAX_ELEMENTS} numbers", name)
    return tuple(shape), row


def _integers(name: str, row: list[Any]) -> Array | None:
    """The numbers as int64, or as uint64 where that is too small; ``None`` if one has a fraction."""
    if not all(type(number) is int or number.is_integer() for number in row):
        return None
    whole = list(map(int, row))
    least, most = min(whole), max(whole)
    if least >= -(2**63) and most < 2**63:
        return np.array(whole, np.int64)
    if least >= 0 and most < 2**64:
        return np.array(whole, np.uint64)
    raise TensorError(f"goes from {least:.20g} to {most:.20g}, which is more than 64 bits hold", name)


def _misfit(kinds: set[type]) -> str:
    if list in kinds and kinds <= _NUMBER_TYPES | {list}:
        return "is ragged: numbers and lists at one depth"
    other = sorted(_NAMES.get(kind, kind.__name__) for kind in kinds - _NUMBER_TYPES - {list})
    return f"must hold numbers or lists of numbers, found {' and '.join(other)}"


_NAMES: dict[type, str] = {type(None): "null", bool: "a boolean", str: "text", dict: "an object"}


def _kind(value: object) -> str:
    return _NAMES.get(type(value), type(value).__name__)
