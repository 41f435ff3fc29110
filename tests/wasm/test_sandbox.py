"""What a program meets in the sandbox, and what comes back."""

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from propeller.digests import digest_of
from propeller.wasm import folder_contents
from propeller.wasm.program_run import Limits, ProgramError, ProgramRun, RunOutcome
from propeller.wasm.sandbox import Sandbox
from support.guests import OUT, add, command, wat
from support.net import eventually

ECHO = """
  (loop $l
    (i32.store (i32.const 16) (i32.const 64))
    (i32.store (i32.const 20) (i32.const 60000))
    (drop (call $fd_read (i32.load (i32.const 32)) (i32.const 16) (i32.const 1) (i32.const 24)))
    (if (i32.load (i32.const 24)) (then
      (drop (call $write (i32.const 1) (i32.const 64) (i32.load (i32.const 24))))
      (br $l))))
"""
OPEN_IN = """
  (drop (call $path_open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 5) (i32.const 0)
    (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 32)))
"""


def component(core: str) -> bytes:
    """A component that exports ``wasi:cli/run``; ``core`` is the body of a function that gives 0 for success."""
    return bytes(
        wasmtime.wat2wasm(f"""(component
          (core module $m (memory 1) (func (export "run") (result i32) {core}))
          (core instance $i (instantiate $m))
          (func $run (result (result)) (canon lift (core func $i "run")))
          (instance $exports (export "run" (func $run)))
          (export "wasi:cli/run@0.2.0" (instance $exports)))""")
    )


async def test_a_file_in_and_standard_output(sandbox: Sandbox) -> None:
    """A large file comes through whole, as do more bytes than a pipe holds."""
    content = bytes(range(256)) * 8192
    run = ProgramRun("a", await add(sandbox, command(OPEN_IN + ECHO, data="in.js")), files={"in.js": content})
    outcome = await sandbox.run(run)
    assert outcome.error is None
    assert outcome.stdout == content
    assert outcome.exit_code == 0
    assert {"start_ms", "run_ms", "total_ms", "cpu_ms", "memory_peak_bytes"} <= set(outcome.metrics)


@pytest.mark.parametrize("place", ["memory", "disk", "full"])
async def test_small_inputs_are_in_memory_where_that_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    memory, seen = tmp_path / "memory", []
    monkeypatch.setattr("propeller.wasm.task_runs.memory_folder", lambda: None if place == "disk" else memory)
    create = folder_contents.create

    def make(folder: Path, *given: Any, inputs: Path | None = None) -> None:
        create(folder, *given, inputs=inputs)
        if place == "full" and inputs is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        seen.append((folder / "in").resolve().is_relative_to(memory))

    monkeypatch.setattr(folder_contents, "create", make)
    async with Sandbox(tmp_path / "sandbox") as sandbox:
        digest = await add(sandbox, command(OPEN_IN + ECHO, data="in.js"))
        for content in (b"small", bytes(300_000)):
            outcome = await sandbox.run(ProgramRun("a", digest, files={"in.js": content}))
            assert (outcome.error, outcome.stdout) == (None, content)
        folders = [
            *(tmp_path / "sandbox" / "tasks").iterdir(),
            *(memory.iterdir() if memory.exists() else ()),
        ]
        await eventually(
            lambda: not any(True for own in folders for _ in own.iterdir()), 1, "the folders are gone"
        )
    assert seen == [place == "memory", False]
    assert not memory.exists() or list(memory.iterdir()) == []


async def test_a_file_out(sandbox: Sandbox) -> None:
    code = f"""
      (drop (call $path_create_directory (i32.const {OUT}) (i32.const 64) (i32.const 1)))
      (drop (call $path_open (i32.const {OUT}) (i32.const 0) (i32.const 64) (i32.const 3) (i32.const 1)
        (i64.const 0x40) (i64.const 0) (i32.const 0) (i32.const 32)))
      (drop (call $write (i32.load (i32.const 32)) (i32.const 67) (i32.const 4)))"""
    outcome = await sandbox.run(ProgramRun("a", await add(sandbox, command(code, data="d/fdata"))))
    assert outcome.error is None
    assert outcome.out_files == {"d/f": b"data"}


