"""Keys of clients, and the slowing down of whoever guesses passwords."""

from argon2 import PasswordHasher

from propeller.identity.credentials import (
    FREE_FAILURES,
    PAUSE_S,
    LoginThrottle,
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


def test_throttle() -> None:
    now = 0.0
    throttle = LoginThrottle(lambda: now)
    one, other = ("admin", "10.0.0.1"), ("admin", "10.0.0.2")
    for _ in range(FREE_FAILURES):
        assert throttle.wait_s(one) == 0
        throttle.note_failure(one)
    assert throttle.wait_s(one) == PAUSE_S
    assert throttle.wait_s(other) == 0
    now = PAUSE_S + 1
    assert throttle.wait_s(one) == 0
    throttle.note_failure(one)
    assert throttle.wait_s(one) == 0
    throttle.note_success(one)
    assert throttle.wait_s(one) == 0


async def test_passwords() -> None:
    passwords = Passwords(PasswordHasher())  # the real one: it was imported before it was made cheap
    kept = await passwords.hash("correct horse")
    assert kept.startswith("$argon2id$v=19$m=65536,t=3")
    assert await passwords.matches("correct horse", kept)
    assert not await passwords.matches("wrong horse", kept)
    assert not await passwords.matches("correct horse", None)
