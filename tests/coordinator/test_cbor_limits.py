"""What a CBOR text may hold is counted before it is decoded."""

import struct
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.coordinator import cbor_limits
from propeller.coordinator.cbor_limits import MAX_NUMBERS, MAX_OTHERS, check_counts
from propeller.protocol.wire import TooManyValuesError

VALUES = st.recursive(
    st.integers(-(2**64), 2**64 - 1) | st.floats() | st.booleans() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


def count(value: Any) -> tuple[int, int]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (1, 0)
    inner: list[Any] = value if isinstance(value, list) else []
    if isinstance(value, dict):
        inner = [*value.keys(), *value.values()]
    counts = [count(one) for one in inner]
    return sum(one for one, _other in counts), 1 + sum(other for _one, other in counts)


@given(VALUES, st.booleans())
def test_items_are_counted_exactly(value: Any, canonical: bool) -> None:
    numbers, others = count(value)
    text = cbor2.dumps(value, canonical=canonical)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cbor_limits, "MAX_NUMBERS", numbers)
        patched.setattr(cbor_limits, "MAX_OTHERS", others)
        check_counts(text)
        if numbers:
            patched.setattr(cbor_limits, "MAX_NUMBERS", numbers - 1)
            with pytest.raises(TooManyValuesError):
                check_counts(text)
        patched.setattr(cbor_limits, "MAX_NUMBERS", numbers)
        patched.setattr(cbor_limits, "MAX_OTHERS", others - 1)
        with pytest.raises(TooManyValuesError):
            check_counts(text) if others else check_counts(b"\x80")


@given(st.binary(max_size=60))
def test_no_text_is_looked_at_without_end(text: bytes) -> None:
    check_counts(text)


@pytest.mark.parametrize(
    ("item", "most"),
    [
        (b"\xfb" + struct.pack(">d", 0.1), MAX_NUMBERS),
        (b"\xfa" + struct.pack(">f", 0.1), MAX_NUMBERS),
        (b"\x01", MAX_NUMBERS),
        (b"\x80", MAX_OTHERS - 1),
        (b"\xa0", MAX_OTHERS - 1),
        (b"\x60", MAX_OTHERS - 1),
    ],
)
def test_long_lists_are_refused_from_some_length_on(item: bytes, most: int) -> None:
    check_counts(b"\x9a" + struct.pack(">I", most) + item * most)
    with pytest.raises(TooManyValuesError, match="typed arrays"):
        check_counts(b"\x9a" + struct.pack(">I", most + 1) + item * (most + 1))
