"""One folder of programs for several sandboxes, as the proplets of one machine have it."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from propeller.digests import digest_of
from propeller.wasm.program_cache import CachedProgram, ProgramCache
from propeller.wasm.program_run import Limits, ProgramRun
from propeller.wasm.sandbox import Sandbox
from support.guests import command

PROGRAM = command("(drop (call $write (i32.const 1) (i32.const 64) (i32.const 4)))", data="done")


async def test_a_program_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[CachedProgram] = []
    keep_artifact = ProgramCache.keep_artifact

    def counted(cache: ProgramCache, written: Path, program: CachedProgram) -> None:
        compiled.append(program)
        keep_artifact(cache, written, program)

    monkeypatch.setattr(ProgramCache, "keep_artifact", counted)
    digest, cache = digest_of(PROGRAM), tmp_path / "programs"
    async with Sandbox(tmp_path / "a", cache=cache) as one, Sandbox(tmp_path / "b", cache=cache) as other:
        await asyncio.gather(one.add(digest, PROGRAM), other.add(digest, PROGRAM))
        assert len(compiled) == 1
        outcomes = await asyncio.gather(*(each.run(ProgramRun("j", digest)) for each in (one, other)))
        assert [outcome.stdout for outcome in outcomes] == [b"done", b"done"]
        counting = ProgramRun("k", digest, limits=Limits(fuel=10**6))
        outcomes = await asyncio.gather(*(each.run(counting) for each in (one, other)))
        assert len(compiled) == 2
        assert [outcome.error for outcome in outcomes] == [None, None]
        assert sum("compile_ms" in outcome.metrics for outcome in outcomes) == 1


async def test_locks_are_not_counted_or_removed_as_programs(tmp_path: Path) -> None:
    async with Sandbox(tmp_path / "a", cache=tmp_path / "c", cache_bytes=20_000) as sandbox:
        await sandbox.add(digest_of(PROGRAM), PROGRAM)
        async with sandbox.fetch_lock(digest_of(PROGRAM), 1) as held:
            assert held
            other = command("(nop)")
            await sandbox.add(digest_of(other), other)
            assert not sandbox.has(digest_of(PROGRAM))
    assert {path.suffix for path in (tmp_path / "c").iterdir()} == {".lock", ".wasm", ".native", ".sum"}


async def test_a_process_that_dies_lets_go(tmp_path: Path) -> None:
    cache, digest = ProgramCache(tmp_path, 1000), digest_of(PROGRAM)
    async with cache.lock("fetch", digest, 1):
        (file,) = tmp_path.glob("*.lock")
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        await asyncio.to_thread(holder.stdout.readline)
        async with cache.lock("fetch", digest, 0.05) as held:
            assert not held  # nobody waits for ever
        holder.kill()
    async with cache.lock("fetch", digest, 10) as held:
        assert held


async def test_a_lock_that_cannot_be_had_stops_nobody(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path / "gone", 1000)
    (tmp_path / "gone").rmdir()
    async with cache.lock("fetch", digest_of(PROGRAM), 10) as held:
        assert not held
