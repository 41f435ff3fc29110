"""Programs on disk: the bytes as they came, by digest, and what this machine's runtime compiled from them; native programs as they are.

Compiled code is native code that the process will trust, so it is only ever made here, by ``worker.py``, in a folder that
only this user can enter. Its name holds the digest, the runtime's version, the configuration and the architecture. Beside
it is a checksum of name and content, so that neither damage nor another program's artifact is ever loaded.
"""

import contextlib
import hashlib
import mmap
import os
import platform
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from cachetools import LRUCache

from propeller.digests import digest_of, is_digest
from propeller.native_program import NativeProgram, NativeProgramError, is_native
from propeller.process.file_lock import FileLock, LockedError
from propeller.process.files import remove_left_over, trim_folder, write_durably
from propeller.wasm.folder_contents import link_or_copy
from propeller.wasm.layers import HEAD_BYTES, Layer, names_runtime, read_layer
from propeller.wasm.program_run import ProgramError
from propeller.wasm.runtimes import compiled_files, runtime_file

_CORE, _COMPONENT = b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0"
_TENSORS = b"propeller:program/tensors@"
"""The name under which a component imports the host's tensors."""
_CONFIGURATION = "1"
"""Counts the changes of ``guest_program.runtime_config`` and of ``module_exports``."""
_BLOCK_BYTES = 1024 * 1024
_MAX_KINDS = 64
"""In memory: a layer has some KB."""
_ABANDONED_S = 3600.0
"""The age after which a half-written artifact is one that a killed process left, in seconds."""
_LOCK, _PART, _SUM = ".lock", ".part", ".sum"


@dataclass(frozen=True)
class CachedProgram:
    """A program in the cache, and where its artifact for this machine is or will be."""

    source: Path
    artifact: Path
    component: bool
    host_tensors: bool
    """Whether it uses the host's tensors."""
    layer: bytes | None = None
    """What a program over a shared runtime is given; the others are then of the runtime."""


@dataclass(frozen=True)
class _Kind:
    """What a file is: a component or a core module, or a layer; or a native program."""

    component: bool
    layer: Layer | None
    native: bool = False


