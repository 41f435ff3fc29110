"""Registries to test against: the embedded one, Debian's, and one behind a token server."""

import asyncio
import base64
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from propeller.oci.layout import Layout
from propeller.oci_registry.api import main
from propeller.oci_registry.settings import OciRegistrySettings
from propeller.web.server import Bind, serve
from support.net import eventually, free_port, wait_port

LOGIN = ("user", "p:ss")


def wasm(size: int = 100, seed: int = 0) -> bytes:
    """Bytes that begin as a Wasm module does."""
    body = bytes((seed + number * 7919) % 251 for number in range(min(size, 4096)))
    return (b"\0asm\1\0\0\0" + body * (size // max(len(body), 1) + 1))[:size]


@contextlib.asynccontextmanager
async def serving(app: Starlette | Callable[..., Any], port: int | None = None) -> AsyncIterator[int]:
    """Serve an app on a port of loopback."""
    port, stop = port or free_port(), asyncio.Event()
    server = asyncio.create_task(serve([(Bind("test", "127.0.0.1", port), app)], stop))
    await _up(port, server)
    try:
        yield port
    finally:
        stop.set()
        await server


@contextlib.asynccontextmanager
async def embedded(folder: Path, **settings: Any) -> AsyncIterator[str]:
    """The embedded registry through its ``main``; gives its host and port."""
    port, stop = settings.pop("port", None) or free_port(), asyncio.Event()
    server = asyncio.create_task(main(OciRegistrySettings.load(port=port, folder=folder, **settings), stop))
    await _up(port, server)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        stop.set()
        await server


async def _up(port: int, server: asyncio.Task[None]) -> None:
    def accepts() -> bool:
        if server.done():
            server.result()
        with contextlib.suppress(OSError):
            wait_port(port, 0.01)
            return True
        return False

    await eventually(accepts)


@contextlib.contextmanager
def debian(folder: Path, login: tuple[str, str] | None = None, auth: Iterable[str] = ()) -> Iterator[str]:
    """Debian's docker-registry; gives its host and port. Skips where it is not installed.

    ``login`` makes it ask for that one; ``auth`` are lines of its configuration instead. ``blob_file`` finds its blobs.
    """
    if shutil.which("docker-registry") is None or (login and shutil.which("htpasswd") is None):
        pytest.skip("docker-registry (and htpasswd of apache2-utils) are not installed")
    port = free_port()
    lines = ["version: 0.1", "storage:", "  filesystem:", f"    rootdirectory: {folder / 'data'}", "http:"]
    lines += [f"  addr: 127.0.0.1:{port}"]
    if login:
        users = subprocess.run(["htpasswd", "-Bbn", *login], check=True, capture_output=True).stdout
        (folder / "htpasswd").write_bytes(users)
        lines += ["auth:", "  htpasswd:", "    realm: test", f"    path: {folder / 'htpasswd'}"]
    lines += auth
    (folder / "config.yml").write_text("\n".join(lines))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log
        )
        try:
            wait_port(port)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def blob_file(folder: Path, digest: str) -> Path:
    """Where the registry of ``debian`` keeps a blob."""
    hexadecimal = digest.removeprefix("sha256:")
    return folder / "data/docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"


def basic(login: tuple[str, str]) -> str:
    """The header of HTTP Basic."""
    return "Basic " + base64.b64encode(":".join(login).encode()).decode()


def find_unverified(layout: Layout, digest: str) -> Path | None:
    """``Layout.find_blob`` of a registry that does not look at what it sends."""
    path = layout.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
    return path if path.exists() else None
