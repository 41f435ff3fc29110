"""A pool keeps memory for the next instance, and nothing that is in it."""

from pathlib import Path

import pytest
import wasmtime

from propeller.wasm.guest_program import LoadedModule, load_program, runtime_config
from propeller.wasm.messages import CompiledProgram
from propeller.wasm.program_run import Limits

PAGE = 1 << 16

LEAVER = """(module
  (memory (export "memory") 2)
  (table (export "table") 4 funcref)
  (global $runs (export "runs") (mut i32) (i32.const 0))
  (data (i32.const 65536) "seven")
  (elem declare func $leave)
  (func $leave (export "leave") (param $pages i32) (result i32)
    (global.set $runs (i32.add (global.get $runs) (i32.const 1)))
    (table.set (i32.const 3) (ref.func $leave))
    (if (i32.eq (memory.grow (local.get $pages)) (i32.const -1)) (then (return (i32.const -1))))
    (memory.fill (i32.const 0) (i32.const 255) (i32.mul (memory.size) (i32.const 65536)))
    (memory.size)))"""
"""Writes to everything that it has, and to so many pages more."""


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModule:
    """Compiled without a pool, as proplets and simulations compile."""
    engine = wasmtime.Engine(runtime_config(fuel=False))
    artifact = tmp_path / "leaver"
    artifact.write_bytes(wasmtime.Module(engine, LEAVER).serialize())
    program = load_program(CompiledProgram(str(artifact), component=False, fuel=False), pool=Limits())
    assert isinstance(program, LoadedModule)
    return program


@pytest.mark.parametrize("pages", [0, 50, 2000])  # the last is more than is kept
def test_an_instance_begins_as_the_first_one_did(loaded: LoadedModule, pages: int) -> None:
    for _ in range(3):
        store = wasmtime.Store(loaded.linker.engine)
        exports = loaded.linker.instantiate(store, loaded.code).exports(store)
        memory, table, runs, leave = (exports[name] for name in ("memory", "table", "runs", "leave"))
        assert isinstance(memory, wasmtime.Memory)
        assert isinstance(table, wasmtime.Table)
        assert isinstance(runs, wasmtime.Global)
        assert isinstance(leave, wasmtime.Func)
        assert bytes(memory.read(store, 0, 2 * PAGE)) == bytes(PAGE) + b"seven".ljust(PAGE, b"\0")
        assert (memory.size(store), runs.value(store), table.get(store, 3)) == (2, 0, None)
        memory.grow(store, pages)
        assert not any(memory.read(store, 2 * PAGE, (2 + pages) * PAGE))
        assert leave(store, 1) == pages + 3
        store.close()


def test_a_limit_of_memory_holds(loaded: LoadedModule) -> None:
    store = wasmtime.Store(loaded.linker.engine)
    store.set_limits(memory_size=8 * PAGE)
    leave = loaded.linker.instantiate(store, loaded.code).exports(store)["leave"]
    assert isinstance(leave, wasmtime.Func)
    assert leave(store, 7) == -1
    assert leave(store, 6) == 8
