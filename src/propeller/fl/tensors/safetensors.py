"""Tensors as safetensors: 8 bytes of header length, a JSON header, then the raw numbers, little-endian.

Format: https://github.com/huggingface/safetensors (section Format). Read here and not by that project's library
because the library gives no metadata from bytes, reads no streams, and forgets the order of the tensors; the tests
hold the two against each other (docs/decisions/0040).
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from propeller.fl.tensors.base import (
    MAX_RANK,
    Array,
    TensorError,
    Tensors,
    check,
    check_array,
    check_count,
    check_elements,
    check_name,
)

PREFIX = 8
"""Bytes of the header's length, an unsigned 64-bit integer."""

MAX_HEADER = 16 * 1024 * 1024
"""The longest header that is read, in bytes."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    # numpy has no bfloat16: its 16 bits are the upper half of a float32, which it becomes, exactly.
    "BF16": np.dtype("<u2"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items() if name != "BF16"}


@dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The header of a document: what follows it, and how much.

    Attributes:
        entries: tensor names to dtype, shape and place, in the header's order.
        metadata: its ``__metadata__``.
        start: where the numbers begin, in bytes from the start of the document.
        length: the whole document, in bytes.
    """

    entries: Mapping[str, _Entry]
    metadata: dict[str, str]
    start: int
    length: int


def header_length(prefix: bytes | bytearray | memoryview) -> int:
    """The length of the header, in bytes, from the first ``PREFIX`` bytes of a document.

    Raises:
        TensorError: it cannot be a header.
    """
    length = int.from_bytes(prefix[:PREFIX], "little")
    if len(prefix) < PREFIX or not 2 <= length <= MAX_HEADER:
        raise TensorError(
            "not safetensors: its first 8 bytes must be the length of a header "
            f"of at most {MAX_HEADER} bytes, little-endian"
        )
    return length


def read_header(document: bytes | bytearray | memoryview) -> Header:
    """Read and check the header at the start of a document; the numbers need not be there yet.

    Raises:
        TensorError: the header is malformed: the text names the tensor where there is one.
    """
    start = PREFIX + header_length(document)
    if len(document) < start:
        raise TensorError(f"the safetensors header is cut off: {start} bytes announced, {len(document)} came")
    fields = _parse(bytes(document[PREFIX:start]))
    metadata = _metadata(fields.pop("__metadata__", {}))
    check_count(len(fields))
    entries = {check_name(name): _entry(name, value) for name, value in fields.items()}
    check_elements(math.prod(entry.shape) for entry in entries.values())
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != end:
            fault = "overlaps the one before it" if entry.begin < end else "leaves a hole before it"
            raise TensorError(f"its data_offsets begin at {entry.begin}: {fault}", name)
        end = entry.end
    return Header(entries, metadata, start, start + end)


def from_safetensors(document: bytes | bytearray | memoryview) -> tuple[Tensors, dict[str, str]]:
    """Read a document: the tensors in its header's order, and its metadata.

    The arrays share the document's memory; ``BF16`` is read as float32, which is exact.

    Raises:
        TensorError: the document is malformed, cut off or has bytes after its end; or a tensor is empty, not
            finite, or of a type that cannot be averaged (``BOOL``, 8-bit floats).
    """
    header = read_header(document)
    if len(document) != header.length:
        fault = "cut off" if len(document) < header.length else "followed by other bytes"
        raise TensorError(
            f"the safetensors document is {fault}: {header.length} bytes announced, {len(document)} came"
        )
    tensors: Tensors = {}
    for name, entry in header.entries.items():
        array = _view(document, header.start + entry.begin, entry)
        check_array(name, array)
        tensors[name] = array
    return tensors, header.metadata


def to_safetensors(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """Write a document; the header keeps the order of ``tensors``, the numbers lie by falling size of their type.

    Args:
        tensors: floating point or integer arrays.
        metadata: texts to put under ``__metadata__``.

    Raises:
        TensorError: it could not be read back: naming the tensor, or the header is too long.
    """
    check(tensors)
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    fields |= dict.fromkeys(tensors)
    # The widest types first: then each tensor is aligned to its own size, as the format's own library does it.
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    parts, end = [], 0
    for name in order:
        array = _little_endian(tensors[name])
        fields[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
        parts.append(array.reshape(-1).view(np.uint8).data)
    header = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % PREFIX)
    if len(header) > MAX_HEADER:
        raise TensorError(f"names and metadata take {len(header)} bytes, over the limit of {MAX_HEADER}")
    return b"".join([len(header).to_bytes(PREFIX, "little"), header, *parts])


def _parse(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except TensorError:
        raise
    except (ValueError, RecursionError) as error:
        raise TensorError(f"the safetensors header is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise TensorError("the safetensors header is not a JSON object")
    return fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _value in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise TensorError("is in the safetensors header twice", twice)
    return fields


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise TensorError("__metadata__ of safetensors must be an object of texts")
    for text in (*value, *value.values()):
        # Half of a surrogate pair passes as a JSON escape, but can be written nowhere.
        if not text.isascii() and text.encode(errors="replace").decode() != text:
            raise TensorError(f"__metadata__ of safetensors holds text that is not Unicode: {text[:40]!r}")
    return value


def _entry(name: str, value: Any) -> _Entry:
    try:
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        begin, end = offsets
    except (TypeError, KeyError, ValueError):
        raise TensorError("its header entry must have dtype, shape and two data_offsets", name) from None
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise TensorError(f"type {str(dtype)[:20]} cannot be averaged; use one of {', '.join(_DTYPES)}", name)
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_size(size) for size in shape):
        raise TensorError(f"its shape must be a list of at most {MAX_RANK} sizes", name)
    if not (_is_size(begin) and _is_size(end)):
        raise TensorError("its data_offsets must be two positions in bytes", name)
    if end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise TensorError(f"its data_offsets span {end - begin} bytes, not those of {dtype}{shape}", name)
    return _Entry(dtype, tuple(shape), begin, end)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _view(document: bytes | bytearray | memoryview, start: int, entry: _Entry) -> Array:
    dtype = _DTYPES[entry.dtype]
    flat: Array = np.frombuffer(document, dtype, math.prod(entry.shape), start)
    if entry.dtype == "BF16":
        flat = (flat.astype("<u4") << 16).view("<f4")
    return flat.reshape(entry.shape)


def _little_endian(array: Array) -> Array:
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        return array.astype(array.dtype.newbyteorder("<"))
    return array
