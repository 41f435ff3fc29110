"""Programs that mean harm: each fails with an error that names the limit, and the next task runs as if nothing had been."""

import asyncio
import re
import time
from pathlib import Path

import pytest
import wasmtime

from propeller.digests import digest_of
from propeller.wasm.program_run import MIB, Limits, ProgramError, ProgramRun, RunOutcome
from propeller.wasm.sandbox import Sandbox
from propeller.wasm.task_users import TaskUsers
from support.guests import IN, OUT, add, command, wat
from support.net import eventually

GOOD = command("(drop (call $write (i32.const 1) (i32.const 64) (i32.const 4)))", data="good")
FOREVER = "(loop $l (br $l))"


async def attempt(
    sandbox: Sandbox, wasm: bytes, *, seconds: float = 20, **limits: float | None
) -> RunOutcome:
    """Run a hostile program, then a good one, which must work; gives the first one's outcome."""
    digest = await add(sandbox, wasm)
    asked = Limits(**{"wall_time_s": seconds, **limits})  # type: ignore[arg-type]
    outcome = await sandbox.run(
        ProgramRun("hostile", digest, env={"A": "b"}, files={"data": b"x"}, limits=asked)
    )
    after = await sandbox.run(ProgramRun("good", await add(sandbox, GOOD)))
    assert (after.error, after.stdout) == (None, b"good")
    return outcome


def named(outcome: RunOutcome, limit: str) -> None:
    """Check that the outcome names its limit."""
    assert outcome.limit == limit, outcome
    assert outcome.error is not None
    assert outcome.error.startswith(f"{limit}: over the limit of "), outcome


async def test_endless_loop(sandbox: Sandbox) -> None:
    outcome = await attempt(sandbox, command(FOREVER), wall_time_s=0.3)
    named(outcome, "wall_time_s")
    assert outcome.error == "wall_time_s: over the limit of 0.3 s"


async def test_endless_loop_with_fuel(sandbox: Sandbox) -> None:
    outcome = await attempt(sandbox, command(FOREVER), fuel=100_000)
    named(outcome, "fuel")
    assert outcome.metrics["fuel"] == 100_000


async def test_endless_start_function(sandbox: Sandbox) -> None:
    wasm = wat(f'(func $begin {FOREVER}) (start $begin) (func (export "_start"))')
    named(await attempt(sandbox, wasm, wall_time_s=0.3), "wall_time_s")


async def test_blocked_host_call(sandbox: Sandbox) -> None:
    """A guest that sleeps for an hour in ``poll_oneoff``, where no Wasm code runs."""
    code = """
      (i32.store (i32.const 16) (i32.const 1))
      (i64.store (i32.const 24) (i64.const 3600000000000))
      (drop (call $poll_oneoff (i32.const 0) (i32.const 128) (i32.const 1) (i32.const 256)))"""
    named(await attempt(sandbox, command(code), wall_time_s=0.3), "wall_time_s")


@pytest.mark.parametrize("exported", [True, False])
async def test_memory_bomb(sandbox: Sandbox, exported: bool) -> None:
    grow = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable"
    memory = '(memory (export "memory") 1)' if exported else "(memory 1)"
    wasm = bytes(wasmtime.wat2wasm(f'(module {memory} (func (export "_start") {grow}))'))
    named(await attempt(sandbox, wasm, memory_bytes=64 * MIB), "memory_bytes")


@pytest.mark.parametrize("ends", ["unreachable", "(call $proc_exit (i32.const 2))"])
async def test_memory_that_is_asked_for_at_once(sandbox: Sandbox, ends: str) -> None:
    """Nothing of it is taken: only what the program says tells that this is the limit's doing."""
    words = "fatal error: runtime: out of memory"
    code = f"""
      (if (i32.ne (memory.grow (i32.const 16384)) (i32.const -1)) (then return))
      (drop (call $write (i32.const 2) (i32.const 64) (i32.const {len(words)}))) {ends}"""
    outcome = await attempt(sandbox, command(code, data=words), memory_bytes=64 * MIB)
    named(outcome, "memory_bytes")
    assert outcome.metrics["memory_peak_bytes"] < 64 * MIB


