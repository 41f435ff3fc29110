"""A folder for as long as a simulation runs: one that was left by a simulation that was killed is removed by the next one."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from propeller.errors import StartError
from propeller.wasm.task_folders import TaskFolders


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder of this process's own, where temporary files are.

    Raises:
        StartError: it cannot be made.
    """
    base = Path(tempfile.gettempdir()) / f"propeller-simulations-{os.getuid()}"
    folders = TaskFolders(base)
    try:
        base.mkdir(mode=0o700, exist_ok=True)
        status = base.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise StartError(f"simulation: {base} belongs to someone else: name another folder with TMPDIR")
        folders.open()
    except OSError as error:
        raise StartError(
            f"simulation: {base}: {error.strerror}: name another folder for temporary files with TMPDIR"
        ) from None
    try:
        yield folders.own
    finally:
        folders.close()
