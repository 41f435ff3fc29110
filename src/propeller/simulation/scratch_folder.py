"""Folders for temporary files: one that was left by a simulation that was killed is removed by the next one."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from propeller.errors import StartError
from propeller.wasm.task_folders import TaskFolders


def open_scratch() -> TaskFolders:
    """A folder of this process's own, where temporary files are: ``own``. Close it.

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
        raise no_room(error) from None
    return folders


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Such a folder for a block.

    Raises:
        StartError: as ``open_scratch``.
    """
    folders = open_scratch()
    try:
        yield folders.own
    finally:
        folders.close()


def no_room(error: OSError) -> StartError:
    """The error of temporary files that cannot be written."""
    return StartError(
        f"simulation: temporary files cannot be written to {tempfile.gettempdir()}: {error.strerror or error}: make room there, or "
        "name another folder with TMPDIR"
    )