class ProgramCache:
    """The folder of programs, bounded in size: the ones used longest ago go first."""

    def __init__(self, folder: Path, max_bytes: int, runtimes: Path | None = None) -> None:
        """Make the folder if it is missing, and remove what killed processes left half-written.

        Args:
            folder: of the programs.
            max_bytes: its bound.
            runtimes: a folder of shared runtimes that were made on this machine; they need not be fetched.

        Raises:
            ProgramError: it belongs to someone else, or others could write to it.
        """
        self._folder, self._runtimes = folder, runtimes
        self._host_tensors: dict[str, bool] = {}
        self._kinds: LRUCache[str, _Kind] = LRUCache(_MAX_KINDS)
        self._verified: dict[Path, tuple[int, ...]] = {}
        """Artifacts that were read and are what was made, with what the file system then said of them."""
        self.max_bytes = max_bytes
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise ProgramError(
                f"{folder}: must belong to this user and be writable by no one else (chmod 700)"
            )
        remove_left_over([folder])
        for part in folder.glob(f"*{_PART}"):
            with contextlib.suppress(FileNotFoundError):
                if part.stat().st_mtime < time.time() - _ABANDONED_S:
                    part.unlink()

    def has(self, digest: str) -> bool:
        """Whether the program is here; one whose artifact another version made is compiled again when it runs."""
        return is_digest(digest) and self._path(digest, ".wasm").exists()

    def read(self, digest: str) -> bytes:
        """A program's bytes.

        Raises:
            ProgramError: the program is not here.
        """
        try:
            return self._path(digest, ".wasm").read_bytes()
        except OSError:
            raise _not_here(digest) from None

    def find(self, digest: str, runtime_version: str, *, fuel: bool) -> CachedProgram:
        """Where a program and its artifact for this runtime are (or will be); marks them as used.

        Raises:
            ProgramError: the program is not here.
        """
        kind, source = self._kind(digest), self._path(digest, ".wasm")
        if kind.layer is not None:
            if missing := self.missing_runtime(digest):
                raise ProgramError(
                    f"program {digest[:71]} needs the runtime {missing[:71]}, which is not in the cache; it must be fetched first"
                )
            if self._kind(kind.layer.runtime).layer is not None:
                raise ProgramError(f"program {digest[:71]}: its runtime is a layer itself, and no component")
            with contextlib.suppress(FileNotFoundError):
                os.utime(source)
            return replace(self.find(kind.layer.runtime, runtime_version, fuel=fuel), layer=kind.layer.code)
        component = kind.component
        key = f"{runtime_version} {platform.machine()} {_CONFIGURATION} {fuel}"
        artifact = self._path(digest, f".{hashlib.sha256(key.encode()).hexdigest()[:16]}.native")
        with contextlib.suppress(FileNotFoundError):
            os.utime(source)  # not the artifact, whose times tell whether it changed
        return CachedProgram(
            source, artifact, component, component and self._uses_host_tensors(digest, source)
        )

    def is_native(self, digest: str) -> bool:
        """Whether a program is a native one, which is not compiled.

        Raises:
            ProgramError: it is not here.
        """
        return self._kind(digest).native

    def is_layer(self, digest: str) -> bool:
        """Whether a program is one over a shared runtime.

        Raises:
            ProgramError: it is not here.
        """
        return self._kind(digest).layer is not None

    def missing_runtime(self, digest: str) -> str | None:
        """The digest of the shared runtime that a program needs and that is not here.

        Raises:
            ProgramError: the program is not here.
        """
        layer = self._kind(digest).layer
        return None if layer is None or self.has(layer.runtime) else layer.runtime

    def take_runtime(self, digest: str) -> None:
        """Have the runtime that a program needs, compiled if it is, if it was made on this machine.

        Raises:
            ProgramError: the program is not here, or the runtime is damaged.
        """
        missing = self.missing_runtime(digest)
        made = None if missing is None or self._runtimes is None else runtime_file(self._runtimes, missing)
        if missing is None or made is None or self._runtimes is None:
            return
        # Whoever loads what is compiled compares it with its checksum, and sees whose it is.
        for file in compiled_files(self._runtimes, missing):
            with contextlib.suppress(OSError):
                link_or_copy(file, self._folder / file.name)
        with contextlib.suppress(FileNotFoundError):  # forgotten just now
            self.add(missing, made.read_bytes(), self.max_bytes)

    def _kind(self, digest: str) -> "_Kind":
        """What a program's file says of it.

        Raises:
            ProgramError: it is not here.
        """
        if not self.has(digest):
            raise _not_here(digest)
        known = self._kinds.get(digest)
        if known is None:
            known = self._kinds[digest] = self._read_kind(digest)
        return known

    def _read_kind(self, digest: str) -> "_Kind":
        path = self._path(digest, ".wasm")
        try:
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
                if is_native(head):
                    return _Kind(component=False, layer=None, native=True)
                if not names_runtime(head):
                    return _Kind(head[:8] == _COMPONENT, None)
                content = head + file.read()
        except OSError:  # it made room for others just now
            raise _not_here(digest) from None
        layer = read_layer(content)
        if layer is None or digest_of(content) != digest:  # the runtime has a checksum, this has none
            path.unlink(missing_ok=True)
            raise ProgramError(f"{path}: damaged on disk; removed, fetch the program again")
        return _Kind(component=False, layer=layer)

    def uses_host_tensors(self, digest: str) -> bool:
        """Whether a program uses the host's tensors; not if it is not here."""
        with contextlib.suppress(ProgramError):
            if layer := self._kind(digest).layer:
                digest = layer.runtime
        if digest not in self._host_tensors:
            with contextlib.suppress(OSError), self._path(digest, ".wasm").open("rb") as file:
                if file.read(8) != _COMPONENT:
                    return False
                self._uses_host_tensors(digest, self._path(digest, ".wasm"))
        return self._host_tensors.get(digest, False)

    def add(self, digest: str, wasm: bytes, max_bytes: int) -> None:
        """Store a program's bytes.

        Raises:
            ProgramError: not a program, over ``max_bytes``, or not what the digest says.
        """
        if not is_digest(digest):
            raise ProgramError(f"digest {digest[:80]!r}: must be sha256: and 64 hexadecimal digits")
        if len(wasm) > max_bytes:
            raise ProgramError.over_limit("module_bytes", max_bytes)
        actual = digest_of(wasm)
        if actual != digest:
            raise ProgramError(f"digest: the program's bytes are {actual}, not {digest}")
        if is_native(wasm):
            try:
                NativeProgram.decode(wasm)
            except NativeProgramError as error:
                raise ProgramError(f"not a native program: {error}") from None
        elif wasm[:8] not in {_CORE, _COMPONENT}:
            raise ProgramError("not a Wasm program: it does not start as a core module or a component")
        if names_runtime(wasm[:HEAD_BYTES]) and read_layer(wasm) is None:
            raise ProgramError("not a Wasm program: it names a runtime, and has other sections than a layer")
        path = self._path(digest, ".wasm")
        if not path.exists():
            write_durably(path, wasm, mode=0o600)
            self._trim({path})

    def verify(self, program: CachedProgram) -> None:
        """Verify a stored program's bytes again, before they are compiled.

        Raises:
            ProgramError: they changed on disk; they are removed.
        """
        digest = digest_of(program.source.read_bytes())
        if self._path(digest, ".wasm") != program.source:
            program.source.unlink()
            raise ProgramError(f"{program.source}: damaged on disk; removed, fetch the program again")

    @contextlib.asynccontextmanager
    async def lock(self, work: str, digest: str, wait_s: float) -> AsyncIterator[bool]:
        """Be the only one, of the processes that share this folder, who does such work on a program.

        Gives whether the lock is held: after ``wait_s`` seconds the block is entered without it, and at once on a file
        system that has no locks; at worst something is done twice. There are 256 locks for each kind of work, by the
        digest's first two digits, so that nothing needs to be removed.
        """
        lock = FileLock(self._folder / f"{work}-{digest.removeprefix('sha256:')[:2]}{_LOCK}")
        with contextlib.suppress(LockedError, OSError):
            await lock.acquire_async(wait_s)
        try:
            yield lock.held
        finally:
            lock.release()

    def temporary_artifact(self, program: CachedProgram) -> Path:
        """A name to write an artifact under before ``keep_artifact`` renames it."""
        return program.artifact.with_suffix(f".{secrets.token_hex(4)}{_PART}")

    def keep_artifact(self, written: Path, program: CachedProgram) -> None:
        """Make a written artifact the program's, then make room."""
        # First: an artifact with another's checksum is made again, one without a checksum too.
        write_durably(_sum_file(program), _checksum(program, written), mode=0o600)
        written.replace(program.artifact)
        self._trim({program.source, program.artifact})

    def is_verified(self, program: CachedProgram) -> bool:
        """Whether the artifact is the one that ``verify_artifact`` read, by what the file system says of it."""
        try:
            return self._verified.get(program.artifact) == _identity(program.artifact.lstat())
        except FileNotFoundError:
            return False

    def verify_artifact(self, program: CachedProgram) -> bool:
        """Whether the artifact is there, whole, this program's, and can only have been written by this user; reads all of it."""
        self._verified.pop(program.artifact, None)
        try:
            status = program.artifact.lstat()
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return False
            if _sum_file(program).read_bytes() != _checksum(program, program.artifact):
                return False
        except OSError:
            return False
        self._verified[program.artifact] = _identity(status)
        return True

    def remove_artifact(self, program: CachedProgram) -> None:
        """Have it made again."""
        for path in (program.artifact, _sum_file(program)):
            path.unlink(missing_ok=True)

    def _uses_host_tensors(self, digest: str, source: Path) -> bool:
        """Whether the import's name is in the program: one that only contains it is given them for nothing."""
        if digest not in self._host_tensors:
            with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                self._host_tensors[digest] = content.find(_TENSORS) >= 0
        return self._host_tensors[digest]

    def _path(self, digest: str, ending: str) -> Path:
        return self._folder / (digest.removeprefix("sha256:") + ending)

    def _trim(self, keep: set[Path]) -> None:
        programs = [path for path in self._folder.iterdir() if path.suffix in {".wasm", ".native"}]
        for path in programs:
            if path.suffix == ".native":
                with contextlib.suppress(FileNotFoundError):  # used when its program was
                    used = path.with_name(path.name.split(".", 1)[0] + ".wasm").stat().st_mtime_ns
                    if path.stat().st_mtime_ns < used:
                        os.utime(path, ns=(used, used))
        trim_folder(programs, self.max_bytes, keep=keep)
        for path in self._folder.glob(f"*{_SUM}"):
            if not path.with_suffix("").exists():
                path.unlink(missing_ok=True)


def _sum_file(program: CachedProgram) -> Path:
    return program.artifact.with_name(program.artifact.name + _SUM)


def _checksum(program: CachedProgram, file: Path) -> bytes:
    """SHA-256 of the artifact's name, which has the program's digest, and of the content of ``file``, as text."""
    checksum = hashlib.sha256(program.artifact.name.encode() + b"\n")
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            checksum.update(block)
    return checksum.hexdigest().encode()


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_dev, status.st_ino, status.st_mode, status.st_uid, status.st_size,
        status.st_mtime_ns, status.st_ctime_ns,
    )  # fmt: skip


def _not_here(digest: str) -> ProgramError:
    return ProgramError(f"program {digest[:71]} is not in the cache; it must be fetched first")
