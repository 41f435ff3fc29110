"""Updates in JSON, CBOR or safetensors: decoded to a header and tensors, which become one durable form.

CBOR (RFC 8949) is a map of the JSON field names; arrays may also be typed arrays (RFC 8746).
"""

import asyncio
import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import cbor2
import numpy as np

from propeller.coordinator.cbor_limits import check_counts
from propeller.coordinator.content_coding import decompress
from propeller.coordinator.transfer import Transfer, transfer_of
from propeller.errors import InvalidError, UnprocessableError, UnsupportedTypeError
from propeller.fl.compression import Description, read_description
from propeller.fl.compression import decode_update as decompress_tensors
from propeller.fl.tensors import (
    JSON,
    SAFETENSORS,
    Array,
    Specs,
    TensorError,
    Tensors,
    check_ranges,
    check_shapes,
    check_tensors,
    from_json,
    from_safetensors,
    media_type,
    shapes_of,
    to_base_dtypes,
    to_safetensors,
)
from propeller.fl.tensors.safetensors import read_header
from propeller.process.decoding import decode_in_thread
from propeller.process.files import DurableFile
from propeller.protocol.updates import CBOR, CBOR_TYPES, UpdateHeader, UpdateMessage, read_update_fields
from propeller.protocol.wire import MalformedMessageError, decode_object, read_count
from propeller.web.limits import MAX_BODY

NO_TENSORS = "update: Field required: update data is required and cannot be empty"
"""Of an update in a round of training."""

MESSAGE = "message"
"""In the place of a media type, for what came over MQTT: JSON or safetensors, as its first byte tells."""

_THREAD_FROM_BYTES = 256 * 1024
"""Bodies above this are read in a thread, so that others are answered meanwhile."""

_SHARING_TAGS = (28, 29, 25, 256)
"""References inside a document: a few bytes could stand for endless ones."""

_MULTI_DIMENSIONAL_TAG = 40
_TYPED_ARRAYS: dict[int, str] = {
    64: "u1", 65: ">u2", 66: ">u4", 67: ">u8", 68: "u1", 69: "<u2", 70: "<u4", 71: "<u8",
    72: "i1", 73: ">i2", 74: ">i4", 75: ">i8", 77: "<i2", 78: "<i4", 79: "<i8",
    80: ">f2", 81: ">f4", 82: ">f8", 84: "<f2", 85: "<f4", 86: "<f8",
}  # fmt: skip
"""RFC 8746, section 2.1: tag to numpy type, without the 128-bit floats."""


@dataclass(frozen=True)
class SentTensors:
    """The tensors of a compressed update.

    Attributes:
        description: what they stand for.
        read: reads them, as they came.
    """

    description: Description
    read: Callable[[], Tensors]


@dataclass(frozen=True)
class ReceivedUpdate:
    """An update as it came.

    Attributes:
        header: everything but the tensors.
        read_tensors: reads the tensors, which may be large and not needed; in JSON, by the base model's dtypes. ``None``
            for an evaluation, which has none.
        size: of the body, in bytes, without content coding.
        transfer: how it came; evaluations of the coordinator's own did not.
        sent: what came of its tensors, if it is compressed.
    """

    header: UpdateHeader
    read_tensors: Callable[[Specs], Tensors] | None
    size: int
    transfer: Transfer | None = None
    sent: SentTensors | None = None


@dataclass(frozen=True)
class UpdateDocument:
    """An update's tensors as they are stored: a safetensors document, and the digest that tells it from others.

    The digest is of the round, the sender, its number of samples and its tensors: what the aggregate is made of. The
    metrics and the encoding it came in are not part of it.

    Attributes:
        digest: of the content.
        content: the document, of a large one in a file that is not committed yet.
        size: of the content, in bytes.
    """

    digest: str
    content: bytes | DurableFile
    size: int

    def close(self) -> None:
        """Remove a file that was not kept."""
        if isinstance(self.content, DurableFile):
            self.content.close()


def evaluation_digest(header: UpdateHeader) -> str:
    """What tells an evaluation from others: a digest of what it says."""
    text = header.model_dump_json(include={"round_id", "proplet_id", "num_samples", "metrics"})
    return hashlib.sha256(text.encode()).hexdigest()


