"""The safetensors format in plain Python: 8 bytes of header length, a JSON header, then the raw elements, little-endian.

Format: https://github.com/huggingface/safetensors (section Format). Read here and not by that project's library
because the library gives no metadata from bytes, reads no streams, and forgets the order of the tensors; the tests
hold the two against each other (docs/decisions/0040). Who reads or writes arrays builds them on this header:
``fl.tensors.safetensors`` and ``files``.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from propeller.tensors.limits import check_count, check_elements, check_name
from propeller.tensors.shapes import MAX_RANK, TensorError

PREFIX = 8
"""Bytes of the header's length, an unsigned 64-bit integer."""

MAX_HEADER = 16 * 1024 * 1024
"""The longest header that is read, in bytes."""

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "BOOL": 1,
}
"""Bytes an element, by the format's name of its type."""


@dataclass(frozen=True)
class Entry:
    """One tensor: its type, its shape, and where its elements are, in bytes from the first tensor's."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The header of a document: what follows it, and how much.

    Attributes:
        entries: tensor names to type, shape and place, in the header's order.
        metadata: its ``__metadata__``.
        start: where the numbers begin, in bytes from the start of the document.
        length: the whole document, in bytes.
    """

    entries: Mapping[str, Entry]
    metadata: dict[str, str]
    start: int
    length: int

    def check_length(self, length: int) -> None:
        """Refuse a document of another length.

        Raises:
            TensorError: it is cut off, or has bytes after its end.
        """
        if length != self.length:
            fault = "cut off" if length < self.length else "followed by other bytes"
            raise TensorError(
                f"the safetensors document is {fault}: {self.length} bytes announced, {length} came"
            )


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


def read_header(document: bytes | bytearray | memoryview, check_dtype: Callable[[str, Any], None]) -> Header:
    """Read and check the header at the start of a document; the numbers need not be there yet, and there may be no tensors.

    Args:
        document: at least its prefix and header.
        check_dtype: called with a tensor's name and type; raises TensorError for a type that the caller does not
            take, and for what is none of ``ITEM_BYTES``.

    Raises:
        TensorError: the header is malformed: the text names the tensor where there is one.
    """
    start = PREFIX + header_length(document)
    if len(document) < start:
        raise TensorError(f"the safetensors header is cut off: {start} bytes announced, {len(document)} came")
    fields = _parse(bytes(document[PREFIX:start]))
    metadata = _metadata(fields.pop("__metadata__", {}))
    check_count(len(fields), least=0)
    entries = {check_name(name): _entry(name, value, check_dtype) for name, value in fields.items()}
    check_elements(math.prod(entry.shape) for entry in entries.values())
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            fault = "overlaps the one before it" if entry.begin < end else "leaves a hole before it"
            raise TensorError(f"its data_offsets begin at {entry.begin}: {fault}", name)
        end = entry.end
    return Header(entries, metadata, start, start + end)


def write_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, list[str]]:
    """Write the prefix and header of a document.

    Args:
        tensors: names to type and shape, in the order that the header keeps.
        metadata: texts to put under ``__metadata__``.

    Returns:
        The bytes, and the names in the order in which the tensors' elements must follow: by falling size of their type.

    Raises:
        TensorError: the header is too long to be read back.
    """
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    fields |= dict.fromkeys(tensors)
    # The widest types first: then each tensor is aligned to its own size, as the format's own library does it.
    order = sorted(tensors, key=lambda name: -ITEM_BYTES[tensors[name][0]])
    end = 0
    for name in order:
        dtype, shape = tensors[name]
        begin, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return _encode_header(fields), order


def encode_header(header: Header, metadata: Mapping[str, str]) -> bytes:
    """A document's prefix and header with other metadata: its numbers may follow as they are.

    Raises:
        TensorError: the header is too long to be read back.
    """
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, entry in header.entries.items():
        fields[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.begin, entry.end],
        }
    return _encode_header(fields)


def replace_metadata(document: bytes | memoryview, metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """The prefix and header of a document with other metadata, and where its numbers begin, which may follow as they are.

    Only prefix and header of ``document`` are looked at.

    Raises:
        TensorError: it has no readable header, or the new one is too long to be read back.
    """
    start = PREFIX + header_length(document)
    if len(document) < start:
        raise TensorError(f"the safetensors header is cut off: {start} bytes announced, {len(document)} came")
    fields = _parse(bytes(document[PREFIX:start]))
    fields["__metadata__"] = dict(metadata)
    return _encode_header(fields), start


def _encode_header(fields: dict[str, Any]) -> bytes:
    """The prefix and the header, filled up so that the elements are aligned."""
    try:
        header = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise TensorError("the safetensors header holds text that is not Unicode") from None
    header += b" " * (-len(header) % PREFIX)
    if len(header) > MAX_HEADER:
        raise TensorError(f"names and metadata take {len(header)} bytes, over the limit of {MAX_HEADER}")
    return len(header).to_bytes(PREFIX, "little") + header


def _parse(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text, object_pairs_hook=_unique_fields, parse_constant=_refuse_constant)
    except TensorError:
        raise
    except (ValueError, RecursionError) as error:
        raise TensorError(f"the safetensors header is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise TensorError("the safetensors header is not a JSON object")
    return fields


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = sorted(name for name, _value in pairs)
        twice = next(name for name, other in itertools.pairwise(names) if name == other)
        raise TensorError("is in the safetensors header twice", twice)
    return fields


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise TensorError("__metadata__ of safetensors must be an object of texts")
    for text in (*value, *value.values()):
        # Half of a surrogate pair passes as a JSON escape, but can be written nowhere.
        if not text.isascii() and text.encode(errors="replace").decode() != text:
            raise TensorError(f"__metadata__ of safetensors holds text that is not Unicode: {text[:40]!r}")
    return value


def _entry(name: str, value: Any, check_dtype: Callable[[str, Any], None]) -> Entry:
    try:
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        begin, end = offsets
    except (TypeError, KeyError, ValueError):
        raise TensorError("its header entry must have dtype, shape and two data_offsets", name) from None
    check_dtype(name, dtype)
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_size(size) for size in shape):
        raise TensorError(f"its shape must be a list of at most {MAX_RANK} sizes", name)
    if not (_is_size(begin) and _is_size(end)):
        raise TensorError("its data_offsets must be two positions in bytes", name)
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise TensorError(f"its data_offsets span {end - begin} bytes, not those of {dtype}{shape}", name)
    return Entry(dtype, tuple(shape), begin, end)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
