"""Disks that fill up: a small file system in memory for each folder of a stack, where one can be mounted.

That takes root, or the like. They are in a mount namespace of the process that makes the faults, and of those that it starts: they are gone with it, however it ends.
"""

import asyncio
import contextlib
import ctypes
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from faults.stack import FaultyStack

BYTES = {"oci-registry": 96 * 1024**2, "model-registry": 384 * 1024**2}
"""Of a disk, if it is not as small as the others: of programs, and of all the versions that half an hour makes."""

USUAL_BYTES = 48 * 1024**2
FOLDERS = (
    "audit",
    "broker",
    "coordinator",
    "data-store",
    "identity",
    "logs",
    "manager",
    "model-registry",
    "oci-registry",
    "proplet-1",
    "proplet-2",
    "proplet-3",
)
"""Of a stack: each has a disk of its own."""

NAMES_A_FULL_DISK = ("No space left on device", "database or disk is full")
"""How the system and SQLite report it."""

LONGEST_S = 8.0
_FILLS_AGAIN_S = 0.1
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x20000, 0x4000, 1 << 18, 2


class CannotMountError(Exception):
    """There is no file system to be had here; the text says why."""


@contextlib.contextmanager
def own_disks(folder: Path) -> Iterator[Mapping[str, Path]]:
    """Disks for the folders of a stack, for the length of the block; what is on them then stays in the folders.

    Raises:
        CannotMountError: not here.
    """
    _leave_mounts_of_others()
    disks = {}
    try:
        for name in FOLDERS:
            disk = folder / name
            disk.mkdir(mode=0o700, parents=True, exist_ok=True)
            _call(
                "mount",
                b"propeller-faults",
                _path(disk),
                b"tmpfs",
                0,
                b"mode=0700,size=%d" % BYTES.get(name, USUAL_BYTES),
            )
            disks[name] = disk
        yield disks
    finally:
        for disk in disks.values():
            aside = disk.with_name(f"{disk.name}.kept")
            shutil.copytree(disk, aside, symlinks=True, ignore=shutil.ignore_patterns(_FILLER))
            _call("umount2", _path(disk), _MNT_DETACH)
            disk.rmdir()
            aside.rename(disk)


_FILLER = ".full"


async def fill_disk(stack: "FaultyStack", rng: Random) -> str:
    """The disk of a service or a device takes nothing for some seconds: what it cannot keep it refuses, and is there when there is room again."""
    name, seconds = rng.choice(sorted(stack.disks)), rng.uniform(1, LONGEST_S)
    async with _filled(stack.disks[name]):
        told = await _ask_to_keep(stack, name)
        await asyncio.sleep(seconds)
    return f"{name} for {seconds:.1f} s{told}"


@contextlib.asynccontextmanager
async def _filled(disk: Path) -> AsyncIterator[None]:
    file = disk / _FILLER
    fill = asyncio.create_task(_keep_full(file))
    try:
        yield
    finally:
        fill.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await fill
        file.unlink(missing_ok=True)


async def _keep_full(file: Path) -> None:
    """Take what room there is, also what others give back."""
    with file.open("ab", buffering=0) as stream:
        while True:
            with contextlib.suppress(OSError):
                while True:
                    stream.write(bytes(65536))
            with contextlib.suppress(OSError):
                while True:
                    stream.write(bytes(512))
            await asyncio.sleep(_FILLS_AGAIN_S)


async def _ask_to_keep(stack: "FaultyStack", name: str) -> str:
    """Have a service keep something larger than a page; what it answered.

    Raises:
        AssertionError: it said that it kept it, or an error that is not of the disk.
    """
    asked = {
        "model-registry": ("/models", {"model": {"w": [0.5] * 5000}}),
        "data-store": ("/datasets/full", {"data": [{"x": [0.5], "y": 0}] * 500}),
    }
    if name not in asked:
        return ""
    path, body = asked[name]
    try:
        async with httpx.AsyncClient(base_url=stack.url(name), timeout=10, trust_env=False) as http:
            answer = await http.post(path, json=body)
    except httpx.TransportError:  # another fault has ended it
        return ""
    assert answer.status_code in {503, 507}, (
        f"{name} on a full disk: {answer.status_code} {answer.text[:300]}"
    )
    return f", {answer.status_code}"


def _leave_mounts_of_others() -> None:
    """A mount namespace for this process and its children: what is mounted in it nobody else sees."""
    _call("unshare", _CLONE_NEWNS)
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        function = getattr(libc, name)
    except AttributeError:
        raise CannotMountError(f"this system has no {name}") from None
    if function(*arguments) != 0:
        raise CannotMountError(f"{name}: {os.strerror(ctypes.get_errno())}")


def _path(folder: Path) -> bytes:
    return os.fsencode(folder)
