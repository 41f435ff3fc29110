"""Manifests and descriptors of the OCI image specification 1.1, as far as a program needs them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from propeller.digests import digest_of, is_digest
from propeller.native_program import HEAD
from propeller.oci.errors import UnsupportedArtifactError
from propeller.protocol.programs import WASM_MAGIC

IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"
UNKNOWN_ARTIFACT = "application/vnd.unknown.artifact.v1"
WASM = "application/wasm"
NATIVE = "application/vnd.propeller.native.v1+json"
"""Of a native program, and of its artifact."""

REQUIREMENTS = "propeller.requirements"
"""The annotation of a native program's layer: what it requires, as JSON."""

RUNTIME = "application/vnd.propeller.runtime.v1"
"""Of a layer with the shared runtime that a program names: not Wasm, so that an artifact has one program for everybody."""

TITLE = "org.opencontainers.image.title"
REF_NAME = "org.opencontainers.image.ref.name"

ACCEPTED_TYPES = f"{IMAGE_MANIFEST}, {DOCKER_MANIFEST}, {IMAGE_INDEX}, {DOCKER_LIST}"
"""What a manifest request accepts; indexes too, so that an error can say that it is one."""

_HOW_TO_PUSH = "push one file with `propeller push FILE.wasm REFERENCE` or `oras push REFERENCE FILE.wasm:application/wasm`"


@dataclass(frozen=True)
class Descriptor:
    """What names a blob: its media type, digest (``sha256:…``) and size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, media_type: str, data: bytes, annotations: Mapping[str, str] | None = None) -> "Descriptor":
        """The descriptor of a blob."""
        return cls(media_type, digest_of(data), len(data), annotations or {})

    @classmethod
    def from_json(cls, value: Any) -> "Descriptor":
        """Read a descriptor from decoded JSON.

        Raises:
            ValueError: it is not one, or its digest is not sha256.
        """
        fields = value if isinstance(value, dict) else {}
        media_type, digest, size = (fields.get(name) for name in ("mediaType", "digest", "size"))
        if (
            not isinstance(media_type, str)
            or not isinstance(digest, str)
            or type(size) is not int
            or size < 0
        ):
            raise ValueError("a descriptor needs mediaType, digest and size")
        if not is_digest(digest):
            raise ValueError(f"the digest {digest[:80]!r} is not a sha256 digest")
        annotations = fields.get("annotations")
        texts = annotations.items() if isinstance(annotations, dict) else ()
        return cls(media_type, digest, size, {str(key): str(text) for key, text in texts})

    def to_json(self) -> dict[str, Any]:
        """Its form in JSON."""
        plain: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return {**plain, "annotations": dict(self.annotations)} if self.annotations else plain


EMPTY = b"{}"
"""The empty configuration of an artifact (image specification, "Guidance for an Empty Descriptor")."""


def program_manifest(layer: Descriptor, runtime: Descriptor | None = None) -> bytes:
    """The manifest that ``oras push REF file.wasm:application/wasm`` makes, for a layer with a title; with the runtime that the program needs.

    The creation time that oras adds is left out, so that the same program always has the same manifest digest.
    """
    document = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "artifactType": artifact_type(layer),
        "config": {**Descriptor.of(EMPTY_CONFIG, EMPTY).to_json(), "data": "e30="},
        "layers": [one.to_json() for one in (layer, runtime) if one is not None],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def artifact_type(layer: Descriptor) -> str:
    """The type of the artifact that a program's layer is in."""
    return NATIVE if layer.media_type == NATIVE else UNKNOWN_ARTIFACT


_WASM_PLATFORMS = {"wasm", "wasm32", "wasi", "wasip1", "wasip2"}
"""Of images for Wasm, as architecture or operating system."""

_NO_PLATFORM = {"", "unknown"}
"""Of what is beside the images in an index, as attestations."""


