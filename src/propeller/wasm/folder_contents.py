"""What is in a task's folder: made, searched without following links, and removed whatever the task left in it.

The template imports this module and is small on purpose: standard library only.
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from propeller.errors import InvalidError

_COPIED_BYTES = 1024 * 1024


class OutputError(InvalidError):
    """What a task left in ``/out`` cannot be taken."""


def create(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    """Make ``folder`` with ``in`` (holding ``files``) and ``out``.

    A file that is given by its path is linked, or copied if it is on another file system.

    Raises:
        ValueError: a file's name is not a plain name.
    """
    folder.mkdir(mode=0o700)
    (folder / "in").mkdir(mode=0o700)
    (folder / "out").mkdir(mode=0o700)
    for name, content in files.items():
        if name in {"", ".", ".."} or "/" in name or "\0" in name:
            raise ValueError(f"files: {name!r} is not a plain file name")
        if isinstance(content, Path):
            _link(content, folder / "in" / name)
            continue
        fd = os.open(folder / "in" / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        with open(fd, "wb") as file:  # noqa: PTH123 - of a descriptor
            file.write(content)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # another file system, or one that has no links
        with file.open("rb") as source, target.open("xb") as copy:
            while piece := source.read(_COPIED_BYTES):
                copy.write(piece)


def walk(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every entry below ``folder`` with its status, links not followed; a vanished one is left out."""
    pending = [folder]
    while pending:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(pending.pop()) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    yield entry.path, status
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(entry.path)


def has_entries(folder: Path) -> bool:
    """Whether there is an entry in it, or it is gone."""
    try:
        with os.scandir(folder) as found:
            return next(found, None) is not None
    except OSError:
        return True


def exceeded_limit(folder: str, max_bytes: int, max_files: int) -> str | None:
    """The limit that the folder's content is over, if any; stops looking as soon as it knows."""
    size = count = 0
    try:
        for _, status in walk(folder):
            count += 1
            if stat.S_ISREG(status.st_mode):
                size += status.st_size
            if count > max_files:
                return "out_files"
            if size > max_bytes:
                return "out_bytes"
    except OSError:  # too deep a path to name
        return "out_files"
    return None


def read_files(folder: Path) -> dict[str, bytes]:
    """Read every file below ``folder``, by its path relative to it.

    Raises:
        OutputError: one is a link or another thing that is not a file.
    """
    found = {}
    # By descriptors: whatever a process that is about to end does to the folder meanwhile, nothing else is read.
    for path, folders, files, at in os.fwalk(folder):
        for name in [*folders, *files]:
            shown = os.path.relpath(f"{path}/{name}", folder)
            content = _content(name, at)
            if content is None:
                raise OutputError(f"/out/{shown}: not a regular file; write files and folders only")
            if name in files:
                found[shown] = content
    return found


def _content(name: str, folder: int) -> bytes | None:
    """What is in a file of an open folder (nothing in a folder); None for anything else, which is not waited for."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return None
    try:
        kind = os.fstat(fd).st_mode
        if stat.S_ISREG(kind):
            with open(fd, "rb", closefd=False) as file:
                return file.read()
        return b"" if stat.S_ISDIR(kind) else None
    finally:
        os.close(fd)


def remove(folder: Path) -> None:
    """Remove a folder, however deep it is: inner folders are moved to its top until there are none."""
    number = 0
    pending = [folder]
    while pending:
        current = pending.pop()
        with contextlib.suppress(FileNotFoundError):
            for entry in list(os.scandir(current)):
                if entry.is_dir(follow_symlinks=False):
                    number += 1
                    moved = folder / f".remove-{number}"
                    os.rename(entry.path, moved)  # noqa: PTH104 - of an entry
                    pending.append(moved)
                else:
                    os.unlink(entry.path)  # noqa: PTH108 - of an entry
            if current != folder:
                current.rmdir()
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
