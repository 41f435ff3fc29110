"""What a CBOR text may hold is counted before it is decoded."""

import struct
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.coordinator import cbor_limits
from propeller.coordinator.cbor_limits import check_counts
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
    "item",
    [b"\xfb" + struct.pack(">d", 0.1), b"\xfa" + struct.pack(">f", 0.1), b"\x01", b"\x80", b"\xa0", b"\x60"],
)
def test_long_lists_are_refused_from_some_length_on(item: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cbor_limits, "MAX_NUMBERS", 20_000)
    monkeypatch.setattr(cbor_limits, "MAX_OTHERS", 20_001)  # with the list itself
    check_counts(b"\x9a" + struct.pack(">I", 20_000) + item * 20_000)
    with pytest.raises(TooManyValuesError, match="typed arrays"):
        check_counts(b"\x9a" + struct.pack(">I", 20_001) + item * 20_001)
