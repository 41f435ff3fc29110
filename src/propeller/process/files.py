"""Files that are whole or absent, and survive a power loss once written; folders that are kept within a size."""

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

Buffer = bytes | bytearray | memoryview

_LEFT_OVER_S = 3600.0
"""Where files cannot be locked: the age after which a temporary one was left by a killed process, in seconds."""


class DurableFile:
    """A file that is written under another name, and appears at once and whole when it is committed.

    As a context manager it leaves nothing behind that was not committed.

    Attributes:
        stream: where its content is written.
    """

    def __init__(self, folder: Path, label: str = "new", *, mode: int = 0o666) -> None:
        """Begin one in ``folder``; folders that are missing are made. ``label`` is part of the other name.

        ``mode`` is that of the new file, from which the process's mask is taken.
        """
        self._made = _make_folder(folder)
        self._temporary = folder / f".{label[:200]}.{uuid.uuid4().hex[:12]}.tmp"
        self.stream: BinaryIO = os.fdopen(_create_locked(self._temporary, mode), "w+b")

    def sync(self) -> None:
        """Put what was written on the disk; ``commit`` has little to do then."""
        self.stream.flush()
        os.fsync(self.stream.fileno())

    def commit(self, path: Path, *, replace: bool = True) -> None:
        """Have it appear as ``path``, in the same folder; it is on the disk when this returns.

        Raises:
            FileExistsError: ``replace`` is off and the file is there: of several writers exactly one succeeds.
        """
        self.sync()
        if replace:
            self._temporary.replace(path)
        else:
            path.hardlink_to(self._temporary)
        for folder in self._made:
            sync_folder(folder)

    def close(self) -> None:
        """Close the stream, and remove what was not committed."""
        try:
            self.stream.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def write_durably(path: Path, data: Buffer, *, replace: bool = True, mode: int = 0o666) -> None:
    """Write a file so that it appears at once and whole, and is on the disk when this returns.

    Args:
        path: where; folders that are missing are made.
        data: what.
        replace: whether an existing file is replaced; if not, of several writers exactly one succeeds.
        mode: of the new file, from which the process's mask is taken: ``0o600`` for what only its owner may read.

    Raises:
        FileExistsError: ``replace`` is off and the file is there.
    """
    with DurableFile(path.parent, path.name, mode=mode) as file:
        file.stream.write(data)
        file.commit(path, replace=replace)


def keep_private() -> None:
    """From now on what this process and its children create is for its user alone: databases, models and logs hold others' data."""
    os.umask(0o077)


def trim_folder(files: Iterable[Path], max_bytes: int, *, keep: Collection[Path] = ()) -> None:
    """Remove the files used longest ago (by their time of change) until all together have at most ``max_bytes``.

    Args:
        files: those that count; one that is gone meanwhile is fine.
        max_bytes: what they may have together.
        keep: files that count and are not removed.
    """
    found = []
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        if path not in keep:
            path.unlink(missing_ok=True)
            total -= size


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_left_over(folders: Iterable[Path]) -> None:
    """Remove the temporary files that killed processes left: those that no ``DurableFile`` holds any more."""
    for folder in folders:
        for temporary in folder.glob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                _remove_abandoned(temporary)


def _create_locked(path: Path, mode: int) -> int:
    """Create a file and lock it; the system takes the lock back from a process that ends, however it ends."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return descriptor
        os.close(descriptor)  # it was taken for one left over, before it was locked


def _remove_abandoned(temporary: Path) -> None:
    descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        temporary.unlink()
    except BlockingIOError:
        return
    except OSError:  # a file system without locks: a running writer is too young for this
        if os.fstat(descriptor).st_mtime < time.time() - _LEFT_OVER_S:
            temporary.unlink()
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder; gives those whose names changed or will: itself, and the parents of each that was made."""
    changed = [folder]
    while not folder.exists():
        folder = folder.parent
        changed.append(folder)
    changed[0].mkdir(parents=True, exist_ok=True)
    return changed
