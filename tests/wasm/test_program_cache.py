"""The cache of programs and compiled code."""

import asyncio
import os
from pathlib import Path

import pytest

from propeller.digests import digest_of
from propeller.wasm.program_cache import ProgramCache
from propeller.wasm.program_run import ProgramError, ProgramRun
from propeller.wasm.sandbox import Sandbox
from support.guests import add, command

GOOD = command("")


def stored(folder: Path) -> list[str]:
    names = (path.name.split(".", 1)[1].split(".")[-1] for path in (folder / "programs").iterdir())
    return sorted(name for name in names if name != "lock")


async def test_compiled_once(tmp_path: Path) -> None:
    """Also by many at once, and found again by the next sandbox."""
    async with Sandbox(tmp_path) as sandbox, Sandbox(tmp_path) as other:
        await asyncio.gather(*(add(each, GOOD) for each in (sandbox, other) * 4))
        assert stored(tmp_path) == ["native", "wasm"]
    async with Sandbox(tmp_path) as sandbox:
        assert sandbox.has(digest_of(GOOD))
        outcome = await sandbox.run(ProgramRun("a", digest_of(GOOD)))
        assert outcome.error is None
        assert "compile_ms" not in outcome.metrics
    for path in (tmp_path / "programs").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


async def test_damaged_artifact_is_made_again(tmp_path: Path) -> None:
    async with Sandbox(tmp_path) as sandbox:
        digest = await add(sandbox, GOOD)
        artifact = next((tmp_path / "programs").glob("*.native"))
        for damage in (b"", b"garbage", artifact.read_bytes()[:200]):
            # In another file, as a process that was forked ahead may have this one mapped.
            artifact.unlink()
            artifact.write_bytes(damage)
            outcome = await sandbox.run(ProgramRun("a", digest))
            assert outcome.error is None
            assert outcome.metrics["compile_ms"] > 0


async def test_artifact_that_others_could_write_is_not_used(tmp_path: Path) -> None:
    async with Sandbox(tmp_path) as sandbox:
        digest = await add(sandbox, GOOD)
        artifact = next((tmp_path / "programs").glob("*.native"))
        artifact.chmod(0o666)
        outcome = await sandbox.run(ProgramRun("a", digest))
        assert outcome.error is None
        assert outcome.metrics["compile_ms"] > 0
        assert artifact.stat().st_mode & 0o777 == 0o600


async def test_damaged_program_is_not_compiled(tmp_path: Path) -> None:
    async with Sandbox(tmp_path) as sandbox:
        digest = await add(sandbox, GOOD)
        next((tmp_path / "programs").glob("*.native")).unlink()
        next((tmp_path / "programs").glob("*.wasm")).write_bytes(command("unreachable"))
        outcome = await sandbox.run(ProgramRun("a", digest))
        assert outcome.error is not None
        assert "damaged on disk" in outcome.error
        assert not sandbox.has(digest)


async def test_bounded(tmp_path: Path) -> None:
    """What was used longest ago goes first."""
    programs = [command("nop " * n) for n in range(1, 5)]
    async with Sandbox(tmp_path, cache_bytes=60_000) as sandbox:
        for age, wasm in enumerate(programs):
            await add(sandbox, wasm)
            for path in (tmp_path / "programs").glob(digest_of(wasm)[7:] + "*"):
                os.utime(path, (age + 1, age + 1))
        used = sum(path.stat().st_size for path in (tmp_path / "programs").iterdir())
        assert used <= 60_000
        assert sandbox.has(digest_of(programs[-1]))
        assert not sandbox.has(digest_of(programs[0]))


def test_key(tmp_path: Path) -> None:
    """The artifact's name depends on the runtime and on whether fuel is counted."""
    cache = ProgramCache(tmp_path, 1000)
    digest = digest_of(GOOD)
    cache.add(digest, GOOD, 10_000)
    names = {
        cache.find(digest, runtime, fuel=fuel).artifact for runtime in ("50", "51") for fuel in (True, False)
    }
    assert len(names) == 4
    with pytest.raises(ProgramError):
        cache.find(digest_of(b""), "50", fuel=False)