async def test_standard_error_comes_live(sandbox: Sandbox) -> None:
    """A line is there while the program still runs."""
    code = """
      (drop (call $write (i32.const 2) (i32.const 64) (i32.const 10)))
      (loop $l (br $l))"""
    came = asyncio.Event()
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        came.set()

    digest = await add(sandbox, command(code, data="first\\nlast"))
    run = asyncio.create_task(sandbox.run(ProgramRun("a", digest), take))
    await asyncio.wait_for(came.wait(), 10)
    assert lines == ["first"]
    await sandbox.kill("a")
    await run
    assert lines == ["first", "last"]


async def test_environment_and_arguments(sandbox: Sandbox) -> None:
    """Only what the run says."""
    wasm = bytes(
        wasmtime.wat2wasm("""(module
      (import "wasi_snapshot_preview1" "environ_get" (func $env (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 2)
      (func $put (param $at i32) (param $size i32)
        (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $size))
        (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
      (func (export "_start")
        (drop (call $sizes (i32.const 16) (i32.const 20)))
        (drop (call $env (i32.const 64) (i32.const 1024)))
        (call $put (i32.const 1024) (i32.load (i32.const 20)))
        (drop (call $args (i32.const 64) (i32.const 1024)))
        (call $put (i32.const 1024) (i32.const 12))))""")
    )
    run = ProgramRun("a", await add(sandbox, wasm), env={"A": "1", "B": "ü"}, args=("-x",))
    outcome = await sandbox.run(run)
    assert outcome.stdout == "A=1\0B=ü\0".encode() + b"program\0-x\0\0"


CALLED = """
  (global $ready (mut i32) (i32.const 0))
  (func (export "_initialize") (global.set $ready (i32.const 1)))
  (func (export "add") (param i32 i64 f32 f64) (result f64)
    (f64.add (f64.add (f64.convert_i32_s (local.get 0)) (f64.convert_i64_s (local.get 1)))
      (f64.add (f64.promote_f32 (local.get 2)) (local.get 3))))
  (func (export "main") (result i32) (global.get $ready))
  (func (export "tenth") (result f32) (f32.const 0.1))
  (func (export "none"))
"""


async def test_called_exports(sandbox: Sandbox) -> None:
    digest = await add(sandbox, wat(CALLED))
    for export, inputs, value in (
        ("add", ("-1", "4294967296", "0.5", "1e3"), "4294968295.5"),
        ("add", ("4294967295", "18446744073709551615", "1", "1"), "0.0"),
        ("tenth", (), "0.1"),
        ("none", (), None),
        ("absent", (), "1"),  # main, and _initialize before it
        (None, (), "1"),
    ):
        outcome = await sandbox.run(ProgramRun("a", digest, export=export, inputs=inputs))
        assert (outcome.error, outcome.value) == (None, value), export


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (("1",), "inputs: the function takes 4 (i32, i64, f32, f64), 1 given"),
        (("1", "2", "3", "x"), "inputs[3]: 'x' is not a number"),
        (("1.5", "2", "3", "4"), "inputs[0]: '1.5' is not a whole number (i32)"),
        (("4294967296", "2", "3", "4"), "inputs[0]: 4294967296 does not fit i32"),
    ],
)
async def test_wrong_inputs(sandbox: Sandbox, inputs: tuple[str, ...], text: str) -> None:
    outcome = await sandbox.run(ProgramRun("a", await add(sandbox, wat(CALLED)), export="add", inputs=inputs))
    assert outcome.error == text


async def test_no_function_to_call(sandbox: Sandbox) -> None:
    outcome = await sandbox.run(ProgramRun("a", await add(sandbox, wat("")), export="task"))
    assert outcome.error == "the program exports no function named task or main or run or _start"


async def test_components(sandbox: Sandbox) -> None:
    for core, error, limit in (
        ("(i32.const 0)", None, None),
        ("(i32.const 1)", "the program exited with code 1", None),
        ("unreachable", "the program aborted (wasm trap: unreachable)", None),
        ("(loop $l (br $l)) (i32.const 0)", "wall_time_s: over the limit of 0.3 s", "wall_time_s"),
    ):
        run = ProgramRun(
            "a", await add(sandbox, component(core)), limits=Limits(wall_time_s=0.3 if limit else 20)
        )
        outcome = await sandbox.run(run)
        assert (outcome.error, outcome.limit) == (error, limit)
    fuel = await sandbox.run(
        ProgramRun(
            "a", await add(sandbox, component("(loop $l (br $l)) (i32.const 0)")), limits=Limits(fuel=1000)
        )
    )
    assert fuel.limit == "fuel"
    grown = """(loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
      (memory.fill (i32.const 0) (i32.const 1) (i32.shl (memory.size) (i32.const 16))) unreachable"""
    outcome = await sandbox.run(
        ProgramRun("a", await add(sandbox, component(grown)), limits=Limits(memory_bytes=1 << 26))
    )
    assert outcome.limit == "memory_bytes", outcome


