"""Digests of bytes, as registries and messages write them: ``sha256:`` and 64 hexadecimal digits in lower case."""

import hashlib
import re
from io import BufferedReader

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def digest_of(content: bytes) -> str:
    """The digest of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def digest_of_file(file: BufferedReader) -> str:
    """The digest of what is in an open file, from where it stands to its end."""
    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def is_digest(text: str) -> bool:
    """Whether a text is a digest."""
    return _DIGEST.fullmatch(text) is not None
