"""Passwords are hashed cheaply here; one test hashes as the service does."""

import pytest

from support.identity import hash_cheaply


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    hash_cheaply(monkeypatch)