async def test_memory_bomb_in_many_memories(sandbox: Sandbox) -> None:
    """Each is below the limit; together they are not: the process's own limit holds."""
    wasm = bytes(
        wasmtime.wat2wasm(
            "(module "
            + "(memory 1024) " * 16
            + '(func (export "_start") '
            + "".join(
                f"(memory.fill {n} (i32.const 0) (i32.const 1) (i32.const 0x4000000))" for n in range(16)
            )
            + "))"
        )
    )
    outcome = await attempt(sandbox, wasm, memory_bytes=64 * MIB)
    assert outcome.error is not None
    assert outcome.metrics["memory_peak_bytes"] < 400 * MIB


async def test_declared_memory(sandbox: Sandbox) -> None:
    wasm = bytes(wasmtime.wat2wasm('(module (memory 16384) (func (export "_start")))'))
    named(await attempt(sandbox, wasm), "memory_bytes")


@pytest.mark.parametrize("table", ['(table $t (export "t") 1 funcref)', "(table $t 1 funcref)"])
async def test_table_bomb(sandbox: Sandbox, table: str) -> None:
    grow = "(loop $l (br_if $l (i32.ne (table.grow $t (ref.null func) (i32.const 999)) (i32.const -1)))) unreachable"
    wasm = bytes(wasmtime.wat2wasm(f'(module {table} (func (export "_start") {grow}))'))
    named(await attempt(sandbox, wasm, table_elements=100_000), "table_elements")


async def test_declared_table(sandbox: Sandbox) -> None:
    wasm = bytes(wasmtime.wat2wasm('(module (table 100000000 funcref) (func (export "_start")))'))
    named(await attempt(sandbox, wasm), "table_elements")


@pytest.mark.parametrize(("fd", "limit"), [(1, "stdout_bytes"), (2, "stderr_bytes")])
async def test_output_flood(sandbox: Sandbox, fd: int, limit: str) -> None:
    code = f"(loop $l (drop (call $write (i32.const {fd}) (i32.const 64) (i32.const 65000))) (br $l))"
    outcome = await attempt(sandbox, command(code), **{limit: 1_000_000})
    named(outcome, limit)
    assert len(outcome.stdout) <= 1_000_000
    assert outcome.metrics["total_ms"] < 5000


async def test_output_flood_that_ends(sandbox: Sandbox) -> None:
    """One byte too much, and then a good end: still over."""
    code = "(drop (call $write (i32.const 1) (i32.const 64) (i32.const 1001)))"
    named(await attempt(sandbox, command(code), stdout_bytes=1000), "stdout_bytes")
    assert (await attempt(sandbox, command(code), stdout_bytes=1001)).error is None


OPEN = """
  (func $open (param $dir i32) (param $at i32) (param $size i32) (param $flags i32) (result i32)
    (call $path_open (local.get $dir) (i32.const 0) (local.get $at) (local.get $size) (local.get $flags)
      (i64.const 0x42) (i64.const 0) (i32.const 0) (i32.const 32)))
"""
"""Opens to read and write; the new descriptor is at 32. Flags: 1 create, 2 folder, 4 exclusive, 8 empty."""


async def test_file_flood_in_bytes(sandbox: Sandbox, tmp_path: Path) -> None:
    code = f"""
      (if (call $open (i32.const {OUT}) (i32.const 64) (i32.const 4) (i32.const 1)) (then unreachable))
      (loop $l (br_if $l (i32.eqz (call $write (i32.load (i32.const 32)) (i32.const 64) (i32.const 65000)))))
      {FOREVER}"""
    outcome = await attempt(sandbox, command(code, data="file", more=OPEN), out_bytes=5_000_000)
    named(outcome, "out_bytes")
    assert outcome.out_files == {}


CREATE_AND_UNLINK = f"""
  (if (call $open (i32.const {OUT}) (i32.const 64) (i32.const 4) (i32.const 1)) (then unreachable))
  (if (call $path_unlink_file (i32.const {OUT}) (i32.const 64) (i32.const 4)) (then unreachable))"""


async def test_an_unlinked_file_counts(sandbox: Sandbox) -> None:
    """Its room is taken as long as it is open, whatever its name was."""
    code = f"""
      {CREATE_AND_UNLINK}
      (loop $l
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (drop (call $write (i32.load (i32.const 32)) (i32.const 64) (i32.const 60000)))
        (br_if $l (i32.lt_u (local.get $i) (i32.const 80))))
      {FOREVER}"""
    assert (
        await attempt(sandbox, command(code, data="file", more=OPEN), out_bytes=4_800_000, wall_time_s=0.5)
    ).limit == "wall_time_s"
    more = CREATE_AND_UNLINK + "(drop (call $write (i32.load (i32.const 32)) (i32.const 64) (i32.const 1)))"
    code = code.replace(FOREVER, more + FOREVER)
    named(await attempt(sandbox, command(code, data="file", more=OPEN), out_bytes=4_800_000), "out_bytes")


