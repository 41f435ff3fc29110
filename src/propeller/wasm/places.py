"""The folders of one sandbox's tasks: held by a lock while it lives, removed by the next one when it is gone."""

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

from propeller.wasm import folder as folders


class Places:
    """A folder of its own below ``base``, for the folders of tasks."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.own = base / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._lock = -1

    def open(self) -> None:
        """Make the folder, and remove those of sandboxes that are gone: no one holds their lock."""
        self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in self._base.iterdir():
            with contextlib.suppress(
                FileNotFoundError, NotADirectoryError
            ):  # another one was quicker; not ours
                _remove_if_free(entry)
        while self._lock < 0:
            self.own.mkdir(mode=0o700, exist_ok=True)
            self._lock = _hold(self.own)

    def close(self) -> None:
        """Remove the folder."""
        if self._lock >= 0:
            folders.remove(self.own)
            os.close(self._lock)
            self._lock = -1

    def new(self) -> Path:
        """A name for a task's folder."""
        return self.own / secrets.token_hex(8)


def _remove_if_free(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folders.remove(folder)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def _hold(folder: Path) -> int:
    """A descriptor that holds a folder's lock; -1: another sandbox took the folder for abandoned before it was locked."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if folder.is_dir() and os.path.samestat(os.fstat(fd), folder.stat()):
            return fd
        os.close(fd)
    return -1
