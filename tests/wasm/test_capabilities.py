"""What programs can do, by their imports."""

import pytest
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from propeller.data import program_path
from propeller.wasm.capabilities import Capability, capabilities_of, imports_of, told
from support.programs import echo

PREVIEW_1 = """(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
  {more})"""


def core(more: str = "") -> bytes:
    return bytes(wasmtime.wat2wasm(PREVIEW_1.format(more=more)))


def component(*names: str) -> bytes:
    imports = "\n".join(f'(import "{name}" (instance))' for name in names)
    return bytes(wasmtime.wat2wasm(f"(component {imports})"))


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (core(), {"clock"}),
        (core('(import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))'), {"clock", "random"}),
        (core('(import "wasi_snapshot_preview1" "path_open" (func))'), {"clock", "files"}),
        (core('(import "wasi_snapshot_preview1" "sock_send" (func))'), {"clock", "network"}),
        (core('(import "env" "memory" (memory 1 2)) (import "env" "t" (table 1 funcref))'), {"clock", "other"}),
        (core('(import "env" "g" (global i32))'), {"clock", "other"}),
        (component("wasi:cli/environment@0.2.0", "wasi:io/streams@0.2.0"), set()),
        (component("wasi:clocks/wall-clock@0.2.0", "wasi:random/random@0.2.0"), {"clock", "random"}),
        (component("wasi:filesystem/types@0.2.3", "wasi:http/types@0.2.0"), {"files", "network"}),
        (component("propeller:program/tensors@0.1.0"), {"tensors"}),
        (component("acme:secret/door"), {"other"}),
        (echo(), {"files"}),
        (b"", {"other"}),
        (b"\0asm\1\0\0\0\2\xff", {"other"}),
    ],
)  # fmt: skip
def test_imports_tell_what_a_program_can_do(program: bytes, expected: set[str]) -> None:
    assert capabilities_of(program) == expected


def test_the_guides_program_can_do_little() -> None:
    assert capabilities_of(program_path("logreg").read_bytes()) <= {Capability.CLOCK, Capability.FILES}
    assert told([]) == "nothing"
    assert told([Capability.RANDOM, Capability.CLOCK]) == "clock, random"


def test_what_a_component_imports_is_all_that_it_can_reach() -> None:
    """The module inside imports a clock, which the component gives it nothing for."""
    inner = '(core module (import "wasi_snapshot_preview1" "clock_time_get" (func)))'
    program = bytes(wasmtime.wat2wasm(f'(component {inner} (import "wasi:cli/stdout@0.2.0" (instance)))'))
    assert imports_of(program) == [("wasi:cli/stdout@0.2.0", "")]
    assert capabilities_of(program) == set()


@given(st.binary(max_size=300), st.sampled_from([b"\0asm\1\0\0\0", b"\0asm\r\0\1\0", b""]))
def test_whatever_the_bytes_there_is_an_answer(content: bytes, head: bytes) -> None:
    assert capabilities_of(head + content) <= set(Capability)


@given(st.data())
def test_a_file_that_is_cut_off_or_changed_has_an_answer(data: st.DataObject) -> None:
    program = bytearray(core('(import "env" "memory" (memory 1 2))'))
    position = data.draw(st.integers(8, len(program) - 1))
    program[position] = data.draw(st.integers(0, 255))
    assert capabilities_of(bytes(program[: data.draw(st.integers(0, len(program)))])) <= set(Capability)
