"""One folder of programs for several sandboxes, as the proplets of one machine have it."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from propeller.wasm.job import Job, Limits
from propeller.wasm.programs import Programs
from propeller.wasm.sandbox import Sandbox
from propeller.wasm.turn import turn
from support.guests import command, digest_of

PROGRAM = command("(drop (call $write (i32.const 1) (i32.const 64) (i32.const 4)))", data="done")


async def test_a_program_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    compile_one = Programs._compile

    async def counted(programs: Programs, *arguments: Any) -> None:
        compiled.append(programs)
        await compile_one(programs, *arguments)

    monkeypatch.setattr(Programs, "_compile", counted)
    digest, cache = digest_of(PROGRAM), tmp_path / "programs"
    async with Sandbox(tmp_path / "a", cache=cache) as one, Sandbox(tmp_path / "b", cache=cache) as other:
        await asyncio.gather(one.add(digest, PROGRAM), other.add(digest, PROGRAM))
        assert len(compiled) == 1
        outcomes = await asyncio.gather(*(each.run(Job("j", digest)) for each in (one, other)))
        assert [outcome.stdout for outcome in outcomes] == [b"done", b"done"]
        counting = Job("k", digest, limits=Limits(fuel=10**6))
        outcomes = await asyncio.gather(*(each.run(counting) for each in (one, other)))
        assert len(compiled) == 2
        assert [outcome.error for outcome in outcomes] == [None, None]
        assert sum("compile_ms" in outcome.metrics for outcome in outcomes) == 1


async def test_locks_are_not_counted_or_removed_as_programs(tmp_path: Path) -> None:
    async with Sandbox(tmp_path / "a", cache=tmp_path / "c", cache_bytes=20_000) as sandbox:
        await sandbox.add(digest_of(PROGRAM), PROGRAM)
        async with sandbox.turn(digest_of(PROGRAM), 1) as held:
            assert held
            other = command("(nop)")
            await sandbox.add(digest_of(other), other)
            assert not sandbox.has(digest_of(PROGRAM))
    assert {path.suffix for path in (tmp_path / "c").iterdir()} == {".lock", ".wasm", ".native"}


async def test_a_process_that_dies_lets_go(tmp_path: Path) -> None:
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "l")], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        await asyncio.to_thread(holder.stdout.readline)
        async with turn(tmp_path / "l", 0.05) as held:
            assert not held  # nobody waits for ever
        holder.kill()
    async with turn(tmp_path / "l", 10) as held:
        assert held


async def test_a_lock_that_cannot_be_had_stops_nobody(tmp_path: Path) -> None:
    async with turn(tmp_path / "no such folder" / "l", 10) as held:
        assert not held
