"""Numbers of core modules as texts (components: ``test_component_calls.py``)."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.wasm.call_values import CallError, core_arguments, core_result


@given(st.integers(-(2**63), 2**64 - 1))
def test_i64(number: int) -> None:
    (value,) = core_arguments(["i64"], [str(number)])
    assert isinstance(value, int)
    assert (value - number) % 2**64 == 0
    assert -(2**63) <= value < 2**63


@given(st.floats(width=32, allow_nan=False))
def test_f32_text_is_short_and_exact(number: float) -> None:
    text = core_result("f32", number)
    assert struct.pack("f", float(text)) == struct.pack("f", number)
    assert len(text) <= 20


@pytest.mark.parametrize(
    ("kind", "text"), [("i32", ""), ("f64", "one"), ("externref", "1"), ("i32", "-2147483649")]
)
def test_values_that_do_not_fit(kind: str, text: str) -> None:
    with pytest.raises(CallError, match=r"inputs\[0\]"):
        core_arguments([kind], [text])
