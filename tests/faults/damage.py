"""Damaged files: the stack names each and makes it again, or refuses to work with it until its operator has mended it. It never goes on with other bytes."""

import asyncio
import contextlib
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx

from faults.experiments import REPOSITORY, push_program
from faults.stack import PROPLETS, FaultyStack
from propeller.digests import digest_of_file
from propeller.fl.round import RoundState
from support.net import eventually
from support.stack import propeller

NAMED_S = 60.0
"""Until a damage is named: whatever reads the file may be away for a while, or wait before it tries again."""

LONGEST_S = 3.0
"""From there until it is mended."""

_DATABASES = ("coordinator", "identity", "manager")

Damage = Callable[[bytearray, Random], None]


async def damage_programs(stack: FaultyStack, rng: Random) -> str:
    """Every compiled program is damaged, and whatever runs them is killed, so that it reads them again: they are made again."""
    for file in stack.programs.glob("*.native"):
        _damage(file, rng)
    _kill(stack, *PROPLETS)
    return "compiled programs"


async def damage_broker_store(stack: FaultyStack, rng: Random) -> str:
    """A file of the broker's store is damaged while the stack is down: the broker finds it, or makes a new store."""
    await stack.stop(signal.SIGTERM)
    files = sorted(
        file
        for file in (stack.folder / "broker" / "store").rglob("*")
        if file.is_file() and file.stat().st_size
    )
    assert files, "the broker has a store"
    file = rng.choice([one for one in files if one.name == "meta.inf"] if rng.random() < 1 / 2 else files)
    _damage(file, rng)
    await stack.start()
    return str(file.relative_to(stack.folder))


async def damage_model(stack: FaultyStack, rng: Random) -> str:
    """The newest model version is damaged for a while: its file is named, nobody is given other numbers, and mended it is what it was."""
    version = (await stack.get("model-registry", "/models"))["versions"][-1]
    file = stack.folder / "model-registry" / f"global_model_v{version}.safetensors"
    path = f"/models/{version}"
    whole = await stack.get("model-registry", path)

    async def is_refused() -> bool:
        answer = await stack.ask("model-registry", path)
        if answer is not None and answer.is_success:
            assert answer.json() == whole, f"{file} is damaged, and {path} gives other numbers"
        return answer is not None and answer.status_code == 500 and file.name in answer.text

    with _damaged(file, rng):
        await eventually(is_refused, NAMED_S, f"the model registry names {file}")
        await asyncio.sleep(rng.uniform(0, LONGEST_S))
    assert await stack.get("model-registry", path) == whole
    return file.name


async def damage_update(stack: FaultyStack, rng: Random) -> str:
    """An update is damaged where the coordinator keeps it, before it is aggregated: its sender is named, and the round goes on without it."""
    if (aggregator := stack.process("aggregator")) is None:
        return ""
    aggregator.suspend()
    try:
        round_id = await _wait_for_updates(stack)
        where = await asyncio.to_thread(_damage_updates, stack, rng)
    finally:
        aggregator.kill()  # what it was sent before is gone with it
    if round_id is None or not where:
        return ""

    async def says_so() -> bool:
        found = await stack.get("coordinator", f"/rounds/{round_id}")
        reasons = [one["reason"] for one in found["failures"]]
        is_named = any("damaged where the coordinator keeps it" in reason for reason in reasons)
        assert is_named or not RoundState(found["state"]).is_over, (
            f"{where} was damaged, and {round_id} says {found}"
        )
        return is_named

    await eventually(says_so, NAMED_S, f"{round_id} names whose update is damaged in {where}")
    return f"{where}, of {round_id}"


