"""Whether a device that floods the broker with heartbeats makes others count as dead.

Run it as ``python benchmarks/flood_liveness.py [SECONDS]``. A stack with three proplets; one more connection with the key of the first
publishes heartbeats as fast as it can, and connects again when it is cut. Printed each ten seconds: messages that were written, refused
connects, how many of the two others are alive, and the slowest answer of the manager's ``/health``.
``BROKER_CLIENT_MESSAGES=1e12 BROKER_CLIENT_BYTES=1e15`` shows what happens without a limit.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "tests")]

from benchmarks.broker_limits import RawClient, RefusedError  # noqa: E402
from propeller.protocol.topics import Channel, Kind  # noqa: E402
from support.stack import Up, running_stack  # noqa: E402 - the test support is not installed

EVERY_S = 10.0


async def flood(stack: dict[str, Any], seconds: float) -> None:
    """Flood from this process."""
    known, channel = stack["clients"]["proplet-1"], Channel(stack["domain_id"], stack["channel_id"])
    topic = channel.said(Kind.PROPLET_ALIVE, known["id"])
    payload = b'{"proplet_id":"' + known["id"].encode() + b'"}'
    end, sent, refused = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        try:
            client = await RawClient.connect(
                stack["broker"]["port"], f"{known['id']}-flood", known["id"], known["key"], clean=True
            )
            while time.monotonic() < end:
                for _ in range(100):
                    await client.publish(topic, payload)
                sent += 100
                await asyncio.sleep(0)
        except RefusedError:
            refused += 1
            await asyncio.sleep(0.5)
    print(f"flood: {sent} messages written, cut or refused {refused} times", flush=True)


async def watch(up: Up, seconds: float) -> None:
    """Ask the manager who is alive."""
    others = set(up.ids()[1:])
    least, slowest, start = len(others), 0.0, time.monotonic()
    next_line = start + EVERY_S
    async with httpx.AsyncClient(base_url=up.url("manager"), timeout=60) as http:
        while (now := time.monotonic()) < start + seconds:
            await http.get("/health")
            slowest = max(slowest, time.monotonic() - now)
            alive = {one["id"] for one in (await http.get("/proplets?status=active")).json()["proplets"]}
            least = min(least, len(others & alive))
            if now >= next_line:
                print(
                    f"{now - start:5.0f} s: of 2 others at least {least} alive, /health took up to {slowest:.2f} s",
                    flush=True,
                )
                least, slowest, next_line = len(others), 0.0, next_line + EVERY_S
            await asyncio.sleep(0.5)


async def main() -> None:
    """Flood and watch."""
    seconds = float(sys.argv[1]) if sys.argv[1:] else 60.0
    if os.environ.get("FLOOD"):
        await flood(json.loads(Path(os.environ["FLOOD"]).read_text()), seconds)
        return
    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder) / "state") as up:
        flooder = await asyncio.create_subprocess_exec(
            sys.executable, __file__, str(seconds), env={**os.environ, "FLOOD": str(up.folder / "stack.json")}
        )
        await watch(up, seconds + 5)
        await flooder.wait()


if __name__ == "__main__":
    asyncio.run(main())