async def decode_update(
    content_type: str | None, body: bytes, *, coding: str | None = None, max_bytes: int = MAX_BODY
) -> ReceivedUpdate:
    """Read an update, but for its tensors.

    Args:
        content_type: its media type; of an MQTT message ``MESSAGE``.
        body: the update.
        coding: ``zstd`` if the body is compressed by it.
        max_bytes: the longest body without content coding.

    Raises:
        InvalidError: a field is missing or wrong, or the body is not of its type.
        TooLargeError: it is too long.
        UnsupportedTypeError: updates of this type are not supported.
    """
    if coding is not None or len(body) > _THREAD_FROM_BYTES:  # a short body may be long without its coding
        read = functools.partial(read_update, content_type, coding=coding, max_bytes=max_bytes)
        return await decode_in_thread(read, body)
    return read_update(content_type, body, coding=coding, max_bytes=max_bytes)


async def make_document(update: ReceivedUpdate, base: Specs) -> UpdateDocument:
    """Check an update's tensors against the base model and write them in the form in which they are stored.

    That is in the base model's dtypes where they lose nothing by it, so that an update is the same one in each encoding and as small
    as the base model; else as they came, and the strategy rounds what it makes of them (docs/decisions/0130).

    Raises:
        InvalidError: they are malformed.
        UnprocessableError: they do not fit the base model; the text names the tensor.
    """
    if update.sent is not None or update.size > _THREAD_FROM_BYTES:
        return await asyncio.to_thread(to_document, update, base)
    return to_document(update, base)


def check_fits(tensors: Tensors | Specs, base: Specs) -> None:
    """Check tensors, or what is known of them, against the names and shapes of the base model.

    Raises:
        UnprocessableError: naming the tensor.
    """
    try:
        check_shapes(tensors, shapes_of(base))
    except TensorError as error:
        raise UnprocessableError(f"update does not fit the base model: {error}") from None


def read_update(
    content_type: str | None, body: bytes, *, coding: str | None = None, max_bytes: int = MAX_BODY
) -> ReceivedUpdate:
    """As ``decode_update``, without a thread however long the body is."""
    if coding is None:
        return _read_update(content_type, body)
    update = _read_update(content_type, decompress(body, max_bytes))
    return replace(update, transfer=update.transfer and update.transfer.with_coding(coding, len(body)))


def _read_update(content_type: str | None, body: bytes) -> ReceivedUpdate:
    if content_type == MESSAGE:
        content_type = JSON if body[:1] == b"{" else SAFETENSORS
    kind = media_type(content_type)
    if kind in CBOR_TYPES:
        return _from_fields(_decode_cbor(body), len(body))
    if kind == JSON:
        return _from_fields(read_update_fields(body), len(body))
    if kind == SAFETENSORS:
        return _from_safetensors(body)
    raise UnsupportedTypeError(
        f"Content-Type {kind[:80]!r} cannot be read; send {JSON}, {SAFETENSORS} or {CBOR}"
    )


def to_document(update: ReceivedUpdate, base: Specs) -> UpdateDocument:
    """As ``make_document``, without a thread however large the update is."""
    if update.read_tensors is None:
        raise InvalidError(NO_TENSORS)
    try:
        tensors = update.read_tensors(base)
        check_tensors(tensors)
    except TensorError as error:
        raise InvalidError(f"update: {error}") from None
    check_fits(tensors, base)
    header = update.header
    if header.kind == "weights":  # a difference of unsigned integers may be negative
        try:
            check_ranges(tensors, base)
        except TensorError as error:
            raise UnprocessableError(f"update does not fit the base model: {error}") from None
    # In the base model's order, so that one update has one digest however its tensors were ordered.
    content = to_safetensors(
        to_base_dtypes(tensors, base),
        {
            "num_samples": str(header.num_samples),
            "proplet_id": header.proplet_id,
            "round_id": header.round_id,
        },
    )
    return UpdateDocument(hashlib.sha256(content).hexdigest(), content, len(content))


def _from_fields(fields: Mapping[str, Any], size: int) -> ReceivedUpdate:
    if "update" not in fields:
        return ReceivedUpdate(UpdateHeader.decode(fields), None, size, Transfer(size, size))
    return received_message(UpdateMessage.decode(fields), size)


