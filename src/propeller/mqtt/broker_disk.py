"""The broker's disk: nats-server gives a stream up for good when a write fails, and goes on only after a new start."""

import asyncio
import contextlib
import tempfile
from pathlib import Path

GIVEN_UP = "critical write error"
"""What nats-server's log says of a stream that it does not write to any more."""

PROBE = bytes(1024 * 1024)
LOOK_EVERY_S = 1.0


async def until_writable(folder: Path) -> None:
    """Wait until a folder takes data: a full disk has space again."""
    while not await asyncio.to_thread(_takes_data, folder):  # noqa: ASYNC110 - a disk tells nobody
        await asyncio.sleep(LOOK_EVERY_S)


def _takes_data(folder: Path) -> bool:
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        return file.write(PROBE) == len(PROBE)
    return False
