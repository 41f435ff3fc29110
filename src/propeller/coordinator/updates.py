"""Reading updates: JSON, CBOR or safetensors in; a header, and one durable form of the tensors, out."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from propeller.coordinator.cbor import cbor_tensors, decode_cbor
from propeller.errors import InvalidError, UnprocessableError, UnsupportedTypeError
from propeller.fl.tensors import (
    JSON,
    SAFETENSORS,
    TensorError,
    Tensors,
    check,
    check_fits,
    from_json,
    from_safetensors,
    media_type,
    to_safetensors,
)
from propeller.fl.tensors.safetensors import read_header
from propeller.protocol.rounds import CBOR, CBOR_TYPES, UpdateHeader, UpdateMessage
from propeller.protocol.wire import MalformedMessageError, decode_object

MAX_METRICS = 64 * 1024
"""The longest metrics of an update, in bytes of JSON: they are in every answer about the round."""

_LARGE = 256 * 1024
"""Bodies above this are read in a thread; in bytes."""

Shapes = dict[str, tuple[int, ...]]
"""The names and shapes of a model's tensors, in its order."""


@dataclass(frozen=True)
class Incoming:
    """An update as it came: its header, and its tensors still to be read (they may be large, and unwanted)."""

    header: UpdateHeader
    tensors: Callable[[], Tensors]
    size: int
    """Of the body, in bytes."""


@dataclass(frozen=True)
class Document:
    """An update's tensors as they are kept: a safetensors document, and the digest that tells it from others.

    The digest is of the round, the sender, its number of samples and its tensors: what the aggregate is made of. The
    metrics and the encoding it came in are not part of it.
    """

    digest: str
    content: bytes


async def read_update(content_type: str | None, body: bytes) -> Incoming:
    """``parse_update``, in a thread if the body is large, so that others are answered meanwhile."""
    if len(body) > _LARGE:
        return await asyncio.to_thread(parse_update, content_type, body)
    return parse_update(content_type, body)


async def read_document(incoming: Incoming, base: Shapes) -> Document:
    """``make_document``, in a thread if the update is large."""
    if incoming.size > _LARGE:
        return await asyncio.to_thread(make_document, incoming, base)
    return make_document(incoming, base)


def parse_update(content_type: str | None, body: bytes) -> Incoming:
    """Read an update by its media type.

    Raises:
        MalformedMessageError: a field is missing or wrong.
        InvalidError: the body is not of its type; 415, the type is none of ours.
    """
    kind = media_type(content_type)
    if kind in CBOR_TYPES:
        return _from_fields(decode_cbor(body), len(body))
    if kind == JSON:
        try:
            return _from_fields(decode_object(body), len(body))
        except MalformedMessageError as error:
            raise InvalidError(str(error)) from None
    if kind == SAFETENSORS:
        return _from_document(body)
    raise UnsupportedTypeError(
        f"Content-Type {kind[:80]!r} cannot be read; send {JSON}, {SAFETENSORS} or {CBOR}"
    )


def make_document(incoming: Incoming, base: Shapes) -> Document:
    """Check an update's tensors against the base model and write them in the one form that is kept.

    Raises:
        InvalidError: they are malformed; 422, they do not fit: the text names the tensor.
    """
    try:
        tensors = incoming.tensors()
        check(tensors)
    except TensorError as error:
        raise InvalidError(f"update: {error}") from None
    check_shapes(tensors, base)
    header = incoming.header
    # In the base model's order, so that one update has one digest however its tensors were ordered.
    content = to_safetensors(
        {name: tensors[name] for name in base},
        {
            "num_samples": str(header.num_samples),
            "proplet_id": header.proplet_id,
            "round_id": header.round_id,
        },
    )
    return Document(hashlib.sha256(content).hexdigest(), content)


def check_shapes(tensors: Tensors, base: Shapes) -> None:
    """Check tensors against the names and shapes of the base model.

    Raises:
        UnprocessableError: naming the tensor.
    """
    try:
        # Arrays of the right shapes that take no memory.
        check_fits(tensors, {name: np.broadcast_to(np.float32(0), shape) for name, shape in base.items()})
    except TensorError as error:
        raise UnprocessableError(f"update does not fit the base model: {error}") from None


def _from_fields(fields: Mapping[str, Any], size: int) -> Incoming:
    update = UpdateMessage.decode(fields)
    _check_metrics(update.metrics)

    def tensors() -> Tensors:
        nested, typed = cbor_tensors(update.update)
        if not typed:
            return from_json(nested)
        return {**(from_json(nested) if nested else {}), **typed}

    return Incoming(update, tensors, size)


def _from_document(body: bytes) -> Incoming:
    try:
        metadata: dict[str, Any] = dict(read_header(body).metadata)
    except TensorError as error:
        raise InvalidError(f"update: {error}") from None
    samples = metadata.get("num_samples", "")
    if samples.isascii() and samples.isdigit() and len(samples) <= 16:
        metadata["num_samples"] = int(samples)
    if "metrics" in metadata:
        try:
            metadata["metrics"] = decode_object(metadata["metrics"])
        except MalformedMessageError as error:
            raise InvalidError(f"metrics: {error}") from None
    header = UpdateHeader.decode(metadata)
    _check_metrics(header.metrics)
    return Incoming(header, lambda: from_safetensors(body)[0], len(body))


def _check_metrics(metrics: dict[str, Any]) -> None:
    try:
        size = len(json.dumps(metrics, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise InvalidError("metrics: must be plain JSON values without NaN") from None
    if size > MAX_METRICS:
        raise InvalidError(f"metrics: {size} bytes are over the limit of {MAX_METRICS} bytes")