async def test_many_unlinked_files_count(sandbox: Sandbox) -> None:
    code = f"""
      (loop $l
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        {CREATE_AND_UNLINK}
        (br_if $l (i32.lt_u (local.get $i) (i32.const 51))))
      {FOREVER}"""
    named(await attempt(sandbox, command(code, data="file", more=OPEN), out_files=50), "out_files")


@pytest.mark.parametrize("ends", [True, False])
async def test_a_file_with_holes_counts_for_its_length(sandbox: Sandbox, ends: bool) -> None:
    code = f"""
      (if (call $open (i32.const {OUT}) (i32.const 64) (i32.const 4) (i32.const 1)) (then unreachable))
      (drop (call $fd_filestat_set_size (i32.load (i32.const 32)) (i64.const 5000001)))
      {"" if ends else FOREVER}"""
    named(await attempt(sandbox, command(code, data="file", more=OPEN), out_bytes=5_000_000), "out_bytes")


async def test_hard_links_count_for_each_name(sandbox: Sandbox) -> None:
    code = f"""
      (if (call $open (i32.const {OUT}) (i32.const 64) (i32.const 4) (i32.const 1)) (then unreachable))
      (drop (call $write (i32.load (i32.const 32)) (i32.const 64) (i32.const 30000)))
      (if (call $path_link (i32.const {OUT}) (i32.const 0) (i32.const 64) (i32.const 4)
        (i32.const {OUT}) (i32.const 68) (i32.const 4)) (then unreachable))"""
    named(await attempt(sandbox, command(code, data="filelink", more=OPEN), out_bytes=50_000), "out_bytes")


async def test_two_tasks_are_counted_apart(sandbox: Sandbox) -> None:
    """What one has unlinked ends that one alone."""
    digest = await add(
        sandbox,
        command(
            f"{CREATE_AND_UNLINK} (drop (call $write (i32.load (i32.const 32)) (i32.const 64) (i32.const 60000))) {FOREVER}",
            data="file",
            more=OPEN,
        ),
    )
    runs = [
        ProgramRun(name, digest, limits=Limits(out_bytes=bytes_, wall_time_s=0.5))
        for name, bytes_ in (("a", 59_999), ("b", 60_000))
    ]
    outcomes = await asyncio.gather(*map(sandbox.run, runs))
    assert [outcome.limit for outcome in outcomes] == ["out_bytes", "wall_time_s"]


async def test_descriptor_flood(sandbox: Sandbox) -> None:
    """One file, opened again and again; the kernel gives one descriptor more than there may be, so that it is seen."""
    code = f"""
      (loop $l (br_if $l (i32.eqz (call $open (i32.const {OUT}) (i32.const 64) (i32.const 4) (i32.const 1)))))
      {FOREVER}"""
    outcome = await attempt(sandbox, command(code, data="file", more=OPEN), descriptors=100)
    if {"landlock", "own_user"} & set(await sandbox.protections()):
        named(outcome, "descriptors")


@pytest.mark.parametrize("ends", [True, False])
async def test_file_flood_in_number(sandbox: Sandbox, ends: bool) -> None:
    code = f"""
      (loop $l
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (i32.store8 (i32.const 64) (i32.add (i32.const 97) (i32.rem_u (local.get $i) (i32.const 26))))
        (i32.store8 (i32.const 65) (i32.add (i32.const 97) (i32.div_u (local.get $i) (i32.const 26))))
        (if (call $open (i32.const {OUT}) (i32.const 64) (i32.const 2) (i32.const 1)) (then unreachable))
        (drop (call $fd_close (i32.load (i32.const 32))))
        (br_if $l (i32.lt_u (local.get $i) (i32.const 100))))
      {"" if ends else FOREVER}"""
    outcome = await attempt(sandbox, command(code, more=OPEN), out_files=50)
    named(outcome, "out_files")


