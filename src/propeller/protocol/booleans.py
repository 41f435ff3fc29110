"""Samples with true and false in them, which are 1 and 0 wherever samples come in: programs count and multiply with them."""

from typing import Any


def as_numbers(sample: Any) -> Any:
    """A sample with 1 and 0 in the place of true and false, also in lists; what has none stays the same."""
    if isinstance(sample, dict):
        return {name: _number(value) for name, value in sample.items()}
    return sample


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, list) and any(type(item) in {bool, list} for item in value):
        return [_number(item) for item in value]
    return value
