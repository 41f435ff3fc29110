"""``/state``: a run gets a copy, and what it leaves is kept whole if it succeeds, or not at all."""

from pathlib import Path

import pytest

from propeller.wasm.program_run import Limits, ProgramRun, RunOutcome, StateFolder
from propeller.wasm.sandbox import Sandbox
from support.guests import OUT, add, command
from support.programs import echo

STATE = 5
"""The guest's descriptor of ``/state``."""

OPEN = """
  (func $open (param $at i32) (param $size i32) (param $flags i32) (result i32)
    (call $path_open (i32.const 5) (i32.const 0) (local.get $at) (local.get $size) (local.get $flags)
      (i64.const 0x42) (i64.const 0) (i32.const 0) (i32.const 32)))
"""
"""Opens a file of ``/state`` to read and write; the new descriptor is at 32. Flags: 1 create, 2 folder."""


class Runs:
    """Runs one after another, each with what the one before left."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self.sandbox, self.folder, self.number = sandbox, folder, 0
        self.source: Path | None = None
        self.said: list[str] = []

    async def run(
        self, wasm: bytes, *, changes: bool = True, limits: Limits | None = None, **env: str
    ) -> RunOutcome:
        self.number += 1
        target = self.folder / f"{self.number}" if changes else None
        self.said.clear()
        outcome = await self.sandbox.run(
            ProgramRun(
                f"t{self.number}",
                await add(self.sandbox, wasm),
                env=env,
                limits=limits or Limits(),
                state=StateFolder(self.source, target),
            ),
            self.said.append,
        )
        if outcome.error is None and target is not None and target.exists():
            self.source = target
        return outcome

    def kept(self) -> dict[str, bytes]:
        """Every file that is kept at present, by its path."""
        assert self.source is not None
        return {
            str(file.relative_to(self.source)): file.read_bytes()
            for file in self.source.rglob("*")
            if file.is_file()
        }


@pytest.fixture
def runs(sandbox: Sandbox, tmp_path: Path) -> Runs:
    (tmp_path / "states").mkdir()
    return Runs(sandbox, tmp_path / "states")


async def test_what_is_left_is_there_in_the_next_run(runs: Runs) -> None:
    assert (await runs.run(echo(), KEEP="one ")).error is None
    assert runs.kept() == {"n": b"one "}
    first = runs.source
    assert first is not None
    assert (await runs.run(echo(), KEEP="two ")).error is None
    assert runs.said == ["one "]
    assert runs.kept() == {"n": b"one two "}
    assert (first / "n").read_bytes() == b"one "  # a copy was changed


async def test_a_failed_run_leaves_it_as_it_was(runs: Runs) -> None:
    await runs.run(echo(), KEEP="one ")
    outcome = await runs.run(echo(), KEEP="two ", FAIL="1")
    assert outcome.exit_code == 3
    assert (runs.said, runs.kept()) == (["one "], {"n": b"one "})
    assert [place.name for place in runs.folder.iterdir()] == ["1"]


async def test_a_run_that_is_killed_leaves_it_as_it_was(runs: Runs) -> None:
    await runs.run(echo(), KEEP="one ")
    outcome = await runs.run(echo(), KEEP="two ", SPIN="1", limits=Limits(wall_time_s=0.5))
    assert outcome.limit == "wall_time_s"
    assert runs.kept() == {"n": b"one "}


async def test_nothing_used_is_nothing_kept(runs: Runs) -> None:
    assert (await runs.run(echo(), REPLY="hello")).stdout == b"hello"
    assert list(runs.folder.iterdir()) == []


async def test_a_run_that_may_not_change_it_cannot(runs: Runs) -> None:
    await runs.run(echo(), KEEP="one ")
    outcome = await runs.run(echo(), changes=False, KEEP="two ")
    assert outcome.exit_code == 4  # the file does not open
    reads = """
      (drop (call $path_open (i32.const 5) (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 0)
        (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 32)))
      (i32.store (i32.const 16) (i32.const 128))
      (i32.store (i32.const 20) (i32.const 100))
      (drop (call $fd_read (i32.load (i32.const 32)) (i32.const 16) (i32.const 1) (i32.const 24)))
      (drop (call $write (i32.const 1) (i32.const 128) (i32.load (i32.const 24))))"""
    assert (await runs.run(command(reads, data="n"), changes=False)).stdout == b"one "
    assert runs.kept() == {"n": b"one "}


async def test_folders_in_it_are_kept(runs: Runs) -> None:
    code = f"""
      (drop (call $path_create_directory (i32.const {STATE}) (i32.const 64) (i32.const 1)))
      (if (call $open (i32.const 64) (i32.const 3) (i32.const 1)) (then unreachable))
      (drop (call $write (i32.load (i32.const 32)) (i32.const 67) (i32.const 4)))"""
    for _ in range(2):
        assert (await runs.run(command(code, data="d/fdata", more=OPEN))).error is None
        assert runs.kept() == {"d/f": b"data"}


async def test_more_bytes_than_it_may_have(runs: Runs) -> None:
    code = """
      (if (call $open (i32.const 64) (i32.const 4) (i32.const 1)) (then unreachable))
      (loop $l (br_if $l (i32.eqz (call $write (i32.load (i32.const 32)) (i32.const 64) (i32.const 65000)))))
      (loop $l (br $l))"""
    flood = command(code, data="file", more=OPEN)
    outcome = await runs.run(flood, limits=Limits(state_bytes=5_000_000, out_bytes=1000))
    assert outcome.error == "state_bytes: over the limit of 5000000 bytes"
    assert list(runs.folder.iterdir()) == []


async def test_more_files_than_it_may_have(runs: Runs) -> None:
    code = f"""
      (loop $l
        (i32.store8 (i32.const 64) (i32.add (i32.const 97) (local.get $i)))
        (drop (call $path_create_directory (i32.const {STATE}) (i32.const 64) (i32.const 1)))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $i) (i32.const 5))))"""
    outcome = await runs.run(command(code), limits=Limits(state_files=4))
    assert outcome.error == "state_files: over the limit of 4 files"
    assert list(runs.folder.iterdir()) == []
    assert (await runs.run(command(code), limits=Limits(state_files=5))).error is None


async def test_a_link_is_not_kept(runs: Runs) -> None:
    code = f"""(drop (call $path_symlink (i32.const 64) (i32.const 10) (i32.const {STATE}) (i32.const 74) (i32.const 1)))"""
    outcome = await runs.run(command(code, data="../in/datal"))
    assert outcome.error == "/state/l: not a regular file; write files and folders only"
    assert list(runs.folder.iterdir()) == []


async def test_a_run_without_one_sees_none(sandbox: Sandbox) -> None:
    outcome = await sandbox.run(ProgramRun("t", await add(sandbox, echo()), env={"KEEP": "x"}))
    assert outcome.exit_code == 4
    assert OUT == STATE - 1  # the descriptor would be this one
