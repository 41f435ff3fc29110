"""What one device can do to the broker with a key that works: memory and disk under attacks that try to fill it.

Run it with ``python benchmarks/broker_limits.py [ATTACK …]``. A broker and an identity service of their own, and one client a
role; each attack goes on for ``SECONDS`` or until it is refused, from one process with raw sockets. Printed: what was accepted, the
broker's memory before and at its highest, what its folder holds, and how the attack ended.
"""

import asyncio
import contextlib
import json
import os
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from propeller.identity.clients import NewClient  # noqa: E402
from propeller.mqtt.broker import Broker  # noqa: E402
from propeller.process import logs  # noqa: E402
from propeller.protocol.topics import EVERYONE, Channel, Kind  # noqa: E402
from support.identity import Site  # noqa: E402 - the test support is not installed
from support.provisioned import provision  # noqa: E402

SECONDS = 10.0
MB = 1e6


class RefusedError(Exception):
    """The broker refused, or hung up."""


class RawClient:
    """MQTT 3.1.1 as bytes: it keeps to no rule that is not tried on purpose."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._packet_id = 0

    @classmethod
    async def connect(cls, port: int, mqtt_id: str, user: str, key: str, *, clean: bool) -> "RawClient":
        """Connect.

        Raises:
            RefusedError: the broker does not let it in.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        flags = 0xC0 | (0x02 if clean else 0)
        body = _text("MQTT") + bytes([4, flags]) + struct.pack("!H", 600)
        writer.write(_packet(0x10, body + _text(mqtt_id) + _text(user) + _text(key)))
        try:
            answer = await asyncio.wait_for(reader.readexactly(4), 10)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise RefusedError("connect: hung up") from error
        if answer[3]:
            raise RefusedError(f"connect: code {answer[3]}")
        return cls(reader, writer)

    async def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Write a message; acknowledgements are left in the socket."""
        head = _text(topic)
        if qos:
            self._packet_id = self._packet_id % 65535 + 1
            head += struct.pack("!H", self._packet_id)
        await self._write(_packet(0x30 | qos << 1 | retain, head + payload))

    async def subscribe(self, topic: str, qos: int) -> bool:
        """Subscribe and wait for the answer: whether it was granted."""
        self._packet_id = self._packet_id % 65535 + 1
        await self._write(_packet(0x82, struct.pack("!H", self._packet_id) + _text(topic) + bytes([qos])))
        try:
            while True:
                head = await asyncio.wait_for(self._reader.readexactly(2), 10)
                body = await self._reader.readexactly(head[1])
                if head[0] == 0x90:
                    return body[-1] < 0x80
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise RefusedError("hung up") from error

    async def drain_answers(self) -> None:
        """Read and forget what the broker sends."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(1 << 16):
                pass

    async def close(self) -> None:
        """Hang up without a word."""
        self._writer.transport.abort()

    async def _write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError as error:
            raise RefusedError("hung up") from error
        if self._reader.at_eof() or self._writer.is_closing():
            raise RefusedError("hung up")


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("!H", len(data)) + data


def _packet(head: int, body: bytes) -> bytes:
    length, rest = b"", len(body)
    while True:
        rest, digit = divmod(rest, 128)
        length += bytes([digit | (0x80 if rest else 0)])
        if not rest:
            return bytes([head]) + length + body


@dataclass
class Scene:
    """What an attack has: the broker's port, its channel, and the client that attacks."""

    port: int
    channel: Channel
    proplet: tuple[str, str]
    device: tuple[str, str]
    accepted: int = 0

    async def join(self, *, mqtt_id: str = "", clean: bool = True, device: bool = False) -> RawClient:
        """Connect as the proplet or the device."""
        user, key = self.device if device else self.proplet
        return await RawClient.connect(self.port, mqtt_id or user, user, key, clean=clean)


async def retained(scene: Scene) -> None:
    """Retained messages of 100 kB on ever new topics (updates of rounds that do not exist)."""
    client = await scene.join()
    reading = asyncio.ensure_future(client.drain_answers())
    while True:
        topic = scene.channel.update(f"r{scene.accepted}", scene.proplet[0])
        await client.publish(topic, bytes(100_000), qos=1, retain=True)
        scene.accepted += 1
        if reading.done():
            raise RefusedError("hung up")


async def half_sent(scene: Scene) -> None:
    """Messages of QoS 2 of 1 MB that are never released."""
    client = await scene.join(clean=False)
    reading = asyncio.ensure_future(client.drain_answers())
    while True:
        await client.publish(
            scene.channel.said(Kind.PROPLET_RESULTS, scene.proplet[0]), bytes(1_000_000), qos=2
        )
        scene.accepted += 1
        if reading.done():
            raise RefusedError("hung up")


async def large(scene: Scene) -> None:
    """Messages of 60 MB of QoS 1."""
    client = await scene.join()
    reading = asyncio.ensure_future(client.drain_answers())
    while True:
        await client.publish(
            scene.channel.said(Kind.PROPLET_RESULTS, scene.proplet[0]), bytes(60_000_000), qos=1
        )
        scene.accepted += 1
        if reading.done():
            raise RefusedError("hung up")


async def sleeping(scene: Scene) -> None:
    """A device that publishes to itself while it is away: 1 MB each, kept for its session."""
    away = await scene.join(mqtt_id=f"{scene.device[0]}-away", clean=False, device=True)
    topic = f"{scene.channel.prefix}/data/x"
    await away.subscribe(topic, 1)
    await away.close()
    client = await scene.join(device=True)
    reading = asyncio.ensure_future(client.drain_answers())
    while True:
        await client.publish(topic, bytes(1_000_000), qos=1)
        scene.accepted += 1
        if reading.done():
            raise RefusedError("hung up")


