"""``propeller push`` and ``propeller pull``, and the signatures of what is pushed."""

import asyncio
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from propeller.cli.connection import read_password
from propeller.cli.prefetch import prefetch_program
from propeller.cli.registry_access import RegistryAccess
from propeller.cli.terminal import Terminal
from propeller.errors import StartError
from propeller.native_program import NATIVE_ENDING, is_native
from propeller.oci.client import Artifact, RegistryClient
from propeller.oci.manifest import HEAD_BYTES, artifact_type
from propeller.oci.reference import Reference
from propeller.oci.signatures import Signature
from propeller.process.files import write_durably
from propeller.protocol.programs import WASM_MAGIC
from propeller.sdk.programs import runtime_for
from propeller.wasm.capabilities import capabilities_of, told
from propeller.wasm.layers import runtime_of
from propeller.wasm.runtimes import keep_runtime, runtime_file, runtimes_folder

if TYPE_CHECKING:
    from propeller.oci.signing import SigningKey

KEY_PASSWORD = "COSIGN_PASSWORD"  # noqa: S105 - its name
"""The environment variable with the password of a private key, as cosign has it."""


def run_push(
    file: Path,
    reference: str,
    access: RegistryAccess,
    *,
    key_file: Path | None = None,
    prefetch: bool = False,
) -> None:
    """Push a file, and sign it if there is a key; print its reference, digest and size as ``oras push`` does, and what it may do.

    Raises:
        OciError: with the cause and the remedy.
        StartError: the file is not a program, the key cannot be used, or half a login was given.
        PropellerError: with ``prefetch``, a device cannot fetch or compile it.
    """
    _check_program(file)
    key = None if key_file is None else read_key(key_file)
    content = file.read_bytes()
    runtime = runtime_for(file, content)

    async def push() -> tuple[Reference, Artifact]:
        async with access.open(reference) as (parsed, registry):
            with _progress() as progress:
                task = progress.add_task(f"pushing {file.name}", total=len(content))
                artifact = await registry.push(
                    parsed,
                    file,
                    runtime=runtime,
                    progress=lambda done, total: progress.update(task, completed=done, total=total),
                )
            if key is not None:
                await _sign(registry, parsed, artifact.digest, key)
        return parsed, artifact

    pushed, artifact = asyncio.run(push())
    print(f"Pushed [registry] {pushed}")
    print(f"ArtifactType: {artifact_type(artifact.program)}")
    print(f"Digest: {artifact.digest}")
    print(f"Size: {artifact.program.size} bytes")
    if artifact.runtime is not None:
        print(f"Runtime: {artifact.runtime.digest}, {artifact.runtime.size} bytes")
    print(f"May: {told(capabilities_of(runtime or content))}")
    if key_file is not None:
        print(f"Signed with {key_file}")
    if prefetch:
        digest = f"{pushed.registry.host}/{pushed.repository}@{artifact.digest}"
        with access.target.connect() as fl:
            prefetch_program(fl, digest, Terminal())


def read_key(file: Path) -> "SigningKey":
    """A private key; its password is ``COSIGN_PASSWORD``, or asked for.

    Raises:
        StartError: it cannot be read, or its password is wrong.
    """
    from propeller.oci.signing import SigningKey

    return SigningKey.read(file, key_password(file))


def key_password(file: Path, *, twice: bool = False) -> bytes:
    """The password of a private key, from ``COSIGN_PASSWORD`` or asked for; an empty one counts.

    Raises:
        StartError: it is not set and nobody is there to be asked, or the two differ.
    """
    given = os.environ.get(KEY_PASSWORD)
    if given is None:
        given = read_password(str(file), KEY_PASSWORD, twice=twice)
    return given.encode()


