"""Join tokens: one printable word by which a new device finds identity, knows its certificate authority, and is let in once.

A token is base64url, without padding, of: the version (1 byte), the secret (16 bytes), whether a fingerprint follows (1 byte) and that
(32 bytes), identity's address in UTF-8, and the first 4 bytes of the SHA-256 of all that, against slips of copying.
"""

import base64
import hashlib
import secrets
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from propeller.errors import InvalidError

_VERSION = 1
_SECRET_BYTES, _FINGERPRINT_BYTES, _CHECK_BYTES = 16, 32, 4
_MIN_BYTES, _MAX_CHARACTERS = 1 + _SECRET_BYTES + 1, 4096

NOT_WHOLE = "this is no join token, or not all of it: copy the whole word that 'propeller device add' printed"


def new_secret() -> bytes:
    """The secret of a new token, which nobody guesses."""
    return secrets.token_bytes(_SECRET_BYTES)


def hash_secret(secret: bytes) -> str:
    """What identity keeps of a secret, in hexadecimal. One SHA-256 is enough for 128 random bits."""
    return hashlib.sha256(secret).hexdigest()


@dataclass(frozen=True)
class JoinToken:
    """What a token says.

    Attributes:
        identity_url: where identity is, as the device reaches it.
        secret: what identity knows it by.
        fingerprint: SHA-256 of the certificate (DER) of the authority that signed the servers' certificates; ``None`` where those are
            of an authority that systems trust, or there is no TLS.
    """

    identity_url: str
    secret: bytes = field(repr=False)
    fingerprint: bytes | None = None

    def encode(self) -> str:
        """The word."""
        fingerprint = self.fingerprint
        content = b"".join(
            (
                bytes([_VERSION]),
                self.secret,
                bytes([fingerprint is not None]),
                fingerprint or b"",
                self.identity_url.encode(),
            )
        )
        return base64.urlsafe_b64encode(content + _check_of(content)).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str) -> "JoinToken":
        """Read the word.

        Raises:
            InvalidError: it is none, or not whole.
        """
        content = _read_whole(text.strip())
        version, secret, has_fingerprint, rest = content[0], content[1:17], content[17], content[18:]
        if version != _VERSION:
            raise InvalidError(
                f"the join token has version {version}, and this Propeller knows {_VERSION}: install the version that the stack has"
            )
        at = _FINGERPRINT_BYTES if has_fingerprint else 0
        try:
            url = rest[at:].decode()
        except UnicodeDecodeError:
            url = ""
        if not is_address(url):
            raise InvalidError(NOT_WHOLE)
        return cls(url, secret, rest[:at] or None)


def is_address(url: str) -> bool:
    """Whether this is the address of an HTTP service."""
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and url.isprintable()
    except ValueError:
        return False


def _read_whole(word: str) -> bytes:
    """What a word says, without its check.

    Raises:
        InvalidError: it is not whole.
    """
    try:
        whole = base64.b64decode(word + "=" * (-len(word) % 4), altchars=b"-_", validate=True)
    except ValueError:
        whole = b""
    content, check = whole[:-_CHECK_BYTES], whole[-_CHECK_BYTES:]
    if len(content) < _MIN_BYTES or len(word) > _MAX_CHARACTERS or check != _check_of(content):
        raise InvalidError(NOT_WHOLE)
    return content


def _check_of(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_CHECK_BYTES]
