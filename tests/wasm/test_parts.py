"""The sandbox's small parts: lines, values, exposed exports."""

import struct

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from propeller.wasm.expose import PREFIX, expose
from propeller.wasm.job import over
from propeller.wasm.lines import Lines
from propeller.wasm.values import CallError, read, write


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), max_size=20), max_size=8),
    st.data(),
)
def test_lines(lines: list[str], data: st.DataObject) -> None:
    """However the bytes are cut, the lines are the same."""
    content = "".join(f"{line}\n" for line in lines).encode()
    got: list[str] = []
    feed = Lines(got.append)
    while content:
        size = data.draw(st.integers(1, len(content)))
        feed.feed(content[:size])
        content = content[size:]
    feed.end()
    assert got == lines


def test_line_without_end() -> None:
    got: list[str] = []
    feed = Lines(got.append)
    feed.feed(b"x" * 40_000)
    assert [len(part) for part in got] == [16384, 16384]
    feed.feed(b"\xff")
    feed.end()
    assert "".join(got) == "x" * 40_000 + "\ufffd"


@given(st.integers(-(2**63), 2**64 - 1))
def test_i64(number: int) -> None:
    (value,) = read(["i64"], [str(number)])
    assert isinstance(value, int)
    assert (value - number) % 2**64 == 0
    assert -(2**63) <= value < 2**63


@given(st.floats(width=32, allow_nan=False))
def test_f32_text_is_short_and_exact(number: float) -> None:
    text = write("f32", number)
    assert struct.pack("f", float(text)) == struct.pack("f", number)
    assert len(text) <= 20


@pytest.mark.parametrize(
    ("kind", "text"), [("i32", ""), ("f64", "one"), ("externref", "1"), ("i32", "-2147483649")]
)
def test_values_that_do_not_fit(kind: str, text: str) -> None:
    with pytest.raises(CallError, match=r"inputs\[0\]"):
        read([kind], [text])


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
def test_expose(text: str) -> None:
    """Everything is as it was, and every memory and table can be seen."""
    engine = wasmtime.Engine()
    wasm = bytes(wasmtime.wat2wasm(text))
    before = [each.name for each in wasmtime.Module(engine, wasm).exports]
    after = [each.name for each in wasmtime.Module(engine, expose(wasm)).exports]
    assert [name for name in after if not name.startswith(PREFIX)] == before
    assert len(after) - len(before) == text.count("(memory") + text.count("(table")


@given(st.binary(max_size=60))
def test_expose_garbage(tail: bytes) -> None:
    expose(b"\0asm\x01\0\0\0" + tail)


def test_over() -> None:
    assert over("wall_time_s", 2.0) == "wall_time_s: over the limit of 2 s"
    assert over("wall_time_s", 0.25) == "wall_time_s: over the limit of 0.25 s"
    assert over("memory_bytes", 536870912) == "memory_bytes: over the limit of 536870912 bytes"
    assert over("out_files", 64, "files") == "out_files: over the limit of 64 files"