def run_sign(
    reference: str,
    key_file: Path,
    access: RegistryAccess,
) -> None:
    """Sign what a reference names now.

    Raises:
        OciError: with the cause and the remedy.
        StartError: the key cannot be used, or half a login was given.
    """
    key = read_key(key_file)

    async def sign() -> tuple[Reference, Artifact]:
        async with access.open(reference) as (parsed, registry):
            artifact = await registry.resolve(parsed)
            await _sign(registry, parsed, artifact.digest, key)
        return parsed, artifact

    parsed, artifact = asyncio.run(sign())
    print(f"Signed {parsed.registry}/{parsed.repository}@{artifact.digest} with {key_file}")


def run_verify(
    reference: str,
    key_files: Sequence[Path],
    access: RegistryAccess,
) -> None:
    """Verify that one of some keys has signed what a reference names now; print which, and what the program may do.

    Raises:
        SignatureError: none of them has.
        OciError: with the cause and the remedy.
        StartError: a key cannot be read, or half a login was given.
    """
    from propeller.oci.signing import PublicKey, verify

    keys = [PublicKey.read(file, "--key") for file in key_files]

    async def fetch() -> tuple[Reference, Artifact, bytes, list[Signature]]:
        async with access.open(reference) as (parsed, registry):
            artifact, content = await registry.pull(parsed)
            if artifact.runtime is not None and runtime_of(content) == artifact.runtime.digest:
                sink = io.BytesIO()  # that has the imports
                await registry.fetch(parsed, artifact.runtime.digest, sink)
                content = sink.getvalue()
            return parsed, artifact, content, await registry.signatures(parsed, artifact.digest)

    parsed, artifact, content, signatures = asyncio.run(fetch())
    signer = verify(signatures, artifact.digest, keys)
    print(f"{parsed.registry}/{parsed.repository}@{artifact.digest} is signed by {signer.name}")
    print(f"May: {told(capabilities_of(content))}")


async def _sign(registry: RegistryClient, reference: Reference, digest: str, key: "SigningKey") -> None:
    repository = f"{reference.registry.host}/{reference.repository}"
    await registry.add_signature(reference, digest, key.sign(repository, digest))


def run_pull(
    reference: str,
    output: Path | None,
    access: RegistryAccess,
) -> None:
    """Pull a program to a file.

    Raises:
        OciError: with the cause and the remedy.
        StartError: the file cannot be written, or half a login was given.
    """

    async def pull() -> tuple[Path, Artifact]:
        async with access.open(reference) as (parsed, registry):
            with _progress() as progress:
                task = progress.add_task(f"pulling {parsed.repository}", total=None)
                artifact, content = await registry.pull(
                    parsed, progress=lambda done, total: progress.update(task, completed=done, total=total)
                )
            if (runtime := artifact.runtime) is not None and runtime_file(
                runtimes_folder(), runtime.digest
            ) is None:
                sink = io.BytesIO()
                await registry.fetch(parsed, runtime.digest, sink, size=runtime.size)
                await asyncio.to_thread(keep_runtime, sink.getvalue())
        ending = NATIVE_ENDING if is_native(content) else ".wasm"
        file = output or Path(f"{parsed.repository.rsplit('/', 1)[-1]}{ending}")
        try:
            await asyncio.to_thread(write_durably, file, content)
        except OSError as error:
            raise StartError(f"{file} cannot be written: {error.strerror}") from None
        return file, artifact

    file, artifact = asyncio.run(pull())
    print(f"Pulled {reference}\nDigest: {artifact.digest}\nWrote {artifact.program.size} bytes to {file}")


def _check_program(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
    except FileNotFoundError:
        raise StartError(f"{file}: there is no such file; build it first (docs/programs.md)") from None
    except OSError as error:
        raise StartError(f"{file} cannot be read: {error.strerror}") from None
    if not head.startswith(WASM_MAGIC) and not is_native(head):
        raise StartError(
            f"{file} is not a Wasm module: it does not begin with \\0asm; nor a native program: build it first (docs/programs.md)"
        )


def _progress() -> Progress:
    console = Terminal(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
