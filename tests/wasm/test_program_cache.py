"""The cache of programs and compiled code."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
import wasmtime

from propeller.digests import digest_of
from propeller.wasm.layers import Layer
from propeller.wasm.program_cache import CachedProgram, ProgramCache
from propeller.wasm.program_run import ProgramError, ProgramRun
from propeller.wasm.sandbox import Sandbox
from support.guests import add, command
from support.net import eventually

GOOD = command("")


def stored(folder: Path) -> list[str]:
    names = (path.name.split(".", 1)[1].split(".")[-1] for path in (folder / "programs").iterdir())
    return sorted(name for name in names if name not in {"lock", "sum"})


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


async def test_damage_of_every_kind_is_found_before_it_is_loaded(tmp_path: Path) -> None:
    """By a new sandbox and by one that has run it: a changed byte, a short or longer file, no checksum or a wrong one."""
    folder = tmp_path / "programs"
    async with Sandbox(tmp_path) as running:
        digest = await add(running, GOOD)
        artifact, checksum = next(folder.glob("*.native")), next(folder.glob("*.sum"))
        whole = artifact.read_bytes()
        middle = len(whole) // 2
        changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        for damage, text in (
            (changed, None), (whole[:-1], None), (whole + b"x", None), (whole, b""), (whole, b"0" * 64),
        ):  # fmt: skip
            artifact.unlink()
            artifact.write_bytes(damage)
            artifact.chmod(0o600)
            if text is not None:
                checksum.write_bytes(text)
            async with Sandbox(tmp_path) as new:
                for sandbox, again in ((running, True), (new, False)):
                    outcome = await sandbox.run(ProgramRun("a", digest))
                    assert outcome.error is None
                    assert ("compile_ms" in outcome.metrics) is again
            assert artifact.read_bytes() == whole
        checksum.unlink()
        async with Sandbox(tmp_path) as new:
            assert "compile_ms" in (await new.run(ProgramRun("a", digest))).metrics


async def test_another_programs_artifact_is_not_loaded(tmp_path: Path) -> None:
    """Not even with its checksum."""
    other = command("unreachable")
    async with Sandbox(tmp_path) as sandbox:
        good = await add(sandbox, GOOD)
        (artifact,) = (tmp_path / "programs").glob("*.native")
        await add(sandbox, other)
        (another,) = (tmp_path / "programs").glob(f"{digest_of(other)[7:]}*.native")
        for ending in ("", ".sum"):
            Path(f"{another}{ending}").replace(f"{artifact}{ending}")
        outcome = await sandbox.run(ProgramRun("a", good))
        assert outcome.error is None
        assert outcome.metrics["compile_ms"] > 0


async def test_what_runs_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checksums are made of an artifact once in a process, as long as the file system says that nothing changed."""
    read: list[CachedProgram] = []
    verify = ProgramCache.verify_artifact

    def counted(cache: ProgramCache, program: CachedProgram) -> bool:
        read.append(program)
        return verify(cache, program)

    async with Sandbox(tmp_path) as sandbox:
        digest = await add(sandbox, GOOD)
        monkeypatch.setattr(ProgramCache, "verify_artifact", counted)
        for name in "abc":
            assert (await sandbox.run(ProgramRun(name, digest))).error is None
        assert not read


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


def test_a_runtime_is_no_layer_itself(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path / "programs", 1 << 20)
    inner = Layer(digest_of(GOOD), b"").to_wasm()
    outer = Layer(digest_of(inner), b"").to_wasm()
    for wasm in (GOOD, inner, outer):
        cache.add(digest_of(wasm), wasm, 1 << 20)
    assert cache.find(digest_of(inner), "1", fuel=False).source.stem == digest_of(GOOD)[7:]
    with pytest.raises(ProgramError, match="its runtime is a layer itself"):
        cache.find(digest_of(outer), "1", fuel=False)
    assert not cache.uses_host_tensors(digest_of(outer))


async def test_a_compilation_outlasts_the_task_that_wanted_it(tmp_path: Path) -> None:
    """A round that ends before finds it done the next time, and nobody compiles twice."""
    body = "(i32.add (i32.mul (i32.const 3)) (i32.const 5)) " * 12_000
    slow = bytes(
        wasmtime.wat2wasm(
            '(module (func (export "_start"))'
            + f"(func (param i32) (result i32) (local.get 0) {body})" * 8
            + ")"
        )
    )
    digest = digest_of(slow)
    async with Sandbox(tmp_path) as sandbox:
        (tmp_path / "programs" / f"{digest[7:]}.wasm").write_bytes(slow)
        running = asyncio.create_task(sandbox.run(ProgramRun("first", digest)))
        await asyncio.sleep(0.2)
        assert await sandbox.kill("first")
        outcome = await running
        assert outcome.error == "stopped before completion"
        assert stored(tmp_path) in (["wasm"], ["part", "wasm"])
        await eventually(lambda: "native" in stored(tmp_path), 30)
        [made] = (tmp_path / "programs").glob("*.native")
        before = made.stat().st_ino
        outcome = await sandbox.run(ProgramRun("next", digest))
        assert outcome.error is None
        assert made.stat().st_ino == before


async def test_what_cannot_be_compiled_is_not_tried_again(tmp_path: Path) -> None:
    broken = GOOD[:-20]
    async with Sandbox(tmp_path) as sandbox:
        with pytest.raises(ProgramError, match="not a valid Wasm program") as first:
            await sandbox.add(digest_of(broken), broken)
        os.kill(sandbox.template_pid, signal.SIGSTOP)  # who compiles
        try:
            with pytest.raises(ProgramError) as second:
                await asyncio.wait_for(sandbox.compiled(digest_of(broken)), 5)
        finally:
            os.kill(sandbox.template_pid, signal.SIGCONT)
    assert str(second.value) == str(first.value)


def test_a_damaged_layer_is_removed_and_never_run(tmp_path: Path) -> None:
    """Changed or cut: it has no checksum of its own but its digest."""
    layer = Layer(digest_of(GOOD), b"the code").to_wasm()
    for damaged in (layer.replace(b"the code", b"xxx code"), layer[:-3]):
        cache = ProgramCache(tmp_path / "programs", 1 << 20)
        for wasm in (GOOD, layer):
            cache.add(digest_of(wasm), wasm, 1 << 20)
        (tmp_path / "programs" / f"{digest_of(layer)[7:]}.wasm").write_bytes(damaged)
        with pytest.raises(ProgramError, match="damaged on disk; removed"):
            cache.find(digest_of(layer), "1", fuel=False)
        assert not cache.has(digest_of(layer))


def test_what_names_a_runtime_and_is_no_layer_is_refused(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path / "programs", 1 << 20)
    mixed = Layer(digest_of(GOOD), b"").to_wasm() + GOOD[8:]
    with pytest.raises(ProgramError, match="other sections than a layer"):
        cache.add(digest_of(mixed), mixed, 1 << 20)
