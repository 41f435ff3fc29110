"""From a Python script to a program: a layer of its modules over the shared runtime, or one component with CPython in it.

Nothing of this machine's packages goes into it.
"""

import ast
import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from propeller.digests import digest_of
from propeller.functions import with_functions
from propeller.process.files import remove_left_over, trim_folder, write_durably
from propeller.program.layer import COMPILED_FILE
from propeller.program.native import AVAILABLE_MODULES
from propeller.wasm.build.componentize import FOLDER, componentize, what_makes_one
from propeller.wasm.build.runtime import python_runtime
from propeller.wasm.build.sources import (
    BuildError,
    collect_sources,
    functions_in,
    imported_by,
)
from propeller.wasm.layers import Layer, runtime_of
from propeller.wasm.program_run import Limits, ProgramError, ProgramRun
from propeller.wasm.runtimes import runtime_file, user_cache
from propeller.wasm.sandbox import Sandbox
from propeller.wasm.template_client import SandboxError

MAX_CACHED_BYTES = 1 << 30
"""Of all programs in the cache together; one component takes about 20 MB."""

_LOADS_WITHIN = Limits(wall_time_s=60.0)
"""A script is loaded while it is built, and again at the start of each task."""

_BUILD_PREFIX = "building-"
_ABANDONED_S = 3600.0
"""A build that is older than this was killed."""


@dataclass(frozen=True)
class BuildResult:
    """A built program: its file, its digest, and whether it came from the cache."""

    path: Path
    digest: str
    size: int
    cached: bool


def build(
    script: Path,
    output: Path,
    *,
    standalone: bool = False,
    host_tensors: bool = True,
    cache: Path | None = None,
) -> BuildResult:
    """Build a script that marks a function with ``propeller.program.train``, or with ``aggregate``.

    Args:
        script: A ``.py`` file; the modules that it imports from its folder go along.
        output: Where the program goes; written whole or not at all.
        standalone: One component, for runtimes that do not know of the shared one; else a layer over that, of some KB.
        host_tensors: False makes a standalone program whose tensors are plain Python, which any WASI 0.2 runtime runs.
        cache: Where built programs and runtimes are kept (default: the user's cache folder).

    Raises:
        BuildError: The script has an error, imports what is not there, or registers nothing; or componentize-py is missing.
    """
    sources = collect_sources(script)
    if output.is_dir():
        raise BuildError(f"{output} is a folder: name the file to write")
    folder = cache or user_cache()
    programs = BuildCache(folder / "programs")
    kind = "layer" if host_tensors and not standalone else f"component {host_tensors}"
    key = _cache_key(kind, script.stem, sources)
    content = programs.get(key)
    needed = None if content is None else runtime_of(content)
    if needed is not None and runtime_file(folder / "runtimes", needed) is None:
        content = None  # the next runtime has another digest
    cached = content is not None
    if content is None:
        with programs.build_folder() as workspace:
            made = (
                _make_layer(script, sources, folder)
                if kind == "layer"
                else _make_component(script, sources, workspace, host_tensors=host_tensors)
            )
        content = with_functions(made, functions_in(sources))
        programs.add(key, content)
    try:
        write_durably(output, content)
    except OSError as error:
        raise BuildError(f"{output}: cannot be written: {error.strerror}") from None
    return BuildResult(output, digest_of(content), len(content), cached)


class BuildCache:
    """A folder of built programs, kept under what they were made of, which several processes may share."""

    def __init__(self, folder: Path, max_bytes: int = MAX_CACHED_BYTES) -> None:
        """Make the folder if it is missing, and remove what builds left that were killed."""
        self._folder, self._max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        remove_left_over([folder])
        for abandoned in folder.glob(f"{_BUILD_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError):
                if abandoned.stat().st_mtime < time.time() - _ABANDONED_S:
                    shutil.rmtree(abandoned, ignore_errors=True)

    def get(self, key: str) -> bytes | None:
        """A program, if it is here; it counts as used now."""
        try:
            content = self._path(key).read_bytes()
            os.utime(self._path(key))
        except FileNotFoundError:
            return None
        return content

    def add(self, key: str, program: bytes) -> None:
        """Keep a program; those used longest ago make room for it."""
        write_durably(self._path(key), program)
        trim_folder(self._folder.glob("*.wasm"), self._max_bytes, keep=[self._path(key)])

    @contextlib.contextmanager
    def build_folder(self) -> Iterator[Path]:
        """A folder to build in, which is removed afterwards."""
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=_BUILD_PREFIX) as folder:
            yield Path(folder)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.wasm"


def _cache_key(kind: str, name: str, sources: dict[str, str]) -> str:
    """What makes a build: the script, this library, the interface and the tool."""
    parts = [kind, name, *what_makes_one(), *(f"{file}\0{text}" for file, text in sorted(sources.items()))]
    return hashlib.sha256("\0\0".join(parts).encode()).hexdigest()


def _make_component(script: Path, sources: dict[str, str], folder: Path, *, host_tensors: bool) -> bytes:
    imported = sorted(
        {
            name
            for text in sources.values()
            for node in ast.walk(ast.parse(text))
            for name in imported_by(node)
        }
    )
    entry = (FOLDER / "entry.py.in").read_text().replace("SOURCES = {}", f"SOURCES = {sources!r}")
    entry = (
        f"from propeller.program.rehearsal import rehearse\n\nrehearse()\nimport propeller.machine\n{entry}"
        f"\n\nimport {script.stem}\n\ncheck_registered()\ninclude({imported!r})\n"
    )
    return componentize(entry, sources, folder, host_tensors=host_tensors, named=script)


def _make_layer(script: Path, sources: dict[str, str], folder: Path) -> bytes:
    """Load the script in the shared runtime, which gives it back compiled."""
    runtime = python_runtime(folder / "runtimes")
    written = json.dumps(
        {"script": script.stem, "modules": {name.removesuffix(".py"): text for name, text in sources.items()}}
    ).encode()
    uncompiled = Layer(runtime.digest, written).to_wasm()
    lines: list[str] = []

    async def load() -> bytes:
        async with Sandbox(folder / "sandbox", runtimes=folder / "runtimes") as sandbox:
            digest = digest_of(uncompiled)
            await sandbox.add(digest, uncompiled)
            outcome = await sandbox.run(
                ProgramRun(f"build-{os.getpid()}", digest, limits=_LOADS_WITHIN),
                on_stderr=lines.append,
            )
        if outcome.error is not None:
            raise BuildError(_explain(script, outcome.error, lines))
        return outcome.out_files[COMPILED_FILE]

    try:
        return Layer(runtime.digest, _run_apart(load)).to_wasm()
    except (ProgramError, SandboxError) as error:
        raise BuildError(f"{script}: {error}") from None


def _run_apart(work: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
    """Run it in a thread of its own: the caller may have an event loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(work())).result()


def _explain(script: Path, error: str, lines: Sequence[str]) -> str:
    """The Python error that a script was loaded with, with the paths that the user knows."""
    if not lines:
        return f"{script} cannot be loaded: {error}"
    text = re.sub(r'File "([^"/]*)"', lambda file: f'File "{script.parent / file[1]}"', "\n".join(lines))
    text = f"{script} cannot be loaded:\n{text}"
    return (
        f"{text}\nPrograms have no other modules: {AVAILABLE_MODULES}"
        if "ModuleNotFoundError" in text
        else text
    )
