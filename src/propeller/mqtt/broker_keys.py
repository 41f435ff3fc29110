"""The keys between broker and identity, all derived from the one secret that both processes are given.

The broker is configured with public keys only. Identity signs with the issuer's key what the broker asks it, and
proves with the service's key that it may answer: no password is written to any file.
"""

import hashlib
import hmac
from dataclasses import dataclass

import nkeys

MIN_SECRET = 16
"""The shortest secret that is accepted, in characters."""

_SALT = b"propeller broker keys v1"


def derive(secret: str, purpose: str) -> bytes:
    """32 bytes for one purpose from a secret: HKDF with SHA-256 (RFC 5869), one block."""
    extracted = hmac.digest(_SALT, secret.encode(), hashlib.sha256)
    return hmac.digest(extracted, purpose.encode() + b"\x01", hashlib.sha256)


@dataclass(frozen=True)
class BrokerKeys:
    """The two key pairs (NATS nkeys, Ed25519) of a secret.

    Attributes:
        issuer: signs who may connect and what they may do.
        service: what identity itself connects to the broker with.
    """

    issuer: nkeys.KeyPair
    service: nkeys.KeyPair

    @classmethod
    def derived(cls, secret: str) -> "BrokerKeys":
        """The keys of a secret; the same secret gives the same keys in every process."""
        return cls(
            nkeys.from_seed(_seed(secret, "issuer", nkeys.PREFIX_BYTE_ACCOUNT)),
            nkeys.from_seed(_seed(secret, "service", nkeys.PREFIX_BYTE_USER)),
        )

    @property
    def issuer_public(self) -> str:
        """The issuer's public key, ``A…``."""
        return str(self.issuer.public_key.decode())

    @property
    def service_public(self) -> str:
        """The service's public key, ``U…``."""
        return str(self.service.public_key.decode())

    @property
    def service_seed(self) -> str:
        """The service's private half as NATS clients take it, ``SU…``; never log it."""
        return str(self.service.seed.decode())


def _seed(secret: str, purpose: str, prefix: int) -> bytearray:
    return bytearray(nkeys.encode_seed(derive(secret, purpose), prefix))
