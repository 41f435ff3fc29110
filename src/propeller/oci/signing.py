"""Keys that sign programs, and the check of signatures: ECDSA with SHA-256, offline, with keys in cosign's files."""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nacl.exceptions
import nacl.secret
import nacl.utils
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from propeller.errors import PropellerError, StartError
from propeller.oci.signatures import PAYLOAD_TYPE, Signature, signed_digest
from propeller.process.files import write_durably

_PEM_NAMES = ("ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY")
_SCRYPT = {"N": 65536, "r": 8, "p": 1}
_MAX_SCRYPT_N = 1 << 20


class SignatureError(PropellerError):
    """No signature is good; the text says why."""


@dataclass(frozen=True)
class PublicKey:
    """Whose signatures are believed; ``name`` is that of its file."""

    name: str
    key: ec.EllipticCurvePublicKey

    @classmethod
    def read(cls, file: Path, setting: str) -> "PublicKey":
        """Read a PEM file, as ``propeller signature make-key`` and ``cosign generate-key-pair`` write it.

        Raises:
            StartError: it cannot be read, or is no ECDSA public key; the text names ``setting``.
        """
        try:
            key = serialization.load_pem_public_key(file.read_bytes())
        except OSError as error:
            raise StartError(f"{setting}: {file} cannot be read: {error.strerror}") from None
        except (ValueError, UnsupportedAlgorithm):
            raise StartError(f"{setting}: {file} holds no PEM public key") from None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise StartError(
                f"{setting}: {file} is not an ECDSA key; make one with: propeller signature make-key"
            )
        return cls(file.stem, key)

    def has_signed(self, signature: Signature) -> bool:
        """Whether a signature is by this key."""
        try:
            self.key.verify(signature.value, signature.payload, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A private key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def make(cls) -> "SigningKey":
        """A new one (ECDSA over P-256)."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def read(cls, file: Path, password: bytes) -> "SigningKey":
        """Read a key as ``write`` and cosign write it, or one in PKCS 8.

        Raises:
            StartError: it cannot be read, the password is wrong, or it is no ECDSA key.
        """
        try:
            text = file.read_bytes()
            if any(name.encode() in text for name in _PEM_NAMES):
                key = serialization.load_der_private_key(_decrypt(text, password), None)
            else:
                key = serialization.load_pem_private_key(text, password or None)
        except OSError as error:
            raise StartError(f"{file} cannot be read: {error.strerror}") from None
        except nacl.exceptions.CryptoError:
            raise StartError(f"{file}: the password is wrong (COSIGN_PASSWORD)") from None
        except (ValueError, TypeError, KeyError, UnsupportedAlgorithm):
            raise StartError(
                f"{file} is no private key, or its password is wrong (COSIGN_PASSWORD); make one with: propeller signature make-key"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StartError(f"{file} is not an ECDSA key; make one with: propeller signature make-key")
        return cls(key)

    def write(self, private: Path, public: Path, password: bytes) -> None:
        """Write both halves as ``cosign generate-key-pair`` does, the private one encrypted (scrypt, and NaCl's secret box).

        Raises:
            FileExistsError: one of them is there; then neither is written.
        """
        plain = self._key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        shown = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        write_durably(private, _encrypt(plain, password), replace=False, mode=0o600)
        try:
            write_durably(public, shown, replace=False, mode=0o644)
        except OSError:
            private.unlink(missing_ok=True)  # both or neither
            raise

    def public(self, name: str) -> PublicKey:
        """The half that is shown."""
        return PublicKey(name, self._key.public_key())

    def sign(self, repository: str, manifest_digest: str) -> Signature:
        """Sign an artifact.

        Args:
            repository: with its registry, as ``ghcr.io/acme/fl-client``.
            manifest_digest: of the artifact's manifest.
        """
        document = {
            "critical": {
                "identity": {"docker-reference": repository},
                "image": {"docker-manifest-digest": manifest_digest},
                "type": PAYLOAD_TYPE,
            },
            "optional": None,
        }
        payload = json.dumps(document, separators=(",", ":")).encode()
        return Signature(payload, self._key.sign(payload, ec.ECDSA(hashes.SHA256())))


def verify(signatures: Iterable[Signature], manifest_digest: str, keys: Sequence[PublicKey]) -> PublicKey:
    """Find a key that has signed an artifact.

    Args:
        signatures: those that the artifact has.
        manifest_digest: of its manifest.
        keys: whose signatures are believed.

    Returns:
        The first of the keys that has.

    Raises:
        SignatureError: none has; the text says whether there are signatures, and by whom one would be believed.
    """
    count = 0
    for signature in signatures:
        count += 1
        if signed_digest(signature.payload) != manifest_digest:
            continue
        for key in keys:
            if key.has_signed(signature):
                return key
    names = ", ".join(key.name for key in keys) or "nobody"
    found = "it has no signature" if not count else f"none of its {count} signatures is by one of these keys"
    raise SignatureError(f"{found} (believed: {names})")


def _encrypt(plain: bytes, password: bytes) -> bytes:
    salt, nonce = nacl.utils.random(32), nacl.utils.random(nacl.secret.SecretBox.NONCE_SIZE)
    key = _derive(password, salt, **_SCRYPT)
    document = {
        "kdf": {"name": "scrypt", "params": _SCRYPT, "salt": base64.b64encode(salt).decode()},
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(nacl.secret.SecretBox(key).encrypt(plain, nonce).ciphertext).decode(),
    }
    encoded = base64.encodebytes(json.dumps(document, separators=(",", ":")).encode()).replace(b"\n", b"")
    lines = [encoded[at : at + 64] for at in range(0, len(encoded), 64)]
    name = _PEM_NAMES[0].encode()
    return b"\n".join([b"-----BEGIN " + name + b"-----", *lines, b"-----END " + name + b"-----", b""])


def _decrypt(text: bytes, password: bytes) -> bytes:
    """The private key in a file that cosign wrote, in PKCS 8.

    Raises:
        ValueError, KeyError, TypeError: it is none.
        nacl.exceptions.CryptoError: the password is wrong.
    """
    lines = [line for line in text.splitlines() if line and not line.startswith(b"-----")]
    document: dict[str, Any] = json.loads(base64.b64decode(b"".join(lines)))
    kdf, cipher = document["kdf"], document["cipher"]
    if kdf["name"] != "scrypt" or cipher["name"] != "nacl/secretbox" or kdf["params"]["N"] > _MAX_SCRYPT_N:
        raise ValueError("another encryption")
    params = {name: int(kdf["params"][name]) for name in ("N", "r", "p")}
    key = _derive(password, base64.b64decode(kdf["salt"]), **params)
    return nacl.secret.SecretBox(key).decrypt(
        base64.b64decode(document["ciphertext"]), base64.b64decode(cipher["nonce"])
    )


def _derive(password: bytes, salt: bytes, N: int, r: int, p: int) -> bytes:  # noqa: N803 - scrypt's names (RFC 7914)
    return Scrypt(salt=salt, length=32, n=N, r=r, p=p).derive(password)