async def damage_artifact(stack: FaultyStack, rng: Random) -> str:
    """A blob of the program is damaged in the OCI registry, and nobody has the program: the blob is named and set aside, and comes back by a push."""
    manifest, digest = await _manifest(stack)
    blobs = [digest, manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
    damaged = rng.choice(blobs)
    file = stack.folder / "oci-registry" / "blobs" / "sha256" / damaged.removeprefix("sha256:")
    _damage(file, rng)
    for kept in (*stack.programs.glob("*.wasm"), *(stack.folder / "proxy").rglob("*")):
        if kept.is_file():
            kept.unlink(missing_ok=True)
    _kill(stack, "proxy", *PROPLETS)
    aside = file.with_name(f"{file.name}.damaged")
    path = f"/v2/{REPOSITORY}/" + (f"manifests/{damaged}" if damaged == digest else f"blobs/{damaged}")

    async def is_set_aside() -> bool:
        answer = await stack.ask("oci-registry", path)
        assert answer is None or not answer.is_success, f"{file} is damaged, and the registry gives it"
        return aside.exists() and damaged in stack.logs()["oci-registry"]

    await eventually(is_set_aside, NAMED_S, f"the registry sets {file} aside")
    await asyncio.sleep(rng.uniform(0, LONGEST_S))
    await eventually(lambda: _is_pushed(stack), NAMED_S, "the program is pushed again")
    with file.open("rb") as stream:
        assert digest_of_file(stream) == damaged
    aside.unlink()
    return f"{['manifest', 'config', 'program', 'runtime'][blobs.index(damaged)]} {damaged[:19]}…"


async def damage_index(stack: FaultyStack, rng: Random) -> str:
    """The index of the OCI registry is damaged, and it is killed: it refuses to start and names the file, until that is mended."""
    file, log = stack.folder / "oci-registry" / "index.json", stack.folder / "logs" / "oci-registry.log"
    with _damaged(file, rng):
        before = log.stat().st_size
        _kill(stack, "oci-registry")

        async def refuses() -> bool:
            answer = await stack.ask("oci-registry", "/health")
            told = log.read_bytes()[before:].decode(errors="replace")
            assert answer is None or f"{file} is damaged" not in told, (
                f"the registry answers with {file} damaged"
            )
            return f"{file} is damaged" in told

        await eventually(refuses, NAMED_S, f"the registry names {file}")
        await asyncio.sleep(rng.uniform(0, LONGEST_S))
    return "killed, and started on it"


async def damage_stopped_stack(stack: FaultyStack, rng: Random) -> str:
    """A file that a stack needs to start is damaged while it is down: it refuses and names the file; mended, it goes on."""
    await stack.stop(signal.SIGTERM)
    files = [name for name in _DATABASES if name not in stack.databases]
    service = rng.choice((*files, "secrets", "audit"))
    if service == "audit":
        return await _damage_audit_log(stack, rng)
    if service == "secrets":
        file, damage, remedy = stack.folder / "secrets.json", _invert, "restore it"
    else:
        file, damage, remedy = (
            stack.folder / service / f"{service}.db",
            _invert_page,
            "restore it from a backup",
        )
    with _damaged(file, rng, damage):
        refusal = await stack.start_or_refuse()
    if refusal is None:  # the database does not use the page
        return f"{file.name}, where nothing is"
    assert file.name in refusal, refusal
    assert remedy in refusal, refusal
    await stack.start()
    return f"{file.name}, refused"


async def _damage_audit_log(stack: FaultyStack, rng: Random) -> str:
    logs = sorted((stack.folder / "audit").rglob("audit.jsonl"))
    file = rng.choice([one for one in logs if one.stat().st_size])
    service = file.parent.name
    with _damaged(file, rng):
        done = await asyncio.to_thread(propeller, "audit", "verify", "--state", str(stack.folder))
        told = done.stdout + done.stderr
        assert done.returncode == 1, told
        assert service in told, told
    await stack.start()
    return f"the audit log of {service}, which does not verify"


async def _wait_for_updates(stack: FaultyStack) -> str | None:
    """A round that has its updates, if there is one soon."""
    with contextlib.suppress(AssertionError):

        async def find() -> str | None:
            answer = await stack.ask("coordinator", "/rounds")
            rounds = answer.json()["rounds"] if answer is not None and answer.is_success else []
            return next((one["round_id"] for one in rounds if one["state"] == RoundState.AGGREGATING), None)

        return await eventually(find, 15)
    return None


def _damage_updates(stack: FaultyStack, rng: Random) -> str:
    """Damage one of the updates that are kept in files or by SQLite; where it was, nothing if there is none."""
    coordinator = stack.folder / "coordinator"
    files = sorted(file for file in (coordinator / "updates").iterdir() if not file.name.startswith("."))
    if files:
        file = rng.choice(files)
        _damage(file, rng)
        return file.name
    if "coordinator" in stack.databases:
        return ""
    with (
        contextlib.closing(sqlite3.connect(coordinator / "coordinator.db", timeout=10)) as database,
        database,
    ):
        rows = database.execute("SELECT digest, content FROM update_documents ORDER BY digest").fetchall()
        if not rows:
            return ""
        digest, content = rng.choice(rows)
        changed = bytearray(content)
        _invert(changed, rng)
        database.execute("UPDATE update_documents SET content = ? WHERE digest = ?", (bytes(changed), digest))
    return f"{digest} in coordinator.db"


async def _manifest(stack: FaultyStack) -> tuple[dict[str, Any], str]:
    """The manifest of the program and its digest; the registry may be starting just now."""

    async def find() -> httpx.Response | None:
        answer = await stack.ask("oci-registry", f"/v2/{REPOSITORY}/manifests/v1")
        return answer if answer is not None and answer.is_success else None

    answer = await eventually(find, NAMED_S, "the registry has the program's manifest")
    assert answer is not None
    return answer.json(), answer.headers["Docker-Content-Digest"]


async def _is_pushed(stack: FaultyStack) -> bool:
    try:
        await asyncio.to_thread(push_program, stack)
    except AssertionError:  # the registry is away
        return False
    return True


def _kill(stack: FaultyStack, *names: str) -> None:
    for process in map(stack.process, names):
        if process is not None:
            process.kill()


def _invert(content: bytearray, rng: Random) -> None:
    """Some bytes in a row."""
    at = rng.randrange(max(1, len(content) - 16))
    content[at : at + 16] = bytes(255 - byte for byte in content[at : at + 16])


def _invert_page(content: bytearray, rng: Random) -> None:
    """A page of an SQLite file that has rows or keys: SQLite has no checksums, and sees no change of what is in a row."""
    size = int.from_bytes(content[16:18], "big")
    pages = [at for at in range(size, len(content), size) if content[at] in {2, 5, 10, 13}]
    at = rng.choice(pages)
    content[at : at + size] = bytes(255 - byte for byte in content[at : at + size])


@contextlib.contextmanager
def _damaged(file: Path, rng: Random, damage: Damage = _invert) -> Iterator[None]:
    """Damaged for the length of the block; then it is as it was."""
    whole = file.read_bytes()
    _damage(file, rng, damage)
    try:
        yield
    finally:
        _replace(file, whole)


def _damage(file: Path, rng: Random, damage: Damage = _invert) -> None:
    """Change bytes of a file, as a bad disk does: who has it open keeps what it has."""
    content = bytearray(file.read_bytes())
    damage(content, rng)
    _replace(file, content)


def _replace(file: Path, content: bytes | bytearray) -> None:
    new = file.with_name(f".{file.name}.new")
    new.write_bytes(content)
    new.chmod(0o600)
    new.replace(file)
