"""How fast and in what memory updates are aggregated, beside numpy's own in-place sum of the same arrays.

    python benchmarks/aggregation.py [--parameters 10000000] [--updates 50] [--tensors 20]

- FedAvg, end to end: safetensors documents in memory, as the aggregator gets them (a part of the model after the other), to the encoded
  model; beside ``sum += update`` in float32 of decoded arrays, the least that any mean must do. Time is that of the processor, as that of
  the clock says more about what else the machine does;
- median and trimmed mean of the updates of one part, and the memory that they take beside the updates;
- service: the aggregator as a process, over HTTP. Its peak memory is printed for few and for many updates: it must not grow with their number.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from propeller.fl.strategies import (
    Contribution,
    FedAvg,
    Measured,
    PartAggregation,
    create_strategy,
    make_plan,
    parts_of,
)
from propeller.fl.tensors import SAFETENSORS_SEQ, Tensors, from_safetensors, to_safetensors
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


def cut(model: Tensors) -> list[bytes]:
    """A model as the documents of its parts."""
    sizes = {name: array.nbytes for name, array in model.items()}
    return [to_safetensors({name: model[name] for name in names}) for names in parts_of(sizes)]


def plain_sum(updates: Sequence[Tensors], count: int) -> Tensors:
    """The least work there is: float32 into float32, in place, unweighted."""
    total = {name: np.zeros_like(array) for name, array in updates[0].items()}
    for number in range(count):
        for name, array in updates[number % len(updates)].items():
            total[name] += array
    return total


def fedavg(documents: Sequence[Sequence[bytes]], count: int) -> list[bytes]:
    """Documents of the parts of updates to documents of the parts of the model, as the aggregator does it."""
    strategy = FedAvg()
    contributions = [Contribution(slot, f"p-{slot}", slot + 1) for slot in range(count)]
    plan = make_plan(strategy, contributions, {}, Measured())
    model = []
    for part, base in enumerate(documents[0]):
        aggregation = PartAggregation(strategy, plan, contributions, [from_safetensors(base)[0]])
        for number in range(count):
            update = documents[number % len(documents)][part]
            aggregation.add(number, from_safetensors(update, finite=False)[0])
        model.append(to_safetensors(aggregation.finish()[0]))
    return model


def robust(name: str, updates: Sequence[Tensors], count: int) -> None:
    """One part by a strategy that needs all its updates at once."""
    strategy = create_strategy(name)
    contributions = [Contribution(slot, f"p-{slot}", 1) for slot in range(count)]
    plan = make_plan(strategy, contributions, {}, Measured())
    aggregation = PartAggregation(strategy, plan, contributions, [updates[0]])
    for number in range(count):
        aggregation.add(number, updates[number % len(updates)])
    aggregation.finish()


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


async def over_http(url: str, documents: Sequence[Sequence[bytes]], count: int) -> float:
    """Seconds for ``count`` updates to go through the service, part by part."""
    contributions = [{"proplet_id": f"p-{number}", "num_samples": number + 1} for number in range(count)]
    plan = {"strategy": "fedavg", "contributions": contributions, "parts": len(documents[0])}

    async def stream() -> AsyncIterator[bytes]:
        yield document({}, plan=json.dumps(plan))
        for part, base in enumerate(documents[0]):
            yield base
            for number in range(count):
                yield documents[number % len(documents)][part]

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


def service(documents: Sequence[Sequence[bytes]], count: int) -> None:
    size = sum(map(len, documents[0])) / MEGABYTE
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        with start_service(
            "aggregator", {"AGGREGATOR_PORT": str(port)}, port, Path(folder) / "log"
        ) as process:
            url = f"http://127.0.0.1:{port}"
            idle = peak_memory(process.pid)
            asyncio.run(over_http(url, documents, 2))
            few = peak_memory(process.pid)
            streamed = asyncio.run(over_http(url, documents, count))
            many = peak_memory(process.pid)
    print(f"service, over HTTP     {streamed:7.3f} s   {count * size / streamed:.0f} MB/s")
    print(f"service, peak memory   idle {idle:.0f} MB, 2 updates {few:.0f} MB, {count} updates {many:.0f} MB")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--parameters", type=int, default=10_000_000)
    options.add_argument("--updates", type=int, default=50)
    options.add_argument("--tensors", type=int, default=20)
    options.add_argument("--repeats", type=int, default=9)
    given = options.parse_args()

    updates = make_updates(given.parameters, given.tensors, different=3)
    documents = [cut(update) for update in updates]
    size = given.parameters * 4 / MEGABYTE
    print(
        f"{given.updates} updates of {given.parameters:,} float32 ({size:.0f} MB each), {given.tensors} tensors, "
        f"{len(documents[0])} parts"
    )

    # In turns, and the best of each: what else the machine does only ever adds to a time.
    times = [
        [
            seconds(lambda: plain_sum(updates, given.updates)),
            seconds(lambda: fedavg(documents, given.updates)),
        ]
        for _ in range(given.repeats)
    ]
    plain, ours = (min(column) for column in zip(*times, strict=True))
    print(f"in-place float32 sum   {plain:7.3f} s of processor time")
    print(f"FedAvg, end to end     {ours:7.3f} s   ratio of speeds {plain / ours:.2f} (bound: 0.6)")

    part = [{name: update[name] for name in list(update)[:4]} for update in updates]
    numbers = sum(array.size for array in part[0].values())
    for name in ("fedmedian", "trimmed_mean"):
        spent = min(seconds(lambda name=name: robust(name, part, given.updates)) for _ in range(2))  # type: ignore[misc]
        tracemalloc.start()
        robust(name, part, given.updates)
        peak = tracemalloc.get_traced_memory()[1] / MEGABYTE
        tracemalloc.stop()
        print(
            f"{name:22s} {spent:7.3f} s   for {numbers:,} numbers of {given.updates} updates; "
            f"{peak:.0f} MB beside them ({numbers * 4 / MEGABYTE:.0f} MB of it the model)"
        )

    service(documents, given.updates)
    print(
        f"this process, peak     {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE:.0f} MB"
    )


if __name__ == "__main__":
    main()
