"""Keys of clients and passwords of users: made, hashed, compared."""

import asyncio
import hashlib
import hmac
import os
import secrets

import argon2

KEY_BYTES = 32
"""A client's key is so many random bytes, written as hexadecimal."""


def new_key() -> str:
    """A new client key: 64 hexadecimal digits, safe in a shell, a URL and an ``.env`` file."""
    return secrets.token_hex(KEY_BYTES)


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
        """Whether a password is the one that was hashed; for a user that does not exist it takes as long to say no."""
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
