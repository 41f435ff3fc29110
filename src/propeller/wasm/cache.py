"""Programs on disk: the bytes as they came, by digest, and what this machine's runtime compiled from them.

Compiled code is native code that the process will trust, so it is only ever made here, by ``worker.py``, in a folder that
only this user can enter. Its name holds the digest, the runtime's version, the configuration and the architecture.
"""

import contextlib
import hashlib
import mmap
import os
import platform
import re
import secrets
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from propeller.wasm.job import ProgramError, over
from propeller.wasm.turn import turn

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CORE, _COMPONENT = b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0"
_TENSORS = b"propeller:program/tensors@"
"""The name under which a component imports the host's tensors."""
_CONFIGURATION = "1"
"""Counts the changes of ``guest.config`` and of ``expose``."""
_ABANDONED_S = 3600
_LOCK = ".lock"


@dataclass(frozen=True)
class Program:
    """A program in the cache."""

    source: Path
    artifact: Path
    component: bool
    tensors: bool
    """Whether it uses the host's tensors."""


class Cache:
    """The folder of programs, bounded in size: the ones used longest ago go first."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._with_tensors: dict[str, bool] = {}
        self.size = size
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise ProgramError(
                f"{folder}: must belong to this user and be writable by no one else (chmod 700)"
            )
        for part in folder.glob("*.part"):  # of a process that died while it wrote
            with contextlib.suppress(FileNotFoundError):
                if part.stat().st_mtime < time.time() - _ABANDONED_S:
                    part.unlink()

    def has(self, digest: str) -> bool:
        """Whether the program is here; one whose artifact another version made is compiled again when it runs."""
        return _DIGEST.fullmatch(digest) is not None and self._path(digest, ".wasm").exists()

    def find(self, digest: str, runtime: str, *, fuel: bool) -> Program:
        """Where a program and its artifact for this runtime are (or will be); marks them as used.

        Raises:
            ProgramError: the program is not here.
        """
        if not self.has(digest):
            raise ProgramError(f"program {digest[:71]} is not in the cache; it must be fetched first")
        source = self._path(digest, ".wasm")
        with source.open("rb") as file:
            component = file.read(8) == _COMPONENT
        key = hashlib.sha256(f"{runtime} {platform.machine()} {_CONFIGURATION} {fuel}".encode()).hexdigest()[
            :16
        ]
        artifact = self._path(digest, f".{key}.native")
        for path in (source, artifact):
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
        return Program(source, artifact, component, component and self._uses_tensors(digest, source))

    def _uses_tensors(self, digest: str, source: Path) -> bool:
        """Whether the import's name is in the program: one that only contains it is given them for nothing."""
        if digest not in self._with_tensors:
            with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                self._with_tensors[digest] = content.find(_TENSORS) >= 0
        return self._with_tensors[digest]

    def put(self, digest: str, wasm: bytes, limit: int) -> None:
        """Store a program's bytes.

        Raises:
            ProgramError: not a Wasm program, over ``limit`` bytes, or not what the digest says.
        """
        if _DIGEST.fullmatch(digest) is None:
            raise ProgramError(f"digest {digest[:80]!r}: must be sha256: and 64 hexadecimal digits")
        if len(wasm) > limit:
            raise ProgramError(over("module_bytes", limit), "module_bytes")
        found = "sha256:" + hashlib.sha256(wasm).hexdigest()
        if found != digest:
            raise ProgramError(f"digest: the program's bytes are {found}, not {digest}")
        if wasm[:8] not in {_CORE, _COMPONENT}:
            raise ProgramError("not a Wasm program: it does not start as a core module or a component")
        path = self._path(digest, ".wasm")
        if not path.exists():
            self._write(path, wasm)
            self._trim({path})

    def check(self, program: Program) -> None:
        """Verify a stored program's bytes again, before they are compiled.

        Raises:
            ProgramError: they changed on disk; they are removed.
        """
        digest = "sha256:" + hashlib.sha256(program.source.read_bytes()).hexdigest()
        if self._path(digest, ".wasm") != program.source:
            program.source.unlink()
            raise ProgramError(f"{program.source}: damaged on disk; removed, fetch the program again")

    def turn(self, work: str, digest: str, wait_s: float) -> AbstractAsyncContextManager[bool]:
        """Be the only one, of the processes that share this folder, who does such work on a program (see ``turn.py``).

        There are 256 locks for each kind of work, by the digest's first two digits, so that nothing needs to be removed.
        """
        return turn(self._folder / f"{work}-{digest.removeprefix('sha256:')[:2]}{_LOCK}", wait_s)

    def temporary(self, program: Program) -> Path:
        """A name to write an artifact under before ``keep`` renames it."""
        return program.artifact.with_suffix(f".{secrets.token_hex(4)}.part")

    def keep(self, written: Path, program: Program) -> None:
        """Make a written artifact the program's, then make room."""
        written.replace(program.artifact)
        self._trim({program.source, program.artifact})

    def trusted(self, program: Program) -> bool:
        """Whether the artifact is there and can only have been written by this user."""
        try:
            status = program.artifact.lstat()
        except FileNotFoundError:
            return False
        return status.st_uid == os.geteuid() and not status.st_mode & 0o022

    def _path(self, digest: str, ending: str) -> Path:
        return self._folder / (digest.removeprefix("sha256:") + ending)

    def _write(self, path: Path, content: bytes) -> None:
        part = path.with_suffix(f".{secrets.token_hex(4)}.part")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb") as file:  # noqa: PTH123 - of a descriptor
            file.write(content)
            file.flush()
            os.fsync(fd)
        part.replace(path)

    def _trim(self, kept: set[Path]) -> None:
        found = []
        for path in self._folder.iterdir():
            if path.suffix in {".part", _LOCK}:
                continue  # another's, being written
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.size:
                return
            if path not in kept:
                path.unlink(missing_ok=True)
                total -= size
