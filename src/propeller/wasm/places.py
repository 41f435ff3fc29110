"""The folders of one sandbox's tasks: held by a lock while it lives, removed by the next one when it is gone."""

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
            fd = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folders.remove(entry)
            except BlockingIOError:
                pass
            finally:
                os.close(fd)
        self.own.mkdir(mode=0o700)
        self._lock = os.open(self.own, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove the folder."""
        if self._lock >= 0:
            folders.remove(self.own)
            os.close(self._lock)
            self._lock = -1

    def new(self) -> Path:
        """A name for a task's folder."""
        return self.own / secrets.token_hex(8)