async def test_nested_folders(sandbox: Sandbox) -> None:
    """Deeper than a path can name and than the interpreter can recurse: all gone afterwards (see the fixture)."""
    code = f"""
      (i32.store (i32.const 32) (i32.const {OUT}))
      (loop $l
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (if (call $path_create_directory (i32.load (i32.const 32)) (i32.const 64) (i32.const 4)) (then unreachable))
        (i32.store (i32.const 40) (i32.load (i32.const 32)))
        (if (call $path_open (i32.load (i32.const 32)) (i32.const 0) (i32.const 64) (i32.const 4) (i32.const 2)
          (i64.const 0x22200) (i64.const 0x22200) (i32.const 0) (i32.const 32)) (then unreachable))
        (if (i32.ne (i32.load (i32.const 40)) (i32.const {OUT}))
          (then (drop (call $fd_close (i32.load (i32.const 40))))))
        (br_if $l (i32.lt_u (local.get $i) (i32.const 2000))))"""
    named(await attempt(sandbox, command(code, data="deep")), "out_files")


@pytest.mark.parametrize(
    "path", ["../escaped", "/etc/passwd", "../../../../../../etc/passwd", "/tmp/escaped"]
)
@pytest.mark.parametrize("folder", [IN, OUT])
async def test_path_escapes(sandbox: Sandbox, path: str, folder: int, tmp_path: Path) -> None:
    """The runtime refuses each; the program says so by its exit code."""
    call = f"(call $open (i32.const {folder}) (i32.const 64) (i32.const {len(path)}) (i32.const 1))"
    outcome = await attempt(sandbox, command(f"(call $proc_exit {call})", data=path, more=OPEN))
    assert outcome.exit_code not in {0, None}
    assert outcome.error == f"the program exited with code {outcome.exit_code}"
    assert not list(tmp_path.rglob("escaped"))


async def test_in_cannot_be_written(sandbox: Sandbox) -> None:
    for flags, name in ((1, "new!"), (8, "data")):
        call = f"(call $open (i32.const {IN}) (i32.const 64) (i32.const 4) (i32.const {flags}))"
        outcome = await attempt(sandbox, command(f"(call $proc_exit {call})", data=name, more=OPEN))
        assert outcome.exit_code not in {0, None}, name


@pytest.mark.parametrize("target", ["../in/data", "../../../../../etc/passwd"])
async def test_links_out_of_the_folder(sandbox: Sandbox, target: str) -> None:
    """A link may be made, but neither the guest nor the host follows it."""
    size = len(target)
    made = f"""(call $path_symlink (i32.const 64) (i32.const {size}) (i32.const {OUT})
      (i32.const {64 + size}) (i32.const 4))"""
    opened = f"(call $open (i32.const {OUT}) (i32.const {64 + size}) (i32.const 4) (i32.const 0))"
    code = f"(drop {made}) (if (i32.eqz {opened}) (then unreachable))"
    outcome = await attempt(sandbox, command(code, data=target + "link", more=OPEN))
    assert outcome.error in {None, "/out/link: not a regular file; write files and folders only"}
    assert outcome.out_files == {}


async def test_absolute_link(sandbox: Sandbox) -> None:
    made = (
        f"(call $path_symlink (i32.const 64) (i32.const 11) (i32.const {OUT}) (i32.const 75) (i32.const 4))"
    )
    outcome = await attempt(sandbox, command(f"(call $proc_exit {made})", data="/etc/passwdlink"))
    assert outcome.exit_code not in {0, None}


async def test_deep_recursion(sandbox: Sandbox) -> None:
    wasm = wat('(func $f (export "_start") (call $f))')
    named(await attempt(sandbox, wasm), "stack_bytes")


async def test_trap(sandbox: Sandbox) -> None:
    outcome = await attempt(sandbox, command("unreachable"))
    assert outcome.error == "the program aborted (wasm trap: unreachable)"
    assert outcome.limit is None


async def test_exit_code(sandbox: Sandbox) -> None:
    outcome = await attempt(sandbox, command("(call $proc_exit (i32.const 7))"))
    assert (outcome.exit_code, outcome.error) == (7, "the program exited with code 7")


async def test_unknown_import(sandbox: Sandbox) -> None:
    wasm = bytes(wasmtime.wat2wasm('(module (import "env" "socket" (func)) (func (export "_start")))'))
    outcome = await attempt(sandbox, wasm)
    assert outcome.error is not None
    assert "unknown import: `env::socket`" in outcome.error


async def test_garbage(sandbox: Sandbox) -> None:
    for wasm, text in (
        (b"", "not a Wasm program"),
        (b"\x7fELF" + b"x" * 100, "not a Wasm program"),
        (b"\0asm\x01\0\0\0" + b"\xff" * 100, "not a valid Wasm program"),
        (b"\0asm\x0d\0\x01\0" + b"\xff" * 100, "not a valid Wasm program"),
        (GOOD[:-20], "not a valid Wasm program"),
    ):
        with pytest.raises(ProgramError, match=text):
            await add(sandbox, wasm)
        outcome = await sandbox.run(ProgramRun("a", digest_of(wasm)))
        assert outcome.error is not None


