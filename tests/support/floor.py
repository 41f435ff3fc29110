"""What the parts of a round cost bare, on this machine and at this moment: the floor under ``round_latency.py``."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import httpx
import sqlalchemy as sa

from propeller.data import program_path
from propeller.digests import digest_of
from propeller.process.files import write_durably
from propeller.store.database import Database
from propeller.wasm.sandbox import ProgramRun, Sandbox
from support.nats import open_broker

REPEATS = 60


@dataclass(frozen=True)
class Floor:
    """Medians in milliseconds.

    Attributes:
        message: a QoS 1 message, from its publication until another client has it.
        call: an HTTP request and its answer, on an open connection, at a service that does nothing.
        commit: a transaction of one row that is on the disk.
        file: a small file that is on the disk.
        programs: three runs at once of the program on the guide's 64 samples in the sandbox, their inputs at hand.
    """

    message: float
    call: float
    commit: float
    file: float
    programs: float


async def measure_floor(folder: Path, health_url: str, files: dict[str, bytes], env: dict[str, str]) -> Floor:
    """Measure each part by itself; ``health_url`` is of a service that runs, ``files`` and ``env`` the program's."""
    async with _message(folder / "broker") as message:
        message_ms = await _median(message)
    async with httpx.AsyncClient() as http:
        call_ms = await _median(lambda: http.get(health_url))
    async with _commit(folder / "floor.db") as commit:
        commit_ms = await _median(commit)
    numbers = iter(range(10 * REPEATS))
    file_ms = await _median(
        lambda: asyncio.to_thread(write_durably, folder / f"floor-{next(numbers)}", bytes(1024))
    )
    async with _programs(folder / "sandbox", files, env) as programs:
        programs_ms = await _median(programs)
    return Floor(message_ms, call_ms, commit_ms, file_ms, programs_ms)


async def _median(once: Callable[[], Awaitable[object]]) -> float:
    took = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        await once()
        took.append(1000 * (time.perf_counter() - begin))
    return statistics.median(took)


@contextlib.asynccontextmanager
async def _message(folder: Path) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    with open_broker(folder) as port:
        async with (
            aiomqtt.Client("127.0.0.1", port, identifier="floor-hears") as hears,
            aiomqtt.Client("127.0.0.1", port, identifier="floor-says") as says,
        ):
            await hears.subscribe("floor", qos=1)
            messages = aiter(hears.messages)

            async def once() -> None:
                # As a service does: what it published is acknowledged before it goes on.
                await asyncio.gather(says.publish("floor", bytes(512), qos=1), anext(messages))

            yield once


@contextlib.asynccontextmanager
async def _commit(file: Path) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    database = Database(str(file))
    table = sa.Table("rows", sa.MetaData(), sa.Column("text", sa.Text))
    async with database.transaction() as connection:
        await connection.run_sync(table.metadata.create_all)

    async def once() -> None:
        async with database.transaction() as connection:
            await connection.execute(table.insert(), {"text": "x" * 512})

    try:
        yield once
    finally:
        await database.close()


@contextlib.asynccontextmanager
async def _programs(
    folder: Path, files: dict[str, bytes], env: dict[str, str]
) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    wasm = program_path("logreg").read_bytes()
    digest = digest_of(wasm)
    async with Sandbox(folder) as sandbox:
        await sandbox.add(digest, wasm)

        async def one(name: str) -> None:
            outcome = await sandbox.run(ProgramRun(name, digest, env=env, files=files))
            if outcome.error is not None:
                raise RuntimeError(outcome.error)

        async def once() -> None:
            await asyncio.gather(*(one(name) for name in ("floor-1", "floor-2", "floor-3")))

        yield once
