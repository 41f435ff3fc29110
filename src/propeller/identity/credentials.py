"""Keys of clients, passwords and tokens of users."""

import asyncio
import hashlib
import hmac
import os
import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal

import argon2
import jwt

from propeller.errors import UnauthenticatedError

KEY_BYTES = 32
"""A client's key is so many random bytes, written as hexadecimal."""


def new_key() -> str:
    """A new client key: 64 hexadecimal digits, safe in a shell, a URL and an ``.env`` file."""
    return secrets.token_hex(KEY_BYTES)


def key_of_join(nonce: bytes, secret: bytes) -> str:
    """The key of a device that joins: the same for the same nonce, so that the device may ask again when an answer was lost.

    Args:
        nonce: random bytes that the device made, and nobody else knows.
        secret: of its join token.
    """
    return hmac.digest(nonce, b"propeller device key v1" + secret, "sha256").hex()


def hash_key(key: str) -> str:
    """What is kept of a client's key. One SHA-256 is enough, as nobody can guess 256 random bits."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_matches(key: str, key_hash: str) -> bool:
    """Whether a key is the one that was hashed, in constant time."""
    return hmac.compare_digest(hash_key(key), key_hash)


class Passwords:
    """Hashes passwords with argon2id in threads, as many at a time as there are processors (64 MiB each)."""

    def __init__(self, hasher: argon2.PasswordHasher | None = None) -> None:
        self._hasher = hasher or argon2.PasswordHasher()
        self._slots = asyncio.Semaphore(min(4, os.cpu_count() or 1))
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        """The hash of a password, with its salt and parameters."""
        async with self._slots:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def matches(self, password: str, password_hash: str | None) -> bool:
        """Whether a password is the one that was hashed; for a user that does not exist the answer takes as long."""
        if password_hash is None:
            if self._nobody is None:
                self._nobody = await self.hash(secrets.token_hex(16))
            await self._verify(password, self._nobody)
            return False
        return await self._verify(password, password_hash)

    async def _verify(self, password: str, password_hash: str) -> bool:
        async with self._slots:
            try:
                return await asyncio.to_thread(self._hasher.verify, password_hash, password)
            except argon2.exceptions.VerifyMismatchError:
                return False


_ALGORITHM, _ISSUER = "HS256", "propeller.identity"

TokenKind = Literal["access", "refresh"]


@dataclass(frozen=True)
class TokenClaims:
    """The content of a token.

    Attributes:
        user_id: whose it is.
        epoch: the user's when it was issued.
        login_id: of the login that it comes from.
        token_id: its own.
    """

    user_id: str
    epoch: int
    login_id: str
    token_id: str


class Tokens:
    """Issues tokens and reads them."""

    def __init__(self, key: bytes, *, access_s: float, refresh_s: float) -> None:
        """``key`` of 32 bytes; the others are how long tokens are good for, in seconds."""
        self._key, self._seconds = key, {"access": access_s, "refresh": refresh_s}

    @property
    def refresh_s(self) -> float:
        """How long a refresh token is good for, in seconds."""
        return self._seconds["refresh"]

    def issue(self, claims: TokenClaims) -> dict[str, str]:
        """An access token and a refresh token."""
        return {"access_token": self._make(claims, "access"), "refresh_token": self._make(claims, "refresh")}

    def read(self, token: str, kind: TokenKind) -> TokenClaims:
        """The content of a valid token.

        Raises:
            UnauthenticatedError: with what is wrong.
        """
        try:
            body = jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                issuer=_ISSUER,
                options={"require": ["exp", "sub", "type", "epoch", "login", "jti"]},
            )
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError(
                "the token has expired: log in again (POST /users/tokens/issue)"
            ) from None
        except jwt.InvalidTokenError:
            raise UnauthenticatedError("the token is not one of this service") from None
        if body["type"] != kind:
            raise UnauthenticatedError(
                f"a token of the kind {kind} is needed here, this one is {body['type']}"
            )
        return TokenClaims(body["sub"], body["epoch"], body["login"], body["jti"])

    def _make(self, claims: TokenClaims, kind: TokenKind) -> str:
        now = time.time()
        body: dict[str, Any] = {
            "iss": _ISSUER,
            "sub": claims.user_id,
            "epoch": claims.epoch,
            "login": claims.login_id,
            "type": kind,
            "iat": int(now),
            "exp": int(now + self._seconds[kind]),
            "jti": claims.token_id,
        }
        return jwt.encode(body, self._key, algorithm=_ALGORITHM)
