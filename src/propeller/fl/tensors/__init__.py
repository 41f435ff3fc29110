"""Tensors: what a model is, and its encodings."""

from propeller.fl.tensors.base import (
    FREE,
    Shapes,
    Specs,
    Tensors,
    TensorSpec,
    check_ranges,
    check_shapes,
    check_tensors,
    shapes_of,
    specs_of,
    to_base_dtypes,
)
from propeller.fl.tensors.dtypes import DTYPES, Array, Float64, bounds, is_floating, is_integer, name_of
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
    to_safetensors,
)
from propeller.tensors.shapes import TensorError

__all__ = [
    "CODECS",
    "DTYPES",
    "FREE",
    "JSON",
    "SAFETENSORS",
    "SAFETENSORS_SEQ",
    "Array",
    "Codec",
    "DocumentTooLargeError",
    "Float64",
    "Shapes",
    "Specs",
    "TensorError",
    "TensorSpec",
    "Tensors",
    "bounds",
    "check_ranges",
    "check_shapes",
    "check_tensors",
    "codec_for",
    "decode",
    "encode",
    "from_json",
    "from_safetensors",
    "is_floating",
    "is_integer",
    "media_type",
    "name_of",
    "negotiate",
    "read_documents",
    "shapes_of",
    "specs_of",
    "to_base_dtypes",
    "to_json",
    "to_safetensors",
]
