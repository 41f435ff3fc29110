"""The folders of one sandbox's tasks: held by a lock while it lives, removed by the next one when it is gone."""

import contextlib
import os
import secrets
from pathlib import Path

from propeller.process.file_lock import FileLock, LockedError
from propeller.wasm import folder_contents


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