def select_from_index(data: bytes, what: str) -> str | None:
    """The digest of the only manifest in an image index that can be a program's; ``None`` if this is no index.

    Raises:
        UnsupportedArtifactError: there is none, or more than one.
    """
    document = _read_object(data, what)
    if not _is_index(document):
        return None
    entries = document.get("manifests")
    found = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    platforms = [(one, _platform(one)) for one in found]
    wasm = [one for one, platform in platforms if _WASM_PLATFORMS & platform]
    any_at_all = [one for one, platform in platforms if platform - _NO_PLATFORM or "platform" not in one]
    candidates = wasm or any_at_all
    digests = [str(one.get("digest")) for one in candidates]
    if len(digests) == 1 and is_digest(digests[0]):
        return digests[0]
    names = ", ".join(sorted("/".join(sorted(platform)) or "none" for _one, platform in platforms)) or "none"
    raise UnsupportedArtifactError(
        f"{what} is an image index with {len(candidates)} images for Wasm instead of one (its platforms: {names[:200]})",
        _HOW_TO_PUSH,
    )


def _platform(entry: dict[str, Any]) -> set[str]:
    platform = entry.get("platform")
    named = platform if isinstance(platform, dict) else {}
    return {str(named[field]).lower() for field in ("architecture", "os") if field in named}


def _is_index(document: dict[str, Any]) -> bool:
    return document.get("mediaType") in (IMAGE_INDEX, DOCKER_LIST) or "manifests" in document


def _read_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise UnsupportedArtifactError(f"{what}: its manifest is not a JSON object", _HOW_TO_PUSH)
    return document


def read_layers(data: bytes, what: str) -> list[Descriptor]:
    """The layers of a manifest; ``what`` names it in errors.

    Raises:
        UnsupportedArtifactError: it is an index, or not a manifest at all.
    """
    document = _read_object(data, what)
    if _is_index(document):
        raise UnsupportedArtifactError(f"{what} is an image index in an image index", _HOW_TO_PUSH)
    found = document.get("layers")
    if not isinstance(found, list):
        raise UnsupportedArtifactError(f"{what}: its manifest has no layers", _HOW_TO_PUSH)
    try:
        return [Descriptor.from_json(layer) for layer in found]
    except ValueError as error:
        raise UnsupportedArtifactError(
            f"{what}: its manifest has a layer that cannot be read: {error}", _HOW_TO_PUSH
        ) from None


def is_program_type(media_type: str) -> bool:
    """Whether a layer's media type says Wasm (those of oras, wasm-to-oci, and the CNCF's artifact layout), or a native program."""
    kind = media_type.lower().partition(";")[0].strip()
    return kind in {WASM, NATIVE} or kind.startswith("application/vnd.wasm.") or kind.endswith("+wasm")


def select_program(candidates: list[Descriptor], what: str, all_layers: list[Descriptor]) -> Descriptor:
    """The only candidate.

    Raises:
        UnsupportedArtifactError: there is none or more than one; the text says which media types there are.
    """
    if len(candidates) == 1:
        return candidates[0]
    types = ", ".join(sorted({layer.media_type for layer in all_layers})) or "none"
    count = "no Wasm layer" if not candidates else f"{len(candidates)} Wasm layers instead of one"
    raise UnsupportedArtifactError(f"{what} has {count} (its layers: {types})", _HOW_TO_PUSH)


HEAD_BYTES = max(len(WASM_MAGIC), len(HEAD))
"""So many bytes of a file tell whether it is a program."""


def check_program(head: bytes, what: str) -> None:
    r"""Refuse bytes that begin neither as a Wasm module or component does (``\0asm``), nor as a native program.

    Raises:
        UnsupportedArtifactError: they do not.
    """
    if not head.startswith((WASM_MAGIC, HEAD)):
        raise UnsupportedArtifactError(
            f"{what}: the file is not a Wasm module or component, and no native program", _HOW_TO_PUSH
        )
