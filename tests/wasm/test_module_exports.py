"""Memories and tables of a core module, made visible to the host."""

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from propeller.wasm.module_exports import PREFIX, export_memories_and_tables


@pytest.mark.parametrize(
    "text",
    [
        "(module (memory 1))",
        '(module (table 1 funcref) (memory 1) (func (export "f")) (start 0))',
        '(module (table 1 funcref) (table 2 funcref) (func) (elem (i32.const 0) 0) (data "x"))',
        '(module (memory (export "memory") 1) (global (export "g") i32 (i32.const 1)))',
        "(module)",
        "(module (func))",
    ],
)
def test_everything_can_be_seen(text: str) -> None:
    """Everything is as it was, and every memory and table can be seen."""
    engine = wasmtime.Engine()
    wasm = bytes(wasmtime.wat2wasm(text))
    before = [each.name for each in wasmtime.Module(engine, wasm).exports]
    after = [each.name for each in wasmtime.Module(engine, export_memories_and_tables(wasm)).exports]
    assert [name for name in after if not name.startswith(PREFIX)] == before
    assert len(after) - len(before) == text.count("(memory") + text.count("(table")


@given(st.binary(max_size=60))
def test_expose_garbage(tail: bytes) -> None:
    export_memories_and_tables(b"\0asm\x01\0\0\0" + tail)
