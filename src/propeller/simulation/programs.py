"""The program that clients run: found, and compiled for this machine."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Self

from propeller.digests import digest_of
from propeller.errors import InvalidError, StartError
from propeller.native_program import NATIVE_ENDING, is_native
from propeller.sdk.programs import program_file as find_file
from propeller.simulation.workers import WorkerProgram
from propeller.wasm.layers import runtime_of
from propeller.wasm.program_run import Limits, ProgramError
from propeller.wasm.runtimes import runtime_file, runtimes_folder, user_cache
from propeller.wasm.sandbox import Sandbox, find_compiled


@dataclass(frozen=True)
class Program:
    """A program as it is delivered.

    Attributes:
        content: its bytes.
        digest: of them.
        reference: what it is called: its file, or the reference that names exactly it.
        runtime: the shared runtime that it needs, if it does and that was not left to this machine's to find.
    """

    content: bytes
    digest: str
    reference: str
    runtime: bytes | None = None

    @classmethod
    def of(cls, content: bytes, reference: str) -> Self:
        """A program with the runtime that it needs, if that was made on this machine."""
        needed = runtime_of(content)
        made = None if needed is None else runtime_file(runtimes_folder(), needed)
        return cls(content, digest_of(content), reference, None if made is None else made.read_bytes())

    def pinned(self, name: str) -> str:
        """A reference that names exactly it; ``name`` is what the experiment calls it."""
        return self.reference if "@" in self.reference else f"{name}@{self.digest}"

    @property
    def is_native(self) -> bool:
        """Whether it is a native program."""
        return is_native(self.content)

    def native(self, python: Path | None, folder: Path) -> WorkerProgram:
        """It as workers take a native program: a file in ``folder``, the simulation's, and what runs it; ``python``, if that is given.

        Raises:
            StartError, ProgramError: it cannot run here; the text says why.
        """
        from propeller.simulation.native_python import check_native  # what only native programs need

        python = check_native(self.content, self.reference, python, folder)
        file = folder / "program.native"
        file.write_bytes(self.content)
        return WorkerProgram(file, component=False, host_tensors=False, native_python=python)

    def compile(self, limits: Limits) -> WorkerProgram:
        """Compile it, as a proplet does: in a process of its own, kept for the next time.

        Raises:
            ProgramError: it is no program, or cannot be compiled within the limits.
        """
        folder = user_cache() / "sandbox"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A sandbox takes a third of a second to open, and is not needed for what was compiled before.
        found = find_compiled(folder, self.digest, limits)
        if found is not None:
            return WorkerProgram.of(found)

        async def compile_once() -> WorkerProgram:
            async with Sandbox(folder, runtimes=runtimes_folder()) as sandbox:
                try:
                    await sandbox.add(self.digest, self.content, limits)
                    if self.runtime is not None and (missing := sandbox.missing_runtime(self.digest)):
                        await sandbox.add(missing, self.runtime, limits)
                    made = await sandbox.compiled(self.digest, limits)
                except ProgramError as error:
                    raise ProgramError(f"program: {self.reference}: {error}", error.limit) from None
                return WorkerProgram.of(made)

        with ThreadPoolExecutor(1) as thread:  # a notebook's own has an event loop already
            return thread.submit(asyncio.run, compile_once()).result()


def find_program(
    program: str | Path, folder: Path, fetch: Callable[[str], Program], field: str = "program"
) -> Program:
    """A program by its file, or by its reference in a registry.

    Args:
        program: the file or the reference; a ``.py`` is built.
        folder: takes what is built.
        fetch: fetches a program by its reference.
        field: what an error calls it.

    Raises:
        PropellerError: there is no such file, it cannot be built or fetched, or it is named by something else.
    """
    if not isinstance(program, str | PathLike):
        raise InvalidError(f"{field}: {type(program).__name__} is neither the path of a file nor a reference")
    if not Path(program).is_file() and _is_reference(str(program)):
        return fetch(str(program))
    file = program_file(program, folder, field)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}") from None
    return Program.of(content, str(program))


def program_file(program: str | Path, folder: Path, field: str = "program") -> Path:
    """The file of a program; of a ``.py`` what is built of it, in ``folder``.

    Raises:
        PropellerError: there is no such file, or it cannot be built.
    """
    file = find_file(str(program), Path())
    if not file.is_file():
        raise StartError(
            f"{field}: {program} is not a file here: give the program's .wasm or .py file (--{field.replace('.', '-')} FILE), or a "
            "reference with its registry, as localhost:5000/mlp:v1"
        )
    if file.suffix != ".py":
        return file
    from propeller.native.build import build_program  # what only programs in Python need

    return build_program(file, folder / f"{file.stem}.wasm").path


def _is_reference(program: str) -> bool:
    """Whether a text that is no file here means a program in a registry, and not a file that is missing."""
    if program.endswith((".wasm", ".py", NATIVE_ENDING)) or program.startswith((".", "/", "~")):
        return False
    first, slash, _path = program.partition("/")
    names_registry = bool(slash) and (first == "localhost" or "." in first or ":" in first)
    return names_registry or bool(os.environ.get("PROXY_REGISTRY_URL"))