async def test_module_over_its_size(sandbox: Sandbox) -> None:
    with pytest.raises(ProgramError, match=r"^module_bytes: over the limit of 100 bytes$") as caught:
        await sandbox.add(digest_of(GOOD), GOOD, Limits(module_bytes=100))
    assert caught.value.limit == "module_bytes"
    assert not sandbox.has(digest_of(GOOD))


async def test_compile_bomb(sandbox: Sandbox) -> None:
    """A small module that takes long to compile is ended, and so is one that takes much memory."""
    body = "(i32.add (i32.mul (i32.const 3)) (i32.const 5)) " * 20_000
    text = "(module " + f"(func (param i32) (result i32) (local.get 0) {body})" * 20 + ")"
    wasm = bytes(wasmtime.wat2wasm(text))
    with pytest.raises(ProgramError, match=r"^compile_s: over the limit of 0\.1 s$"):
        await sandbox.add(digest_of(wasm), wasm, Limits(compile_s=0.1))
    with pytest.raises(ProgramError, match=r"^compile_memory_bytes: over the limit of"):
        await sandbox.add(digest_of(wasm), wasm, Limits(compile_memory_bytes=40 * MIB))
    assert (await sandbox.run(ProgramRun("good", await add(sandbox, GOOD)))).stdout == b"good"


async def test_nothing_is_inherited(sandbox: Sandbox, tmp_path: Path) -> None:
    """The guest has the environment and the descriptors it is given, and its process no others of the proplet's."""
    digest = await add(sandbox, command(FOREVER))
    await eventually(lambda: not _children_of(sandbox))  # the compiler's process is gone
    running = asyncio.create_task(sandbox.run(ProgramRun("a", digest, env={"ONLY": "this"})))
    pid = max(await eventually(lambda: _children_of(sandbox)))
    place = Path(f"/proc/{pid}")

    def confined() -> bool:
        return "Seccomp:\t2" in (place / "status").read_text()

    if "seccomp" in await sandbox.protections():
        await eventually(confined)
        for thread in (place / "task").iterdir():  # those of the runtime too
            assert "NoNewPrivs:\t1\nSeccomp:\t2" in (thread / "status").read_text()
            status = (thread / "status").read_text()
            assert re.search(r"CapPrm:\t0+\nCapEff:\t0+\n", status)
            if "own_user" in await sandbox.protections():
                assert re.search(r"Uid:\t(\d{5,})\t\1\t\1\t\1\nGid:\t\1\t\1\t\1\t\1\n", status)
                assert re.search(r"Groups:\t *\n", status)
    with TaskUsers.find(str(tmp_path)).looking_at(pid):  # containers' root may not see it by itself
        names = sorted(str(link.readlink()) for link in (place / "fd").iterdir())
    tasks = next((tmp_path / "sandbox" / "tasks").glob("*/*/out")).parent
    allowed = (
        "/dev/null",
        str((tasks / "in").resolve()),
        str(tasks / "out"),
        str(tmp_path / "sandbox" / "programs" / digest.removeprefix("sha256:")),
    )
    assert [name for name in names if name.startswith("/") and not name.startswith(allowed)] == []
    assert not [name for name in names if name.startswith("socket")]
    limits = (place / "limits").read_text()
    assert re.search(r"Max core file size +1 +1 ", limits)
    assert re.search(r"Max cpu time +305 +305 ", limits)
    await sandbox.kill("a")
    await running


def _children_of(sandbox: Sandbox) -> list[int]:
    from support.guests import children

    return children(sandbox.template_pid)


async def test_stop_is_quick(sandbox: Sandbox) -> None:
    digest = await add(sandbox, command(FOREVER))
    await eventually(lambda: not _children_of(sandbox))  # the compiler's
    running = asyncio.create_task(sandbox.run(ProgramRun("a", digest)))
    await eventually(lambda: _children_of(sandbox))
    begin = time.monotonic()
    assert await sandbox.kill("a")
    outcome = await running
    assert outcome.error == "stopped before completion"
    assert time.monotonic() - begin < 1  # the figure is 0.1, on a machine that does nothing else
    assert not await sandbox.kill("a")
