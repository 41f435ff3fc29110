"""Passwords are hashed cheaply here; one test hashes as the service does."""

import functools

import argon2
import pytest


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = functools.partial(argon2.PasswordHasher, time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr("propeller.identity.keys.argon2.PasswordHasher", cheap)