async def deaf(scene: Scene) -> None:
    """A device that sends itself messages and reads none of them."""
    listeners = []
    topic = f"{scene.channel.prefix}/data/y"
    for number in range(8):
        listener = await scene.join(mqtt_id=f"{scene.device[0]}-{number}", device=True)
        await listener.subscribe(topic, 0)
        listeners.append(listener)
    client = await scene.join(device=True)
    while True:
        await client.publish(topic, bytes(1_000_000))
        scene.accepted += 1


async def subscriptions(scene: Scene) -> None:
    """Subscriptions of QoS 1 to ever new topics of programs."""
    client = await scene.join(clean=False)
    while True:
        if not await client.subscribe(f"{scene.channel.prefix}/registry/server/x{scene.accepted}", 1):
            raise RefusedError("subscription refused")
        scene.accepted += 1


async def sessions(scene: Scene) -> None:
    """Ever new sessions, each with three subscriptions that stay."""
    while True:
        client = await scene.join(mqtt_id=f"{scene.proplet[0]}-{scene.accepted}", clean=False)
        for topic in (scene.channel.start(scene.proplet[0]), scene.channel.stop(scene.proplet[0])):
            if not await client.subscribe(topic, 1):
                raise RefusedError("subscription refused")
        await client.close()
        scene.accepted += 1


async def connections(scene: Scene) -> None:
    """Ever new connections that stay."""
    kept = []
    while True:
        kept.append(await scene.join(mqtt_id=f"{scene.proplet[0]}-c{scene.accepted}"))
        scene.accepted += 1


async def flood(scene: Scene) -> None:
    """Heartbeats of QoS 0 as fast as they go."""
    client = await scene.join()
    payload = b'{"proplet_id":"' + scene.proplet[0].encode() + b'"}'
    topic = scene.channel.said(Kind.PROPLET_ALIVE, scene.proplet[0])
    while True:
        for _ in range(100):
            await client.publish(topic, payload)
        scene.accepted += 100
        await asyncio.sleep(0)


ATTACKS: tuple[Callable[[Scene], Awaitable[None]], ...] = (
    retained, half_sent, large, sleeping, deaf, subscriptions, sessions, connections, flood,
)  # fmt: skip


@contextlib.asynccontextmanager
async def world(folder: Path) -> AsyncIterator[tuple[Scene, psutil.Process]]:
    """A broker with identity, a proplet, a device, and a manager that is away."""
    site = Site.at(folder)
    async with Broker(site.broker) as broker, site.open() as identity:
        made = await provision(identity)
        device = await identity.clients.create(made.domain_id, NewClient("thermometer"))
        await identity.channels.connect(
            made.domain_id, [device["id"]], [made.channel_id], ["publish", "subscribe"]
        )
        proplet, manager = made.clients["proplet-1"], made.clients["manager"]
        scene = Scene(
            site.broker.port,
            Channel(made.domain_id, made.channel_id),
            (proplet.id, proplet.key),
            (device["id"], device["credentials"]["secret"]),
        )
        client = await RawClient.connect(scene.port, manager.id, manager.id, manager.key, clean=False)
        await client.subscribe(scene.channel.said(Kind.PROPLET_RESULTS, EVERYONE), 1)
        await client.close()  # what is for it waits for it
        yield scene, psutil.Process(broker.pid)


async def attack_alone(name: str, scene: Scene) -> None:
    """Attack, in a process of its own; print how much was accepted, and what ended it."""
    attack = next(one for one in ATTACKS if one.__name__ == name)
    task, end = asyncio.ensure_future(attack(scene)), "went on"
    await asyncio.wait([task], timeout=SECONDS)
    task.cancel()
    try:
        await task
    except RefusedError as refused:
        end = str(refused)
    except asyncio.CancelledError:
        pass
    print(json.dumps({"accepted": scene.accepted, "end": end}))


def folder_bytes(folder: str) -> int:
    """What is in a folder, of what stays there for as long as this looks."""
    found = 0
    for path, _folders, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                found += os.stat(os.path.join(path, file)).st_size  # noqa: PTH116, PTH118
    return found


async def measure(name: str) -> str:
    """Run one attack against a broker of its own."""
    with tempfile.TemporaryDirectory() as folder:
        async with world(Path(folder)) as (scene, process):
            before = highest = process.memory_info().rss
            fields = [
                scene.port,
                [scene.channel.domain_id, scene.channel.channel_id],
                scene.proplet,
                scene.device,
            ]
            began = time.monotonic()
            attacker = await asyncio.create_subprocess_exec(
                sys.executable, __file__, "--attack", name, json.dumps(fields), stdout=asyncio.subprocess.PIPE
            )
            reading = asyncio.ensure_future(attacker.communicate())
            while not reading.done():
                await asyncio.wait([reading], timeout=0.1)
                highest = max(highest, process.memory_info().rss)
            took = time.monotonic() - began
            told = json.loads((await reading)[0])
            disk = folder_bytes(folder)
    return (
        f"{name:14} {told['accepted']:>8} in {took:4.1f} s   memory {before / MB:5.0f} -> {highest / MB:6.0f} MB   "
        f"folder {disk / MB:6.0f} MB   {told['end']}"
    )


async def main(arguments: list[str]) -> None:
    """Run the named attacks, or all."""
    if arguments[:1] == ["--attack"]:
        port, channel, proplet, device = json.loads(arguments[2])
        await attack_alone(arguments[1], Scene(port, Channel(*channel), tuple(proplet), tuple(device)))
        return
    logs.configure("benchmark", level="error")
    for attack in ATTACKS:
        if not arguments or attack.__name__ in arguments:
            print(await measure(attack.__name__), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
