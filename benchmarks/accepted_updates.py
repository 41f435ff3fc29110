"""How many updates a second a coordinator accepts, with their documents in files and in the database.

    python benchmarks/accepted_updates.py [--devices 3 50] [--kib 1 4 64 256] [--updates 900] [--folder DIR]

The devices of a round send at the same moment, and the next round begins when all were answered. What is measured is the coordinator's
own part: an update that was read is checked, made durable, counted and answered, on SQLite and the disk of DIR; HTTP, the aggregation and
the removal of documents are not. Two coordinators take turns, round by round, as others may use the machine; of each the median round
is told, and the processor time for an update.
"""

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from propeller.coordinator.aggregation import Aggregation
from propeller.coordinator.aggregator_client import AggregatorClient
from propeller.coordinator.base_models import BaseModels
from propeller.coordinator.kept_updates import KeptUpdates
from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.coordinator.service import Coordinator
from propeller.coordinator.store import RoundStore
from propeller.coordinator.telemetry import CoordinatorMetrics, RoundTelemetry
from propeller.coordinator.updates import decode_update
from propeller.fl.tensors import SAFETENSORS, Tensors, specs_of, to_safetensors
from propeller.process.http import ServiceClient
from propeller.process.logs import configure
from propeller.protocol.rounds import Experiment
from propeller.store.blobs import BlobStore
from propeller.store.database import Database

HEADER_BYTES = 256
"""Of a document, at most: with it a model has the size that is said."""


@dataclass
class Measured:
    """A coordinator, and what its rounds took."""

    service: Coordinator
    wall_s: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)


@contextlib.asynccontextmanager
async def coordinator(folder: Path, base: Tensors, small_bytes: int) -> AsyncIterator[Measured]:
    """One that keeps updates of up to ``small_bytes`` in the database, and has nobody to aggregate them."""
    database = Database(str(folder / "coordinator.db"))
    store = RoundStore(database)
    await store.create()
    async with ServiceClient("nobody", "http://127.0.0.1:1", retry_delays=()) as nobody:
        registry = ModelRegistryClient(nobody)
        registry.remember(0, to_safetensors(base), specs_of(base), None)
        updates = KeptUpdates(BlobStore(folder / "updates"), database, small_bytes=small_bytes)
        bases = BaseModels(registry, folder)
        aggregation = Aggregation(updates, registry, AggregatorClient(nobody), bases)
        telemetry = RoundTelemetry(CoordinatorMetrics())
        service = Coordinator(store, registry, updates, aggregation, telemetry, bases, keep_failed_s=60.0)
        yield Measured(service)
        await service.close()
    await database.close()


async def play(measured: Measured, number: int, base: Tensors, devices: int) -> None:
    """One round, whose updates come at once."""
    service, round_id = measured.service, f"r-{number}"
    names = [f"p-{device}" for device in range(devices)]
    await service.configure(
        Experiment(
            experiment_id="e",
            round_id=round_id,
            model_ref="fl/models/global_model_v0",
            participants=[*names, "silent"],  # it goes on collecting
            k_of_n=devices + 1,
            task_wasm_image="localhost:5000/fl:v1",
        )
    )
    updates = []
    for name in names:
        metadata = {"round_id": round_id, "proplet_id": name, "num_samples": "1"}
        updates.append(await decode_update(SAFETENSORS, to_safetensors(base, metadata)))
    wall, processor = time.perf_counter(), time.process_time()
    await asyncio.gather(*(service.accept_update(each) for each in updates))
    measured.wall_s.append(time.perf_counter() - wall)
    measured.processor_s.append(time.process_time() - processor)
    await service.cancel_round(round_id, "measured")


async def measure(folder: str | None, devices: int, kib: int, count: int) -> tuple[Measured, Measured]:
    """Rounds with documents in files, and in the database."""
    base = {"w": np.zeros((kib * 1024 - HEADER_BYTES) // 4, np.float32)}
    async with contextlib.AsyncExitStack() as stack:
        both = []
        for small_bytes in (0, 2**30):
            state = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
            both.append(await stack.enter_async_context(coordinator(state, base, small_bytes)))
        for number in range(max(1, count // devices)):
            for each in both:
                await play(each, number, base, devices)
        return both[0], both[1]


def main(devices: Sequence[int], sizes: Sequence[int], count: int, folder: str | None) -> None:
    """Print a table."""
    configure("coordinator", level="critical")
    print("devices   KiB    files: 1/s  CPU ms    database: 1/s  CPU ms")
    for number in devices:
        for kib in sizes:
            columns = []
            for each in asyncio.run(measure(folder, number, kib, count)):
                rate = number / statistics.median(each.wall_s)
                columns.append(f"{rate:>13.0f}{statistics.median(each.processor_s) / number * 1e3:>8.2f}")
            print(f"{number:>7}{kib:>6}{'    '.join(columns)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[3, 50])
    parser.add_argument("--kib", type=int, nargs="+", default=[1, 4, 64, 256])
    parser.add_argument("--updates", type=int, default=900)
    parser.add_argument("--folder")
    chosen = parser.parse_args()
    main(chosen.devices, chosen.kib, chosen.updates, chosen.folder)
