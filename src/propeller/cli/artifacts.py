"""``propeller push`` and ``propeller pull``."""

import asyncio
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from propeller.errors import StartError
from propeller.oci.client import Artifact, RegistryClient
from propeller.oci.credentials import Login, logins_for
from propeller.oci.manifest import UNKNOWN_ARTIFACT
from propeller.oci.reference import Reference
from propeller.process.files import write_durably
from propeller.protocol.programs import WASM_MAGIC

USERNAME, PASSWORD = "ORAS_USER", "ORAS_PASSWORD"
"""Environment variables of a login, as the guide of absmach/propeller sets them for ``oras push``."""

_LOGIN_HELP = (
    "give -u NAME --password-stdin, or log in with `docker login {host}` first (GHCR: your user name in lower case, and a "
    "token with write:packages to push, read:packages to pull)"
)


def run_push(
    file: Path, reference: str, *, username: str | None, password_stdin: bool, plain_http: bool
) -> None:
    """Push a file; print its reference, digest and size as ``oras push`` does.

    Raises:
        OciError: with the cause and the remedy.
        StartError: the file is not a program, or half a login was given.
    """
    _check_wasm(file)
    login, size = _login(username, password_stdin=password_stdin), file.stat().st_size

    async def push() -> tuple[Reference, Artifact]:
        parsed = _parse(reference, plain_http=plain_http)
        async with RegistryClient(logins_for(parsed.registry, login), login_help=_LOGIN_HELP) as registry:
            with _progress() as progress:
                task = progress.add_task(f"pushing {file.name}", total=size)
                artifact = await registry.push(
                    parsed,
                    file,
                    progress=lambda done, total: progress.update(task, completed=done, total=total),
                )
        return parsed, artifact

    pushed, artifact = asyncio.run(push())
    print(f"Pushed [registry] {pushed}")
    print(f"ArtifactType: {UNKNOWN_ARTIFACT}")
    print(f"Digest: {artifact.digest}")
    print(f"Size: {artifact.program.size} bytes")


def run_pull(
    reference: str, output: Path | None, *, username: str | None, password_stdin: bool, plain_http: bool
) -> None:
    """Pull a program to a file.

    Raises:
        OciError: with the cause and the remedy.
        StartError: the file cannot be written, or half a login was given.
    """
    login = _login(username, password_stdin=password_stdin)

    async def pull() -> tuple[Path, Artifact]:
        parsed = _parse(reference, plain_http=plain_http)
        target = output or Path(f"{parsed.repository.rsplit('/', 1)[-1]}.wasm")
        async with RegistryClient(logins_for(parsed.registry, login), login_help=_LOGIN_HELP) as registry:
            with _progress() as progress:
                task = progress.add_task(f"pulling {parsed.repository}", total=None)
                artifact, content = await registry.pull(
                    parsed, progress=lambda done, total: progress.update(task, completed=done, total=total)
                )
        try:
            await asyncio.to_thread(write_durably, target, content)
        except OSError as error:
            raise StartError(f"{target} cannot be written: {error.strerror}") from None
        return target, artifact

    target, artifact = asyncio.run(pull())
    print(f"Pulled {reference}\nDigest: {artifact.digest}\nWrote {artifact.program.size} bytes to {target}")


def _check_wasm(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            head = opened.read(len(WASM_MAGIC))
    except FileNotFoundError:
        raise StartError(f"{file}: there is no such file; build it first (docs/programs.md)") from None
    except OSError as error:
        raise StartError(f"{file} cannot be read: {error.strerror}") from None
    if head != WASM_MAGIC:
        raise StartError(
            f"{file} is not a Wasm module: it does not begin with \\0asm; build it first (docs/programs.md)"
        )


def _parse(text: str, *, plain_http: bool) -> Reference:
    return Reference.parse(f"http://{text}" if plain_http and "://" not in text else text)


def _login(username: str | None, *, password_stdin: bool) -> Login | None:
    """The login given on the command line, else that of the environment."""
    if username is None and not password_stdin:
        name, password = os.environ.get(USERNAME), os.environ.get(PASSWORD)
        return Login(name, password) if name and password else None
    if username is None or not password_stdin:
        raise StartError(
            "give --username and --password-stdin together: echo $PASSWORD | propeller push … -u NAME --password-stdin"
        )
    password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise StartError(
            "--password-stdin: no password came on standard input; is the variable set that you echo?"
        )
    return Login(username, password)


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
