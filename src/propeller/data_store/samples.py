"""The data that a proplet of the guide's demo is seeded with."""

from typing import Any

SCHEMA = "fl-demo-dataset-v1"
COUNT = 64

_WRAP = 2**64
_HIGHEST = 2**63


def seed(proplet_id: str) -> dict[str, Any]:
    """A dataset of ``COUNT`` samples, the same for an id each time: ``x`` of three numbers in [0, 1), ``y`` 0 or 1.

    The numbers are those of absmach/propeller's data store wherever its hash of the id is not negative. Where it is, that one gave
    negative numbers and labels; here the remainder is never negative.
    """
    base = _hash(proplet_id)
    data = [_sample((base + number) % 1000) for number in range(COUNT)]
    return {"schema": SCHEMA, "proplet_id": proplet_id, "client_id": proplet_id, "data": data, "size": COUNT}


def _sample(value: int) -> dict[str, Any]:
    return {"x": [value % 10 / 10, 2 * value % 10 / 10, 3 * value % 10 / 10], "y": value % 2}


def _hash(text: str) -> int:
    """The polynomial hash of base 31 in signed 64-bit arithmetic."""
    value = 0
    for character in text:
        value = (value * 31 + ord(character)) % _WRAP
    return value - _WRAP if value >= _HIGHEST else value
