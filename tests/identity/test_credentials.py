"""Keys of clients, and the hashes of passwords."""

from argon2 import PasswordHasher

from propeller.identity.credentials import (
    Passwords,
    hash_key,
    key_matches,
    new_key,
)


def test_keys() -> None:
    key = new_key()
    assert key != new_key()
    assert key.isalnum()
    assert key_matches(key, hash_key(key))
    assert not key_matches(key + "0", hash_key(key))


async def test_passwords() -> None:
    passwords = Passwords(PasswordHasher())  # the real one: it was imported before it was made cheap
    kept = await passwords.hash("correct horse")
    assert kept.startswith("$argon2id$v=19$m=65536,t=3")
    assert await passwords.matches("correct horse", kept)
    assert not await passwords.matches("wrong horse", kept)
    assert not await passwords.matches("correct horse", None)
