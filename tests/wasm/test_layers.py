"""Programs that are data over the shared runtime: their form, and how caches hold both."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.functions import functions_of, with_functions
from propeller.program import layer
from propeller.wasm.layers import (
    HEADER,
    IN_FILE,
    INPUT_FILE,
    INPUT_VARIABLE,
    Layer,
    inputs_of,
    names_runtime,
    read_layer,
    runtime_of,
)

RUNTIME = "sha256:" + "5e" * 32


@given(st.binary(max_size=400))
def test_a_layer_is_what_it_was_written_from(code: bytes) -> None:
    made = Layer(RUNTIME, code)
    wasm = with_functions(made.to_wasm(), ["train"])
    assert read_layer(wasm) == made
    assert runtime_of(wasm) == RUNTIME
    assert functions_of(wasm) == ["train"]


@given(st.binary(max_size=200), st.integers(0, 200))
def test_other_bytes_are_no_layer(content: bytes, cut: int) -> None:
    for wasm in (content, HEADER + content, Layer(RUNTIME, content).to_wasm()[:cut]):
        found = read_layer(wasm)
        assert found is None or found.runtime == RUNTIME


@pytest.mark.parametrize("runtime", ["", "sha256:" + "x" * 64, "../../etc/passwd" + "0" * 55])
def test_a_runtime_is_named_by_a_digest(runtime: str) -> None:
    assert runtime_of(Layer(runtime, b"").to_wasm()) is None


@pytest.mark.parametrize(
    "more",
    [
        b"\x01\x04\x01\x60\x00\x00",  # a type: it is a module that runs
        b"\x00\x05\x04name\x00\x00"[:2] + b"\x04name",
        b"\x00",
        Layer(RUNTIME, b"other").to_wasm()[8:],
    ],
    ids=["a module", "a name", "cut off", "twice"],
)
def test_what_has_more_in_it_is_no_layer(more: bytes) -> None:
    """What is looked at is what runs: a module that names another program's runtime is neither."""
    wasm = Layer(RUNTIME, b"code").to_wasm() + more
    assert (read_layer(wasm) is None) == (more[:6] != b"\x00\x05\x04nam")
    without_code = HEADER + wasm[8 : wasm.index(b"propeller.code") - 3]
    assert names_runtime(without_code)
    assert read_layer(without_code) is None


def test_long_code_is_given_in_a_file_and_a_variable_always_says_where() -> None:
    """A task's sender cannot give it another."""
    short, long = inputs_of(b"x" * 1000), inputs_of(b"x" * 1_000_000)
    assert (len(short[0]), len(short[1])) == (1, 0)
    assert (long[0], len(long[1])) == ({INPUT_VARIABLE: IN_FILE}, 1)


def test_the_runtime_looks_where_its_host_puts_it() -> None:
    """Written down on both sides: who runs programs does not import what is in them."""
    assert (layer.FILE, layer.VARIABLE, layer.IN_FILE) == (INPUT_FILE, INPUT_VARIABLE, IN_FILE)
