"""Tensors: what a model is, and its encodings."""

from propeller.fl.tensors.base import Array, Tensors, check, check_fits
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
from propeller.fl.tensors.safetensors import from_safetensors, to_safetensors
from propeller.fl.tensors.stream import DocumentTooLargeError, read_documents
from propeller.tensors.shapes import TensorError

__all__ = [
    "CODECS",
    "JSON",
    "SAFETENSORS",
    "SAFETENSORS_SEQ",
    "Array",
    "Codec",
    "DocumentTooLargeError",
    "TensorError",
    "Tensors",
    "check",
    "check_fits",
    "codec_for",
    "decode",
    "encode",
    "from_json",
    "from_safetensors",
    "media_type",
    "negotiate",
    "read_documents",
    "to_json",
    "to_safetensors",
]
