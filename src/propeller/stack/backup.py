"""Backups of a stack's state folder, consistent while it runs, and folders made of them again.

Its processes are stopped (SIGSTOP) while what changes in place is copied and what never changes is linked: what is saved is what a power cut at that
moment would have left, from which every service goes on by itself. Then they go on, and the archive is written: a tar file, compressed with zstd, whose
last member says what is in it.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

import psutil
import zstandard

from propeller import __version__
from propeller.errors import StartError
from propeller.process.logs import get_logger
from propeller.stack.state_folder import StateFolder

log = get_logger("backup")

MAX_STOPPED_S = 15.0
"""How long services may be stopped: devices count as gone after 30 s."""

FORMAT = 1
CONTENTS = "propeller-backup.json"
"""The last member: the version, and each file's size and SHA-256."""

_STAGING = ".backup-"

_LEFT_OUT = frozenset({"logs", "programs", "proxy", "aggregator", "stack.json"})
"""Of the state folder: logs, and what is fetched or compiled again."""

_LEFT_OUT_FOLDERS = frozenset({"sandbox", "inputs", "large", "uploads"})
"""Anywhere: what is being worked on."""

_LEFT_OUT_FILES = frozenset({"lock", ".lock", "heartbeat", ".aliases.lock"})
_LEFT_OUT_ENDINGS = (".lock", ".part", ".new", "-shm")

_NEVER_CHANGED = ("coordinator/updates/*", "model-registry/*.safetensors", "oci-registry/blobs/*/*")
"""Files that are made whole and only ever removed: a second name keeps them as they are."""

_CHUNK = 1024 * 1024

_WATCHDOG = """
import os, signal, sys
sys.stdin.buffer.read()
for pid in map(int, sys.argv[1:]):
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass
"""
"""Lets the processes go on when its standard input closes, also because whoever stopped them was killed."""


class BackupError(StartError):
    """A backup cannot be made or read; nothing of it is left."""


@dataclass(frozen=True)
class Saved:
    """A backup.

    Attributes:
        file: the archive.
        files: how many files are in it.
        bytes: of these, before they are compressed.
        stopped_s: how long the services were stopped, in seconds; ``None`` if none ran.
    """

    file: Path
    files: int
    bytes: int
    stopped_s: float | None


def back_up(folder: Path, target: Path) -> Saved:
    """Save a state folder; its stack may run.

    Raises:
        BackupError: there is no such folder, its stack is just starting, or something cannot be read or written.
    """
    state = StateFolder(folder)
    if not state.secrets_file.exists():
        raise BackupError(f"{folder} is not the state folder of a stack: name it with --state")
    if target.exists():
        raise BackupError(f"{target} is there already: choose another name")
    try:
        with _private(), tempfile.TemporaryDirectory(dir=state.folder, prefix=_STAGING) as staging:
            stopped_s = _collect(state, Path(staging))
            count, size = _write_archive(Path(staging), target)
    except OSError as error:
        raise BackupError(f"{error.filename or target}: {error.strerror}") from None
    return Saved(target, count, size, stopped_s)


def restore(source: Path, folder: Path) -> int:
    """Make a state folder of a backup; how many files are in it. No stack starts on it meanwhile.

    Raises:
        BackupError: the folder has something in it, or the archive is damaged, incomplete or of a newer version.
        StartError: another process uses the folder.
    """
    folder = folder.absolute()
    _check_empty(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            _private(),
            _claimed(folder),
            tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging,
        ):
            made = Path(staging) / "state"
            made.mkdir(mode=0o700)
            count = _read_archive(source, made)
            claim = StateFolder(made)  # it goes with the folder
            claim.lock()
            try:
                StateFolder(folder).lock_file.unlink()
                made.rename(folder)  # fails if somebody has begun to use the empty folder this moment
                StateFolder(folder).lock_file.unlink()
            finally:
                claim.release()
    except OSError as error:
        raise BackupError(f"{error.filename or source}: {error.strerror}") from None
    return count


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Keep stacks and other restores from a folder that is empty or not there, for the length of the block; it is as it was if that fails."""
    was_there = folder.exists()
    claim = StateFolder(folder)
    claim.lock()
    try:
        _check_empty(folder, claim.lock_file)
        yield
    except BaseException:
        claim.lock_file.unlink(missing_ok=True)
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    finally:
        claim.release()


def _check_empty(folder: Path, *but: Path) -> None:
    if folder.exists() and any(path not in but for path in folder.iterdir()):
        raise BackupError(f"{folder} is not empty: restore into a new folder with --state")


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """What is created in the block is for this process's user alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _collect(state: StateFolder, staging: Path) -> float | None:
    """Copy or link everything that is to be saved; how long the services were stopped for it."""
    if state.running_process() is None:
        state.lock()  # nobody starts one meanwhile
        try:
            _copy(state.folder, staging, float("inf"))
        finally:
            state.release()
        return None
    stack = state.read_stack()
    if stack is None:
        raise BackupError(f"the stack on {state.folder} is just starting or ending: try again")
    with _stopped(_processes(stack)) as began:
        _copy(state.folder, staging, began + MAX_STOPPED_S)
        return time.monotonic() - began


def _processes(stack: dict[str, Any]) -> list[psutil.Process]:
    """The services and devices of a running stack, and what they have started: the broker's server, and tasks."""
    found: dict[int, psutil.Process] = {}
    for name, pid in stack["processes"].items():
        if name == "up":  # it starts what dies again, and need not stop
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                found[one.pid] = one
    return list(found.values())


