"""Signatures of programs in cosign's format, as they are in a registry.

Signed is a payload (the "simple signing" format) that names the digest of the artifact's manifest. Payload and signature are in a second artifact beside
the first (cosign's SIGNATURE_SPEC.md), so ``cosign verify --key`` reads what is made here, and ``cosign sign --key`` makes what is read here.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass

from propeller.digests import is_digest
from propeller.oci.manifest import IMAGE_MANIFEST, Descriptor

PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
"""The media type of a payload."""

SIGNATURE = "dev.cosignproject.cosign/signature"
"""The annotation of a payload's layer that has the signature, in base64."""

PAYLOAD_TYPE = "cosign container image signature"
"""What a payload says that it is."""

MAX_SIGNATURES = 32
"""Of an artifact, that are looked at."""

MAX_PAYLOAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Signature:
    """A signature of an artifact: the payload's bytes, and the signature of these (ASN.1, DER)."""

    payload: bytes
    value: bytes

    @property
    def layer(self) -> Descriptor:
        """How the signature's artifact has it."""
        return Descriptor.of(PAYLOAD, self.payload, {SIGNATURE: base64.b64encode(self.value).decode()})


def signature_tag(manifest_digest: str) -> str:
    """The tag of an artifact's signatures, in the same repository."""
    return f"{manifest_digest.replace(':', '-')}.sig"


def signature_manifest(layers: Sequence[Descriptor]) -> tuple[bytes, bytes]:
    """The manifest of signatures, and its configuration."""
    config = json.dumps(
        {
            "architecture": "",
            "created": "0001-01-01T00:00:00Z",
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
            "config": {},
        },
        separators=(",", ":"),
    ).encode()
    document = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": Descriptor.of("application/vnd.oci.image.config.v1+json", config).to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    return json.dumps(document, separators=(",", ":")).encode(), config


def signature_of(layer: Descriptor) -> bytes | None:
    """The signature in a layer's annotation; ``None`` if the layer is none of a signature."""
    if layer.media_type != PAYLOAD or layer.size > MAX_PAYLOAD_BYTES:
        return None
    try:
        return base64.b64decode(layer.annotations.get(SIGNATURE, ""), validate=True) or None
    except binascii.Error:
        return None


def signed_digest(payload: bytes) -> str | None:
    """The manifest's digest that a payload is about; ``None`` if it is no payload."""
    try:
        critical = json.loads(payload)["critical"]
        digest = critical["image"]["docker-manifest-digest"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_good = critical.get("type") == PAYLOAD_TYPE and isinstance(digest, str) and is_digest(digest)
    return digest if is_good else None
