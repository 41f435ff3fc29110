"""How fast a program reaches N proplets through the proxy, and how many bytes are published for it.

    python benchmarks/program_delivery.py [--megabytes 18]

Starts a broker, the embedded registry and a proxy in a process of its own. Beside it the same bytes are published as they are, in
messages of the same size, to one subscriber: the speed of broker and client without the proxy's base64 and JSON.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from propeller.digests import digest_of
from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.session import Credentials, Session
from propeller.oci.client import RegistryClient
from propeller.oci.reference import Reference
from propeller.process import logs
from propeller.protocol.programs import ProgramChunk
from propeller.protocol.topics import Channel
from support.fake_proplets import proplets
from support.nats import open_broker
from support.net import eventually
from support.proxy_process import count, proxy_process
from support.registries import embedded, wasm

CHANNEL = Channel("bench", "c")
MESSAGE_BYTES = 683_000
"""Bytes of a chunk of 512,000 bytes as base64 in JSON."""


async def time_plain_publish(port: int, size: int) -> float:
    """Seconds to publish ``size`` bytes as they are to one subscriber."""
    received, address = [0], BrokerAddress("127.0.0.1", port)
    async with (
        Session(address, Credentials("bench-in"), clean=True).running() as receiver,
        Session(address, Credentials("bench-out"), clean=True).running() as sender,
    ):

        async def count_bytes(_topic: str, payload: bytes) -> None:
            received[0] += len(payload)

        await receiver.wait_connected(10)
        await sender.wait_connected(10)
        await receiver.subscribe("bench/plain", count_bytes)
        begun = time.perf_counter()
        for start in range(0, size, MESSAGE_BYTES):
            await sender.publish("bench/plain", bytes(min(MESSAGE_BYTES, size - start)))
        while received[0] < size:
            await asyncio.sleep(0.001)
        return time.perf_counter() - begun


async def time_delivery(port: int, proplet_count: int, digest: str) -> float:
    """Seconds from the first request until every proplet has every chunk."""
    async with proplets(port, CHANNEL, proplet_count) as fleet:
        chunks: list[set[int]] = [set() for _ in fleet]
        total = [0]

        async def listen(index: int) -> None:
            async def record(_topic: str, payload: bytes) -> None:
                chunk = ProgramChunk.decode(payload)
                chunks[index].add(chunk.chunk_idx)
                total[0] = chunk.total_chunks

            await fleet[index].session.subscribe(CHANNEL.chunks(digest), record, qos=0)

        await asyncio.gather(*(listen(index) for index in range(proplet_count)))
        begun = time.perf_counter()
        for each in fleet:
            await each.ask("x", proplet_id=each.name, digest=digest)
        await eventually(lambda: total[0] and all(len(parts) == total[0] for parts in chunks), 60)
        return time.perf_counter() - begun


async def wait_for_proxy(port: int) -> None:
    """Wait until the proxy hears requests."""
    async with proplets(port, CHANNEL, 1) as (one,):

        async def asked() -> bool:
            await one.ask("x", proplet_id=one.name)
            return bool(one.answers)

        await eventually(asked)


async def main(megabytes: float) -> None:
    logs.configure("bench", level="error")
    program = wasm(int(megabytes * 1e6))
    digest = digest_of(program)
    with tempfile.TemporaryDirectory() as folder, open_broker(Path(folder) / "broker") as port:
        root = Path(folder)
        async with embedded(root / "oci") as host:
            async with RegistryClient() as client:
                await client.push(Reference.parse(f"{host}/x"), program)
                begun = time.perf_counter()
                await client.pull(Reference.parse(f"{host}/x"))
                print(f"pull from the registry: {megabytes / (time.perf_counter() - begun):.0f} MB/s")
            plain_s = await time_plain_publish(port, len(program))
            print(f"published as it is, 1 subscriber: {megabytes / plain_s:.0f} MB/s")
            async with proxy_process(port, CHANNEL, f"http://{host}", root / "cache") as (process, metrics):
                await wait_for_proxy(port)
                for number in (1, 1, 3, 10):
                    before = await count(metrics, "bytes")
                    seconds = await time_delivery(port, number, digest)
                    published = await count(metrics, "bytes") - before
                    print(
                        f"{number:3} proplets: {seconds * 1000:.0f} ms, {megabytes / seconds:.0f} MB/s each, "
                        f"{published / len(program):.2f} x the program published, {plain_s / seconds:.2f} of the speed beside"
                    )
                rss = psutil.Process(process.pid).memory_info().rss
                print(f"fetches: {await count(metrics, 'fetches'):.0f}; proxy's memory: {rss / 1e6:.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Delivery of programs.")
    parser.add_argument("--megabytes", type=float, default=18.0)
    asyncio.run(main(parser.parse_args().megabytes))
