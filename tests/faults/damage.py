"""Damage of files that the stack can make again."""

import signal
from pathlib import Path
from random import Random

from faults.stack import FaultyStack


async def damage_programs(stack: FaultyStack, rng: Random) -> str:
    """Every compiled program is damaged, and whatever runs them is killed, so that it reads them again."""
    for file in stack.programs.glob("*.native"):
        _damage(file, rng)
    for name in ("proplet-1", "proplet-2", "proplet-3"):
        if (process := stack.process(name)) is not None:
            process.kill()
    return "compiled programs"


async def damage_broker_store(stack: FaultyStack, rng: Random) -> str:
    """The broker's store is damaged while the stack is down."""
    await stack.stop(signal.SIGTERM)
    files = sorted((stack.folder / "broker" / "store").rglob("meta.inf"))
    assert files, "the broker has a store"
    file = rng.choice(files)
    _damage(file, rng)
    await stack.start()
    return str(file.relative_to(stack.folder))


def _damage(file: Path, rng: Random) -> None:
    """Change bytes of a file, as a bad disk does: who has it open keeps what it has."""
    content = bytearray(file.read_bytes())
    at = rng.randrange(max(1, len(content) - 16))
    content[at : at + 16] = bytes(255 - byte for byte in content[at : at + 16])
    damaged = file.with_name(f"{file.name}.damaged")
    damaged.write_bytes(content)
    damaged.chmod(0o600)
    damaged.replace(file)
