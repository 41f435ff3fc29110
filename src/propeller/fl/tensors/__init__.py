"""Tensors: what a model is, and its encodings."""

from propeller.fl.tensors.base import Array, Shapes, Specs, Tensors, check_shapes, check_tensors, shapes_of
from propeller.fl.tensors.json import from_json, to_json
from propeller.fl.tensors.media import (
    CODECS,
    JSON,
    SAFETENSORS,
    SAFETENSORS_SEQ,
    Codec,
    codec_for,
    decode,
    encode,
    media_type,
    negotiate,
)
from propeller.fl.tensors.safetensors import (
    DocumentTooLargeError,
    from_safetensors,
    read_documents,
    specs_of,
    to_safetensors,
)
from propeller.tensors.shapes import TensorError

__all__ = [
    "CODECS",
    "JSON",
    "SAFETENSORS",
    "SAFETENSORS_SEQ",
    "Array",
    "Codec",
    "DocumentTooLargeError",
    "Shapes",
    "Specs",
    "TensorError",
    "Tensors",
    "check_shapes",
    "check_tensors",
    "codec_for",
    "decode",
    "encode",
    "from_json",
    "from_safetensors",
    "media_type",
    "negotiate",
    "read_documents",
    "shapes_of",
    "specs_of",
    "to_json",
    "to_safetensors",
]
