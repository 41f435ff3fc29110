"""What hostile requests and messages cost a service: how long it answers nobody, and how much memory they take.

    python benchmarks/limits.py [--only WORD …] [--limit-ms 100]

Starts a stack on free ports. While each attack is under way, another process asks the attacked service for ``/health`` every 5 ms; shown are
its longest wait (first of all while nothing is sent: the machine's own), how much the service's memory rose above what it had before (its peak, by the kernel's own count), and the answer. Exits
1 if a wait is over the limit and the machine's own, or a body took more than 8 times its size and 96 MB of memory.
"""

import argparse
import asyncio
import contextlib
import gzip
import json
import multiprocessing
import socket
import struct
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import aiomqtt
import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.stack import Up, running_stack

MB = 1_000_000
HEADER = b'"round_id":"r-none","proplet_id":"p","num_samples":1'


@dataclass(frozen=True)
class Attack:
    """A body or a message.

    Attributes:
        name: what it is.
        service: whose ``/health`` is asked.
        path: where it is posted; of a message, its topic.
        content: makes it.
        media_type: of a body; empty for a message.
        headers: others of a request.
    """

    name: str
    service: str
    path: str
    content: Callable[[], bytes]
    media_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


def repeated(part: bytes, size: int = 8 * MB) -> bytes:
    """A list of so many bytes."""
    return b"[" + b",".join([part] * (size // (len(part) + 1))) + b"]"


def update(value: bytes) -> bytes:
    return b"{" + HEADER + b',"update":{"w":' + value + b"}}"


def floats(size: int) -> bytes:
    """A list of numbers of eight digits."""
    return b"[" + b",".join(b"%.7f" % (one / 7919 % 1) for one in range(size // 10)) + b"]"


def cbor_update(value: bytes) -> bytes:
    def text(one: str) -> bytes:
        return bytes([0x60 + len(one)]) + one.encode()

    head = text("round_id") + text("r-none") + text("proplet_id") + text("p") + text("num_samples") + b"\x01"
    return b"\xa4" + head + text("update") + b"\xa1" + text("w") + value


def cbor_list(part: bytes, count: int) -> bytes:
    return b"\x9a" + struct.pack(">I", count) + part * count


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def many_tensors(count: int) -> bytes:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    named: dict[str, Any] = {f"t{one}": entry for one in range(count)}
    named["__metadata__"] = {"round_id": "r-none", "proplet_id": "p", "num_samples": "1"}
    return safetensors(json.dumps(named, separators=(",", ":")).encode())


JSON, CBOR, SAFETENSORS = "application/json", "application/cbor", "application/vnd.safetensors"

ATTACKS = [
    Attack("8 MB of [],[], in an update", "coordinator", "/update", lambda: update(repeated(b"[]"))),
    Attack(
        "8 MB of [],[], in an experiment",
        "coordinator",
        "/experiments",
        lambda: b'{"a":' + repeated(b"[]") + b"}",
    ),
    Attack(
        "8 MB of {},{}, in an experiment",
        "coordinator",
        "/experiments",
        lambda: b'{"a":' + repeated(b"{}") + b"}",
    ),
    Attack("8 MB of [],[], in a task", "manager", "/tasks", lambda: b'{"a":' + repeated(b"[]") + b"}"),
    Attack(
        "1,000,000 names",
        "coordinator",
        "/experiments",
        lambda: json.dumps({f"k{one}": 0 for one in range(MB)}).encode(),
    ),
    Attack(
        "nested 2,000,000 deep", "coordinator", "/update", lambda: update(b"[" * (2 * MB) + b"]" * (2 * MB))
    ),
    Attack(
        "numbers of 4,000 digits", "coordinator", "/update", lambda: update(repeated(b"1" * 4000, 30 * MB))
    ),
    Attack(
        "an update of 30 MB: 3 million numbers", "coordinator", "/update", lambda: update(floats(30 * MB))
    ),
    Attack(
        "an update of 30 MB: 15 million zeros",
        "coordinator",
        "/update",
        lambda: update(repeated(b"0", 30 * MB)),
    ),
    Attack(
        "an update of 30 MB: lists of one number",
        "coordinator",
        "/update",
        lambda: update(repeated(b"[1.5]", 30 * MB)),
    ),
    Attack(
        "a model of 30 MB", "model_registry", "/models", lambda: b'{"model":{"w":' + floats(30 * MB) + b"}}"
    ),
    Attack(
        "updates of 30 MB to aggregate",
        "aggregator",
        "/aggregate",
        lambda: b'{"updates":[' + update(floats(30 * MB)) + b"]}",
    ),
    Attack(
        "a data set of 30 MB",
        "data_store",
        "/datasets/p",
        lambda: b'{"data":' + repeated(b'{"x":[0.5,1.5],"y":1}', 30 * MB) + b"}",
    ),
    Attack(
        "CBOR: 8 MB of empty lists",
        "coordinator",
        "/update_cbor",
        lambda: cbor_update(cbor_list(b"\x80", 8 * MB)),
        CBOR,
    ),
    Attack(
        "CBOR: 30 MB of numbers",
        "coordinator",
        "/update_cbor",
        lambda: cbor_update(cbor_list(b"\xfb\x3f\xb9\x99\x99\x99\x99\x99\x9a", 30 * MB // 9)),
        CBOR,
    ),
    Attack(
        "CBOR: a list that says it has 2^32 items",
        "coordinator",
        "/update_cbor",
        lambda: cbor_update(b"\x9a\xff\xff\xff\xff"),
        CBOR,
    ),
    Attack(
        "safetensors: 100,000 tensors", "coordinator", "/update", lambda: many_tensors(100_000), SAFETENSORS
    ),
    Attack("safetensors: 1,000,000 tensors", "coordinator", "/update", lambda: many_tensors(MB), SAFETENSORS),
    Attack(
        "safetensors: a header of 8 MB of [],[],",
        "coordinator",
        "/update",
        lambda: safetensors(b'{"__metadata__":' + repeated(b"[]") + b"}"),
        SAFETENSORS,
    ),
    Attack(
        "gzip: 1 GB of spaces",
        "coordinator",
        "/update",
        lambda: gzip.compress(b" " * (1000 * MB), 9),
        JSON,
        (("content-encoding", "gzip"),),
    ),
    Attack(
        "a message of 8 MB of [],[],: a result",
        "manager",
        "control/proplet/{id}/results",
        lambda: b'{"a":' + repeated(b"[]") + b"}",
        "",
    ),
    Attack(
        "a message of 8 MB of [],[],: a registration",
        "manager",
        "control/proplet/{id}/create",
        lambda: b'{"a":' + repeated(b"[]") + b"}",
        "",
    ),
    Attack(
        "a message of 8 MB of [],[],: an update",
        "coordinator",
        "fl/rounds/r-none/updates/{id}",
        lambda: update(repeated(b"[]")),
        "",
    ),
]


def ask_health(url: str, stop: Event, answer: Any) -> None:
    """Ask for ``/health`` until told to stop; say when the first answer has come, and then the longest wait of those after it, in seconds."""
    longest = 0.0
    with httpx.Client(timeout=120) as http:
        http.get(f"{url}/health").raise_for_status()
        answer.send(0.0)
        while not stop.is_set():
            begin = time.perf_counter()
            http.get(f"{url}/health").raise_for_status()
            longest = max(longest, time.perf_counter() - begin)
            time.sleep(0.005)
    answer.send(longest)


@contextlib.contextmanager
def watched(url: str) -> Iterator[list[float]]:
    """Gives the longest wait for ``/health`` during the block, when it has ended."""
    found: list[float] = []
    context = multiprocessing.get_context("spawn")
    stop, (mine, theirs) = context.Event(), context.Pipe()
    process = context.Process(target=ask_health, args=(url, stop, theirs))
    process.start()
    try:
        mine.recv()
        yield found
        time.sleep(0.3)
    finally:
        stop.set()
        found.append(mine.recv())
        process.join()


def forget_peak(process: psutil.Process) -> int:
    """Begin to count the peak anew; the memory now, in bytes."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return int(process.memory_info().rss)


def peak(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def send(up: Up, attack: Attack, url: str, content: bytes) -> str:
    if attack.media_type:
        try:
            headers = {"content-type": attack.media_type, **dict(attack.headers)}
            answered = httpx.post(url + attack.path, content=content, headers=headers, timeout=120)
        except httpx.HTTPError as error:
            return repr(error)[:100]
        return f"{answered.status_code} {answered.text[:90].strip()}"
    asyncio.run(publish(up, attack.path, content))
    return "published"


async def publish(up: Up, topic: str, content: bytes) -> None:
    """Publish as a device, on a topic that is its own."""
    sender, broker = up.stack["clients"]["proplet-1"], up.stack["broker"]
    place = f"m/{up.stack['domain_id']}/c/{up.stack['channel_id']}/{topic.format(id=sender['id'])}"
    async with aiomqtt.Client(
        broker["host"], broker["port"], username=sender["id"], password=sender["key"]
    ) as client:
        await client.publish(place, content, qos=1)
    await asyncio.sleep(2)  # until it has been handled: nobody is told


def send_slow_headers(url: str, count: int = 200, wait_s: float = 15.0) -> str:
    """Open connections whose headers never end; how many are open after a while."""
    host, port = urllib.parse.urlsplit(url).netloc.split(":")
    end = time.monotonic() + wait_s
    sockets = [socket.create_connection((host, int(port))) for _ in range(count)]
    open_ones = set(sockets)
    for one in sockets:
        one.setblocking(False)
    while time.monotonic() < end:
        for one in list(open_ones):
            try:
                one.send(b"GET / HTTP/1.1\r\n" if one.getsockname()[1] % 2 else b"X: y\r\n")
                if one.recv(1000) == b"":
                    open_ones.discard(one)
            except BlockingIOError:
                pass
            except OSError:
                open_ones.discard(one)
        time.sleep(0.5)
    for one in sockets:
        one.close()
    return f"{len(open_ones)} of {count} are open after {wait_s:g} s"


def send_long_headers(url: str, size: int = 100 * MB) -> str:
    """Send headers of so many bytes on one connection; what was answered."""
    host, port = urllib.parse.urlsplit(url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as one:
        try:
            one.sendall(b"GET /health HTTP/1.1\r\n")
            for _ in range(size // 65536):
                one.sendall(b"X: " + b"y" * 65531 + b"\r\n")
            one.sendall(b"\r\n")
            return str(one.recv(60).decode().splitlines()[0])
        except OSError as error:
            return f"cut off: {error.strerror}"


def show(name: str, size: int, wait_s: float, rise: float, said: str) -> None:
    print(f"{name:46} {size / MB:6.1f} MB {wait_s * 1000:9.0f} ms {rise / MB:6.0f} MB  {said}", flush=True)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--only", nargs="*", default=[])
    options.add_argument("--limit-ms", type=float, default=100)
    asked = options.parse_args()
    missed: list[str] = []

    def chosen(name: str) -> bool:
        return not asked.only or any(word in name for word in asked.only)

    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder) / "state") as up:
        print(f"{'attack':46} {'size':>9} {'longest wait':>12} {'memory':>9}  answer")

        def run(name: str, service: str, size: int, attack: Callable[[], str]) -> None:
            process = psutil.Process(up.stack["processes"][service.replace("_", "-")])
            before = forget_peak(process)
            with watched(up.url(service)) as waits:
                said = attack()
            rise = peak(process) - before
            show(name, size, waits[0], rise, said)
            if (waits[0] - own) * 1000 > asked.limit_ms or rise > 8 * size + 96 * MB:
                missed.append(name)

        with watched(up.url("coordinator")) as waits:
            time.sleep(5)
        own = waits[0]
        show("nothing", 0, own, 0, "")
        for attack in ATTACKS:
            if chosen(attack.name):
                content, url = attack.content(), up.url(attack.service)
                run(
                    attack.name,
                    attack.service,
                    len(content),
                    lambda attack=attack, url=url, content=content: send(up, attack, url, content),  # type: ignore[misc]
                )
        for name, connect in (
            ("200 connections whose headers never end", send_slow_headers),
            ("headers of 100 MB", send_long_headers),
        ):
            if chosen(name):
                run(name, "coordinator", 0, lambda connect=connect: connect(up.url("coordinator")))  # type: ignore[misc]
    for name in missed:
        print(f"over the bound: {name}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
