"""Updates as CBOR (RFC 8949): a map of the JSON field names; arrays also as typed arrays (RFC 8746)."""

from typing import Any, NoReturn

import cbor2
import numpy as np

from propeller.fl.tensors import Array, TensorError
from propeller.protocol.wire import MalformedMessageError

_SHARING_TAGS = (28, 29, 25, 256)
"""References inside a document: a few bytes could stand for endless ones."""

_MULTI_DIMENSIONAL = 40
_TYPED: dict[int, str] = {
    64: "u1", 65: ">u2", 66: ">u4", 67: ">u8", 68: "u1", 69: "<u2", 70: "<u4", 71: "<u8",
    72: "i1", 73: ">i2", 74: ">i4", 75: ">i8", 77: "<i2", 78: "<i4", 79: "<i8",
    80: ">f2", 81: ">f4", 82: ">f8", 84: "<f2", 85: "<f4", 86: "<f8",
}  # fmt: skip
"""RFC 8746, section 2.1: tag to numpy type, without the 128-bit floats."""


def decode_cbor(body: bytes) -> dict[str, Any]:
    """Read a CBOR map as plain values, typed arrays as numpy arrays in native byte order.

    Raises:
        MalformedMessageError: it is not CBOR, not one map, or holds what JSON has no word for.
    """
    refused = dict.fromkeys(_SHARING_TAGS, _refuse_sharing)
    try:
        value = cbor2.loads(body, tag_hook=_read_tag, semantic_decoders=refused, max_depth=64)
    except (cbor2.CBORDecodeError, ValueError, RecursionError) as error:
        raise MalformedMessageError(f"Invalid CBOR: {error.__cause__ or error}") from None
    if not isinstance(value, dict):
        raise MalformedMessageError(f"expected a CBOR map, got {type(value).__name__}")
    plain: dict[str, Any] = _plain(value, "body")
    return plain


def cbor_tensors(named: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Split tensors into those in nested lists and those that came as typed arrays."""
    typed = {name: value for name, value in named.items() if isinstance(value, np.ndarray)}
    for name, value in named.items():
        if name not in typed and _holds_array(value):
            raise TensorError(
                "typed arrays inside lists are not taken; use one multi-dimensional array", name
            )
    return {name: value for name, value in named.items() if name not in typed}, typed


def _holds_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (isinstance(value, list) and any(map(_holds_array, value)))


def _refuse_sharing(_value: Any, _immutable: bool) -> NoReturn:
    raise ValueError("shared references are not taken")


def _read_tag(tag: cbor2.CBORTag, _immutable: bool) -> Any:
    if tag.tag in _TYPED and isinstance(tag.value, bytes):
        array = np.frombuffer(tag.value, _TYPED[tag.tag])
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if tag.tag == _MULTI_DIMENSIONAL:
        try:
            shape, data = tag.value
            return np.asarray(data).reshape([int(size) for size in shape])
        except (TypeError, ValueError):
            raise ValueError("a multi-dimensional array does not have the size of its dimensions") from None
    raise ValueError(f"tag {tag.tag} is not taken")


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, str | int | float | np.ndarray):
        return value
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise MalformedMessageError(f"{where}: the keys of a map must be text")
        return {key: _plain(item, key) for key, item in value.items()}
    raise MalformedMessageError(f"{where}: {type(value).__name__} is not taken; use what JSON has")
