"""The program that clients run: found, and compiled for this machine."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from propeller.digests import digest_of
from propeller.errors import StartError
from propeller.simulation.workers import WorkerProgram
from propeller.wasm.program_run import Limits
from propeller.wasm.sandbox import Sandbox, find_compiled


@dataclass(frozen=True)
class Program:
    """A program as it is delivered, and the digest of its bytes."""

    content: bytes
    digest: str

    def compile(self, limits: Limits) -> WorkerProgram:
        """Compile it, as a proplet does: in a process of its own, kept for the next time.

        Raises:
            ProgramError: it is no program, or cannot be compiled within the limits.
        """
        folder = cache_folder() / "sandbox"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A sandbox takes a third of a second to open, and is not needed for what was compiled before.
        found = find_compiled(folder, self.digest, limits)
        if found is not None:
            return WorkerProgram(found.artifact, found.component, found.host_tensors)

        async def compile_once() -> WorkerProgram:
            async with Sandbox(folder) as sandbox:
                await sandbox.add(self.digest, self.content, limits)
                made = await sandbox.compiled(self.digest, limits)
                return WorkerProgram(made.artifact, made.component, made.host_tensors)

        with ThreadPoolExecutor(1) as thread:  # a notebook's own has an event loop already
            return thread.submit(asyncio.run, compile_once()).result()


def cache_folder() -> Path:
    """Where what simulations fetch and compile is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "propeller"


def find_program(program: str | Path, folder: Path) -> Program:
    """A program by its file; a ``.py`` is built into ``folder``.

    Raises:
        PropellerError: there is no such file, or it cannot be built.
    """
    file = program_file(program, folder)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}") from None
    return Program(content, digest_of(content))


def program_file(program: str | Path, folder: Path) -> Path:
    """The file of a program; of a ``.py`` what is built of it, in ``folder``.

    Raises:
        PropellerError: there is no such file, or it cannot be built.
    """
    file = Path(program)
    if not file.is_file():
        raise StartError(
            f"program: {program} is not a file here: give the program's .wasm or .py file (--program FILE)"
        )
    if file.suffix != ".py":
        return file
    from propeller.wasm.build import build  # what only programs in Python need

    return build(file, folder / "program.wasm").path
