"""Programs on their way from a file to the stack's registry."""

import asyncio
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from propeller.data import included_program
from propeller.errors import InvalidError, StartError
from propeller.native_program import NATIVE_ENDING, is_native
from propeller.protocol.experiments import default_name
from propeller.wasm.layers import runtime_of
from propeller.wasm.runtimes import runtime_file, runtimes_folder

if TYPE_CHECKING:
    from propeller.oci.credentials import Credential

ENDINGS = (".py", ".wasm", NATIVE_ENDING)
"""Of the names of programs that are files, and no references."""


@dataclass(frozen=True)
class PushedProgram:
    """A program in a registry.

    Attributes:
        reference: that names exactly it.
        size: of what the file became, in bytes.
        build_s: how long a script took to be built, in seconds; 0 for a program that was.
        push_s: how long it took to be pushed, in seconds.
    """

    reference: str
    size: int
    build_s: float
    push_s: float


def is_file_name(program: str) -> bool:
    """Whether a program is named by a file, which may not be there, and not by a reference."""
    return (
        program.endswith(ENDINGS) and "@" not in program and not program.startswith(("http://", "https://"))
    )


def program_file(program: str, folder: Path) -> Path:
    """The file that a name of one means: from ``folder``, or ``propeller/NAME.py`` of the programs that are included."""
    file = folder / program
    included = included_program(program)
    return included if included is not None and not file.exists() else file


def runtime_for(file: Path, content: bytes) -> bytes | None:
    """The shared runtime that a program needs, if it needs one.

    Raises:
        StartError: it is not on this machine any more.
    """
    digest = runtime_of(content)
    if digest is None:
        return None
    made = runtime_file(runtimes_folder(), digest)
    if made is None:
        raise StartError(
            f"{file}: the Python runtime that it was built over is not on this machine: build it again (propeller build), "
            "or with --standalone"
        )
    return made.read_bytes()


def push_file(file: Path, registry: str, name: str | None, login: "Credential | None") -> PushedProgram:
    """Build a script, or take a program as it is, and push it; blocks.

    Args:
        file: a ``.py`` or ``.wasm`` file.
        registry: its address.
        name: of the repository; else the file's.
        login: for the registry.

    Raises:
        PropellerError: it cannot be built or pushed; the text has the cause and the remedy.
    """
    if not file.is_file():
        raise InvalidError(f"program: {file}: there is no such file here")
    began = time.monotonic()
    if file.suffix == ".py":
        from propeller.native.build import build_program  # what only scripts need

        with tempfile.TemporaryDirectory() as folder:
            content = build_program(file, Path(folder) / "program").path.read_bytes()
    else:
        content = file.read_bytes()
    built = time.monotonic()
    runtime = runtime_for(file, content)
    title = f"{file.stem}{NATIVE_ENDING if is_native(content) else '.wasm'}"
    with ThreadPoolExecutor(1) as thread:  # the caller may have an event loop
        reference = thread.submit(
            lambda: asyncio.run(
                _push(content, runtime, title, registry, name or default_name(file.stem), login)
            )
        ).result()
    build_s = built - began if file.suffix == ".py" else 0.0
    return PushedProgram(reference, len(content), build_s, time.monotonic() - built)


async def _push(
    content: bytes, runtime: bytes | None, title: str, registry: str, name: str, login: "Credential | None"
) -> str:
    from propeller.oci.client import RegistryClient
    from propeller.oci.credentials import logins_for
    from propeller.oci.reference import Reference

    reference = Reference.parse(f"{registry.rstrip('/')}/{name}:latest")
    async with RegistryClient(logins_for(reference.registry, login)) as client:
        artifact = await client.push(reference, content, title=title, runtime=runtime)
    return str(replace(reference, tag=None, digest=artifact.digest))
