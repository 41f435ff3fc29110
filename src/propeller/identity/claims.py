"""JSON web tokens as nats-server writes and reads them: signed with an nkey (Ed25519)."""

import base64
import json
import secrets
import time
from typing import Any

import nkeys

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


class MalformedClaimsError(ValueError):
    """A token that cannot be read."""


def encode(signer: nkeys.KeyPair, claims: dict[str, Any]) -> str:
    """A signed token with these claims, its issuer, time and a random id."""
    body = {"jti": secrets.token_hex(8), "iat": int(time.time()), "iss": signer.public_key.decode(), **claims}
    signed = f"{_base64(_HEADER)}.{_base64(body)}"
    return f"{signed}.{_encode(signer.sign(signed.encode()))}"


def decode(token: bytes) -> dict[str, Any]:
    """The claims of a token. The signature is not checked: it came over a connection that only the broker writes to.

    Raises:
        MalformedClaimsError: it is not a token.
    """
    try:
        _header, body, _signature = token.split(b".")
        claims = json.loads(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
    except ValueError as error:
        raise MalformedClaimsError(str(error)) from None
    if not isinstance(claims, dict):
        raise MalformedClaimsError("the claims are not an object")
    return claims


def _base64(value: dict[str, Any]) -> str:
    return _encode(json.dumps(value, separators=(",", ":")).encode())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
