"""The folders of one sandbox's tasks: held by a lock while it lives, removed by the next one when it is gone."""

import contextlib
import os
import secrets
import stat
from pathlib import Path

from propeller.process.file_lock import FileLock, LockedError
from propeller.wasm import folder_contents

_MEMORY = Path("/dev/shm")  # noqa: S108 - what is made there is this user's own, and nobody else sees into it


def memory_folder() -> Path | None:
    """A folder of this user's own on a file system in memory, for small files that are there for a moment; ``None`` if there is none.

    To make and remove files is a good part of what a short task takes of a device, and on a disk's file system several times as much.
    """
    folder = _MEMORY / f"propeller-{os.getuid()}"
    try:
        if not _MEMORY.is_mount():
            return None
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    return folder if is_own else None


class TaskFolders:
    """A folder of its own below ``base``, for the folders of tasks."""

    def __init__(self, base: Path) -> None:
        """``base`` is shared by sandboxes, also of other processes."""
        self._base = base
        self.own = base / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._lock = FileLock(self.own, folder=True)

    def open(self) -> None:
        """Make the folder, and remove those of sandboxes that are gone: no one holds their lock."""
        self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in self._base.iterdir():
            # In use; or another sandbox was quicker; or it is no folder, and not ours.
            with contextlib.suppress(LockedError, FileNotFoundError, NotADirectoryError):
                _remove_if_free(entry)
        while not self._lock.held:
            self.own.mkdir(mode=0o700, exist_ok=True)
            self._lock_own()

    def close(self) -> None:
        """Remove the folder."""
        if self._lock.held:
            folder_contents.remove(self.own)
            self._lock.release()

    def new(self) -> Path:
        """A name for a task's folder."""
        return self.own / secrets.token_hex(8)

    def _lock_own(self) -> None:
        """Lock the folder, unless another sandbox took it for abandoned before it was locked."""
        with contextlib.suppress(FileNotFoundError):
            self._lock.acquire()
            if os.path.samestat(os.fstat(self._lock.descriptor), self.own.stat()):
                return
        self._lock.release()


def _remove_if_free(folder: Path) -> None:
    lock = FileLock(folder, folder=True)
    lock.acquire(wait_s=0)
    try:
        folder_contents.remove(folder)
    finally:
        lock.release()
