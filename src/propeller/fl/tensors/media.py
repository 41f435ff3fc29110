"""Which encoding to read and to write: by ``Content-Type`` and ``Accept`` (RFC 9110, sections 8.3 and 12.5.1)."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from propeller.errors import NotAcceptableError, UnsupportedTypeError
from propeller.fl.tensors.base import Tensors
from propeller.fl.tensors.json import decode_json, encode_json
from propeller.fl.tensors.safetensors import from_safetensors, to_safetensors

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
SAFETENSORS_SEQ = "application/vnd.safetensors-seq"
"""A stream of safetensors documents, one after another (``read_documents``)."""


@dataclass(frozen=True)
class Codec:
    """One encoding of tensors.

    Attributes:
        name: a short word for it, for file names and entity tags.
        decode: reads a body: tensors and metadata; raises ``TensorError``.
        encode: writes tensors and metadata.
    """

    name: str
    decode: Callable[[bytes], tuple[Tensors, dict[str, str]]]
    encode: Callable[[Tensors, Mapping[str, str]], bytes]


CODECS: dict[str, Codec] = {
    JSON: Codec("json", decode_json, encode_json),
    SAFETENSORS: Codec("safetensors", from_safetensors, to_safetensors),
}
"""Media types to codecs, the preferred one first. Another encoding is one more entry."""

_ALIASES = {"application/x-safetensors": SAFETENSORS}


def media_type(content_type: str | None) -> str:
    """The type in a ``Content-Type`` header without its parameters, lower case; empty without one."""
    bare = (content_type or "").partition(";")[0].strip().lower()
    return _ALIASES.get(bare, bare)


def codec_for(content_type: str | None, codecs: Mapping[str, Codec] = CODECS) -> Codec:
    """The codec of ``codecs`` that reads a body.

    Raises:
        UnsupportedTypeError: there is none; the text names those there are.
    """
    codec = codecs.get(media_type(content_type))
    if codec is None:
        raise UnsupportedTypeError(
            f"Content-Type {str(content_type)[:80]!r} cannot be read; send {' or '.join(codecs)}"
        )
    return codec


def decode(
    content_type: str | None, body: bytes, codecs: Mapping[str, Codec] = CODECS
) -> tuple[Tensors, dict[str, str]]:
    """Read tensors and their metadata (empty in JSON) from a body with one of ``codecs``.

    Raises:
        UnsupportedTypeError: no codec reads this type.
        TensorError: the body is malformed.
    """
    return codec_for(content_type, codecs).decode(body)


def encode(tensors: Tensors, accept: str | None = None) -> tuple[str, bytes]:
    """Write tensors as the caller would like them best.

    Args:
        tensors: what to write.
        accept: an ``Accept`` header; without one, JSON.

    Returns:
        The content type and the body.

    Raises:
        NotAcceptableError: the caller accepts none of the codecs' types.
    """
    chosen = negotiate(accept)
    return chosen, CODECS[chosen].encode(tensors, {})


def negotiate(accept: str | None, codecs: Collection[str] = CODECS) -> str:
    """The media type to answer with: the highest quality, and of equals the one that comes first in ``codecs``.

    Raises:
        NotAcceptableError: none of them is accepted.
    """
    if accept is None or not accept.strip():
        return next(iter(codecs))
    ranges = [_range(part) for part in accept.split(",") if part.strip()]
    best = max(codecs, key=lambda offered: _quality(offered, ranges))
    if _quality(best, ranges) <= 0:
        raise NotAcceptableError(f"Accept {accept[:80]!r} allows none of {', '.join(codecs)}")
    return best


def names(accept: str | None, media_type: str) -> bool:
    """Whether an ``Accept`` header itself names a type, not only by a pattern, and takes it."""
    ranges = [_range(part) for part in (accept or "").split(",")]
    return any(name == media_type and quality > 0 for name, quality in ranges)


def _range(part: str) -> tuple[str, float]:
    name, *parameters = part.split(";")
    quality = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "q":
            try:
                quality = min(1.0, max(0.0, float(value)))
            except ValueError:
                quality = 0.0
    name = name.strip().lower()
    return _ALIASES.get(name, name), quality


def _quality(offered: str, ranges: list[tuple[str, float]]) -> float:
    # The most specific range that matches decides, not the most generous one.
    for pattern in (offered, f"{offered.partition('/')[0]}/*", "*/*"):
        matching = [quality for name, quality in ranges if name == pattern]
        if matching:
            return max(matching)
    return 0.0