def received_message(update: UpdateMessage, size: int) -> ReceivedUpdate:
    """What ``read_update`` gives of an update in JSON of so many bytes, which was read already."""

    def read_tensors(base: Specs) -> Tensors:
        nested, typed = _split_typed_arrays(update.update)
        if not typed:
            return from_json(nested, base)
        return {**(from_json(nested, base) if nested else {}), **typed}

    return ReceivedUpdate(update, read_tensors, size, Transfer(size, size))


def _from_safetensors(body: bytes) -> ReceivedUpdate:
    try:
        metadata: dict[str, Any] = dict(read_header(body).metadata)
        description = read_description(metadata["compression"]) if "compression" in metadata else None
    except TensorError as error:
        raise InvalidError(f"update: {error}") from None
    for field in ("num_samples", "steps"):
        number = read_count(metadata.get(field, ""), 16)
        if number is not None:
            metadata[field] = number
    if "metrics" in metadata:
        try:
            metadata["metrics"] = read_update_fields(metadata["metrics"], ("metrics",))
        except MalformedMessageError as error:
            text = str(error)
            raise InvalidError(text if text.startswith("metrics") else f"metrics: {text}") from None
    if "metrics_left_out" in metadata:
        try:
            metadata["metrics_left_out"] = decode_object(metadata["metrics_left_out"])
        except MalformedMessageError as error:
            raise InvalidError(f"metrics_left_out: {error}") from None
    header = UpdateHeader.decode(metadata)
    size = len(body)
    transfer = transfer_of(size, description)
    if description is None:
        return ReceivedUpdate(header, lambda _base: from_safetensors(body)[0], size, transfer)
    if header.kind != "delta":
        raise InvalidError(f"kind: a compressed update is a delta, this one says {header.kind!r}")

    sent = SentTensors(description, lambda: from_safetensors(body)[0])
    return ReceivedUpdate(
        header, lambda base: decompress_tensors(sent.read(), description, base), size, transfer, sent
    )


def _decode_cbor(body: bytes) -> dict[str, Any]:
    """Read a CBOR map as plain values, typed arrays as numpy arrays in native byte order.

    Raises:
        MalformedMessageError: it is not CBOR, not one map, or contains what JSON cannot express.
    """
    check_counts(body)
    refused = dict.fromkeys(_SHARING_TAGS, _refuse_sharing)
    try:
        value = cbor2.loads(body, tag_hook=_read_tag, semantic_decoders=refused, max_depth=64)
    except (cbor2.CBORDecodeError, ValueError, RecursionError) as error:
        raise MalformedMessageError(f"Invalid CBOR: {error.__cause__ or error}") from None
    if not isinstance(value, dict):
        raise MalformedMessageError(f"expected a CBOR map, got {type(value).__name__}")
    plain: dict[str, Any] = _to_plain(value, "body")
    return plain


def _split_typed_arrays(named: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Split tensors into those in nested lists and those that came as typed arrays."""
    typed = {name: value for name, value in named.items() if isinstance(value, np.ndarray)}
    for name, value in named.items():
        if name not in typed and _contains_array(value):
            raise TensorError(
                "typed arrays inside lists are not supported; use one multi-dimensional array", name
            )
    return {name: value for name, value in named.items() if name not in typed}, typed


def _contains_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (isinstance(value, list) and any(map(_contains_array, value)))


def _refuse_sharing(_value: Any, _immutable: bool) -> NoReturn:
    raise ValueError("shared references are not supported")


def _read_tag(tag: cbor2.CBORTag, _immutable: bool) -> Any:
    if tag.tag in _TYPED_ARRAYS and isinstance(tag.value, bytes):
        array = np.frombuffer(tag.value, _TYPED_ARRAYS[tag.tag])
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if tag.tag == _MULTI_DIMENSIONAL_TAG:
        try:
            shape, data = tag.value
            return np.asarray(data).reshape([int(size) for size in shape])
        except (TypeError, ValueError):
            raise ValueError("a multi-dimensional array does not have the size of its dimensions") from None
    raise ValueError(f"tag {tag.tag} is not supported")


def _to_plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, str | int | float | np.ndarray):
        return value
    if isinstance(value, list):
        return [_to_plain(item, where) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise MalformedMessageError(f"{where}: the keys of a map must be text")
        return {key: _to_plain(item, key) for key, item in value.items()}
    raise MalformedMessageError(f"{where}: {type(value).__name__} is not supported; use what JSON has")
