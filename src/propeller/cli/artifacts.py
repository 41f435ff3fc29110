"""``propeller push`` and ``propeller pull``."""

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from propeller.oci.client import RegistryClient
from propeller.oci.credentials import Login, logins_for
from propeller.oci.errors import OciError
from propeller.oci.reference import Reference
from propeller.process.run import StartError
from propeller.protocol.registry import WASM_MAGIC

T = TypeVar("T")


def run_push(
    file: Path, reference: str, *, username: str | None, password_stdin: bool, plain_http: bool
) -> None:
    """Push a file and print its digest.

    Raises:
        StartError: with the cause and the remedy.
    """
    if not file.is_file():
        raise StartError(f"{file}: no such file")
    with file.open("rb") as opened:
        head = opened.read(len(WASM_MAGIC))
    if head != WASM_MAGIC:
        raise StartError(f"{file} is not a Wasm module: it does not begin with \\0asm; build it first")
    login, size = _login(username, password_stdin=password_stdin), file.stat().st_size

    async def push() -> str:
        parsed = _parse(reference, plain_http=plain_http)
        async with RegistryClient(logins_for(parsed.registry, login)) as registry:
            with _progress() as progress:
                task = progress.add_task(f"pushing {file.name}", total=size)
                artifact = await registry.push(
                    parsed,
                    file,
                    progress=lambda done, total: progress.update(task, completed=done, total=total),
                )
        return artifact.digest

    digest = _run(push())
    Console(highlight=False).print(f"Pushed {reference}\nDigest: {digest}", soft_wrap=True)


def run_pull(
    reference: str, output: Path | None, *, username: str | None, password_stdin: bool, plain_http: bool
) -> None:
    """Pull a program to a file.

    Raises:
        StartError: with the cause and the remedy.
    """
    login = _login(username, password_stdin=password_stdin)

    async def pull() -> tuple[Path, str, int]:
        parsed = _parse(reference, plain_http=plain_http)
        target = output or Path(f"{parsed.repository.rsplit('/', 1)[-1]}.wasm")
        async with RegistryClient(logins_for(parsed.registry, login)) as registry:
            with _progress() as progress:
                task = progress.add_task(f"pulling {parsed.repository}", total=None)
                artifact, content = await registry.pull(
                    parsed, progress=lambda done, total: progress.update(task, completed=done, total=total)
                )
        temporary = target.with_name(f".{target.name}.part")
        temporary.write_bytes(content)
        temporary.replace(target)
        return target, artifact.digest, len(content)

    target, digest, size = _run(pull())
    Console(highlight=False).print(
        f"Pulled {reference}\nDigest: {digest}\nWrote {size} bytes to {target}", soft_wrap=True
    )


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except OciError as error:
        raise StartError(str(error)) from None


def _parse(text: str, *, plain_http: bool) -> Reference:
    return Reference.parse(f"http://{text}" if plain_http and "://" not in text else text)


def _login(username: str | None, *, password_stdin: bool) -> Login | None:
    if username is None and not password_stdin:
        return None
    if username is None or not password_stdin:
        raise StartError(
            "give --username and --password-stdin together: echo $PASSWORD | propeller push … -u NAME --password-stdin"
        )
    return Login(username, sys.stdin.readline().rstrip("\n"))


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