async def test_component_that_is_no_command(sandbox: Sandbox) -> None:
    outcome = await sandbox.run(ProgramRun("a", await add(sandbox, bytes(wasmtime.wat2wasm("(component)")))))
    assert outcome.error == "the component does not export wasi:cli/run@0.2"


async def test_many_at_once(sandbox: Sandbox) -> None:
    digest = await add(sandbox, command(OPEN_IN + ECHO, data="in.js"))
    runs = [ProgramRun(f"run-{n}", digest, files={"in.js": str(n).encode()}) for n in range(40)]
    outcomes = await asyncio.gather(*(sandbox.run(run) for run in runs))
    assert [outcome.stdout for outcome in outcomes] == [str(n).encode() for n in range(40)]


async def test_same_id_twice(sandbox: Sandbox) -> None:
    digest = await add(sandbox, command("(loop $l (br $l))"))
    first = asyncio.create_task(sandbox.run(ProgramRun("a", digest)))
    await asyncio.sleep(0)
    second = await sandbox.run(ProgramRun("a", digest))
    assert second.error == "a task with the id a is still running"
    await sandbox.kill("a")
    assert (await first).error == "stopped before completion"


async def test_parallel(sandbox: Sandbox) -> None:
    """Two tasks each wait until they have seen the other: both are in the runtime at the same time."""
    endless = await add(
        sandbox,
        command(
            "(drop (call $write (i32.const 2) (i32.const 64) (i32.const 3))) (loop $l (br $l))", data="up\\n"
        ),
    )
    up = {"a": asyncio.Event(), "b": asyncio.Event()}

    def run(name: str) -> "asyncio.Task[RunOutcome]":
        return asyncio.create_task(sandbox.run(ProgramRun(name, endless), lambda _: up[name].set()))

    runs = [run(name) for name in up]
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in up.values())), 20)
    assert not any(run.done() for run in runs)
    for name in up:
        await sandbox.kill(name)
    await asyncio.gather(*runs)


async def test_cancelled(sandbox: Sandbox) -> None:
    """A cancelled run ends its process (the fixture looks)."""
    digest = await add(
        sandbox,
        command(
            "(drop (call $write (i32.const 2) (i32.const 64) (i32.const 3))) (loop $l (br $l))", data="up\\n"
        ),
    )
    up = asyncio.Event()
    run = asyncio.create_task(sandbox.run(ProgramRun("a", digest), lambda _: up.set()))
    await asyncio.wait_for(up.wait(), 10)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


async def test_file_names(sandbox: Sandbox) -> None:
    digest = await add(sandbox, command(""))
    for name in ("../x", "a/b", "", ".."):
        outcome = await sandbox.run(ProgramRun("a", digest, files={name: b""}))
        assert outcome.error == f"files: {name!r} is not a plain file name"


async def test_program_that_is_not_there(sandbox: Sandbox) -> None:
    for digest in (digest_of(b"x"), "../../etc/passwd", "sha256:short"):
        assert not sandbox.has(digest)
        outcome = await sandbox.run(ProgramRun("a", digest))
        assert outcome.error is not None
        assert "is not in the cache" in outcome.error


async def test_digest_is_verified(sandbox: Sandbox) -> None:
    with pytest.raises(ProgramError, match=r"^digest: the program's bytes are sha256:"):
        await sandbox.add(digest_of(b"other"), command(""))
    with pytest.raises(ProgramError, match="must be sha256:"):
        await sandbox.add("sha256:../x", command(""))


async def test_light_to_import() -> None:
    """The proplet's process does not load the runtime."""
    import subprocess
    import sys

    code = "import sys, propeller.wasm.sandbox; print([m for m in ('wasmtime', 'numpy', 'pydantic') if m in sys.modules])"
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_folder_of_someone_else(tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ProgramError, match="chmod 700"):
        Sandbox(tmp_path)
