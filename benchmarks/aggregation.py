"""How fast FedAvg averages updates beside numpy's own in-place sum of the same arrays, and what memory it takes.

    python benchmarks/aggregation.py [--parameters 10000000] [--updates 50] [--tensors 20]

- in memory: ``aggregate`` of updates that are in memory, beside ``sum += update`` in float32 (the least that
  any mean must do) and ``sum += n * update`` in float32 (FedAvg's own job, in half the precision);
- service: the aggregator as a process, fed a plan and safetensors documents over HTTP. Its peak memory
  is printed for few and for many updates: it must not grow with their number.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from propeller.fl.strategies import Contribution, FedAvg, aggregate
from propeller.fl.tensors import SAFETENSORS_SEQ, Tensors, to_safetensors
from support.aggregation import document, read_answer
from support.net import free_port
from support.service import start_service

MEGABYTE = 1e6


def make_updates(parameters: int, tensors: int, different: int) -> list[Tensors]:
    rng = np.random.default_rng(0)
    size = parameters // tensors
    return [
        {f"layer{n}": rng.standard_normal(size, dtype=np.float32) for n in range(tensors)}
        for _ in range(different)
    ]


def plain_sum(updates: list[Tensors], count: int) -> Tensors:
    """The least work there is: float32 into float32, in place, unweighted."""
    total = {name: np.zeros_like(array) for name, array in updates[0].items()}
    for number in range(count):
        for name, array in updates[number % len(updates)].items():
            total[name] += array
    return total


def weighted_sum(updates: list[Tensors], count: int) -> Tensors:
    """FedAvg's own job done the short way: float32, in place, weighted."""
    total = {name: np.zeros_like(array) for name, array in updates[0].items()}
    scratch = {name: np.empty_like(array) for name, array in updates[0].items()}
    for number in range(count):
        for name, array in updates[number % len(updates)].items():
            total[name] += np.multiply(array, np.float32(number + 1), out=scratch[name])
    return total


def fedavg(updates: list[Tensors], count: int) -> Tensors:
    received = [
        (Contribution(slot, f"p-{slot}", slot + 1), updates[slot % len(updates)]) for slot in range(count)
    ]
    return aggregate(FedAvg(), updates[0], None, received)[0]


def seconds(work: Callable[[list[Tensors], int], Tensors], updates: list[Tensors], count: int) -> float:
    begun = time.perf_counter()
    work(updates, count)
    return time.perf_counter() - begun


async def over_http(url: str, documents: list[bytes], count: int) -> float:
    """Seconds for ``count`` updates to go through the service."""
    headers = [{"proplet_id": f"p-{number}", "num_samples": number + 1} for number in range(count)]

    async def stream() -> AsyncIterator[bytes]:
        yield document({}, plan=json.dumps({"strategy": "fedavg", "contributions": headers}))
        yield documents[0]  # the base model
        for number in range(count):
            update = memoryview(documents[number % len(documents)])
            for start in range(0, len(update), 1 << 20):
                yield bytes(update[start : start + (1 << 20)])

    async with httpx.AsyncClient(timeout=600) as http:
        begun = time.perf_counter()
        answer = await http.post(
            f"{url}/aggregate", content=stream(), headers={"content-type": SAFETENSORS_SEQ}
        )
        await read_answer(answer)
        return time.perf_counter() - begun


def peak_memory(pid: int) -> float:
    """The most memory a process had so far, in MB."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / MEGABYTE
    return float(psutil.Process(pid).memory_info().rss) / MEGABYTE


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--parameters", type=int, default=10_000_000)
    options.add_argument("--updates", type=int, default=50)
    options.add_argument("--tensors", type=int, default=20)
    options.add_argument("--repeats", type=int, default=5)
    given = options.parse_args()

    updates = make_updates(given.parameters, given.tensors, different=3)
    size = given.parameters * 4 / MEGABYTE
    print(
        f"{given.updates} updates of {given.parameters:,} float32 ({size:.0f} MB each), {given.tensors} tensors"
    )

    # In turns, and the best of each: what else the machine does only ever adds to a time.
    times = [
        [seconds(work, updates, given.updates) for work in (plain_sum, weighted_sum, fedavg)]
        for _ in range(given.repeats)
    ]
    plain, weighted, ours = (min(column) for column in zip(*times, strict=True))
    print(f"in-place float32 sum   {plain:7.3f} s")
    print(f"the same, weighted     {weighted:7.3f} s")
    print(f"FedAvg in float64      {ours:7.3f} s")
    print(
        f"ratio of speeds        {plain / ours:.2f} to the sum (bound: 0.5), {weighted / ours:.2f} to the weighted one"
    )

    documents = [to_safetensors(update) for update in updates]
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        with start_service(
            "aggregator", {"AGGREGATOR_PORT": str(port)}, port, Path(folder) / "log"
        ) as process:
            url = f"http://127.0.0.1:{port}"
            idle = peak_memory(process.pid)
            asyncio.run(over_http(url, documents, 2))
            few = peak_memory(process.pid)
            streamed = asyncio.run(over_http(url, documents, given.updates))
            many = peak_memory(process.pid)
    print(f"service, over HTTP     {streamed:7.3f} s   {given.updates * size / streamed:.0f} MB/s")
    print(
        f"service, peak memory   idle {idle:.0f} MB, 2 updates {few:.0f} MB, {given.updates} updates {many:.0f} MB"
    )
    print(
        f"this process, peak     {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE:.0f} MB"
    )


if __name__ == "__main__":
    main()