@contextlib.contextmanager
def _stopped(processes: Sequence[psutil.Process]) -> Iterator[float]:
    """Stop processes for the length of the block; gives when that began. They go on whatever becomes of this process."""
    command = [sys.executable, "-I", "-S", "-c", _WATCHDOG, *(str(one.pid) for one in processes)]
    watchdog = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603 - our own
    began = time.monotonic()
    try:
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.suspend()
        yield began
    finally:
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                os.kill(one.pid, signal.SIGCONT)
        if watchdog.stdin is not None:
            watchdog.stdin.close()
        watchdog.wait()


def _copy(folder: Path, staging: Path, until: float) -> None:
    for path in _files(folder):
        if time.monotonic() > until:
            raise BackupError(
                f"there is too much to copy while the services stand still for {MAX_STOPPED_S:g} s: end the stack, and back up then"
            )
        relative = path.relative_to(folder)
        copy = staging / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # it was removed by what ended
            if any(relative.match(pattern) for pattern in _NEVER_CHANGED):
                os.link(path, copy)
            else:
                shutil.copyfile(path, copy)


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        at = Path(root)
        is_top = at == folder
        folders[:] = sorted(
            name
            for name in folders
            if name not in _LEFT_OUT_FOLDERS
            and not name.startswith(_STAGING)
            and not (is_top and name in _LEFT_OUT)
        )
        for name in sorted(names):
            if name in _LEFT_OUT_FILES or name.endswith(_LEFT_OUT_ENDINGS) or (is_top and name in _LEFT_OUT):
                continue
            path = at / name
            if path.is_file() and not path.is_symlink():
                yield path


def _write_archive(staging: Path, target: Path) -> tuple[int, int]:
    """Write the archive whole, or nothing; how many files it has, and their bytes."""
    partial = target.with_name(f"{target.name}.part")
    contents: dict[str, list[Any]] = {}
    try:
        opened = partial.open("xb")
    except FileExistsError:
        raise BackupError(
            f"{partial} is there: another backup writes it, or one was killed; wait, or remove it"
        ) from None
    try:
        with (
            opened as file,
            zstandard.ZstdCompressor(level=3, threads=2, write_checksum=True).stream_writer(
                file, closefd=False
            ) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            for path in _files(staging):
                name = path.relative_to(staging).as_posix()
                with path.open("rb") as source:
                    member = tarfile.TarInfo(name)
                    member.size, member.mode = os.fstat(source.fileno()).st_size, 0o600
                    reader = _Hashing(source)
                    archive.addfile(member, reader)
                contents[name] = [member.size, reader.hexdigest()]
            said = json.dumps(
                {
                    "format": FORMAT,
                    "version": __version__,
                    "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "files": contents,
                }
            ).encode()
            member = tarfile.TarInfo(CONTENTS)
            member.size, member.mode = len(said), 0o600
            archive.addfile(member, io.BytesIO(said))
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    return len(contents), sum(size for size, _digest in contents.values())


def _read_archive(source: Path, folder: Path) -> int:
    """Write the files of an archive into a folder, and see that they are all there and as they were saved."""
    found: dict[str, list[Any]] = {}
    said: dict[str, Any] | None = None
    try:
        with (
            source.open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file) as packed,
            tarfile.open(fileobj=packed, mode="r|") as archive,
        ):
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                if content is None or said is not None:
                    raise BackupError(f"{source}: {member.name[:100]!r} does not belong into a backup")
                if member.name == CONTENTS:
                    said = _contents(source, content.read())
                    continue
                found[member.name] = _write_file(source, folder, member.name, content)
    except (tarfile.TarError, zstandard.ZstdError, EOFError, ValueError) as error:
        raise BackupError(f"{source} is damaged or no backup: {error}") from None
    if said is None:
        raise BackupError(f"{source} is not complete: its end is missing")
    if not isinstance(said.get("format"), int) or said["format"] > FORMAT:
        raise BackupError(
            f"{source} was made by a newer version, {str(said.get('version'))[:30]}: restore it with that"
        )
    saved = said.get("files")
    if not isinstance(saved, dict):
        raise BackupError(f"{source} is damaged: {CONTENTS} does not say what is in it")
    if found != saved:
        wrong = sorted(name for name in {*found, *saved} if found.get(name) != saved.get(name))
        raise BackupError(f"{source} is damaged: {', '.join(wrong[:5])} is not what was saved")
    return len(found)


def _contents(source: Path, text: bytes) -> dict[str, Any]:
    said = json.loads(text)
    if not isinstance(said, dict):
        raise BackupError(f"{source} is damaged: {CONTENTS} does not say what is in it")
    return said


def _write_file(source: Path, folder: Path, name: str, content: IO[bytes]) -> list[Any]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise BackupError(f"{source}: {name[:100]!r} does not belong into a backup")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as file:
        while piece := content.read(_CHUNK):
            digest.update(piece)
            size += len(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return [size, digest.hexdigest()]


class _Hashing:
    """A file that is read, and hashed on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read a piece."""
        piece = self._file.read(size)
        self._digest.update(piece)
        return piece

    def hexdigest(self) -> str:
        """Of what was read."""
        return self._digest.hexdigest()
