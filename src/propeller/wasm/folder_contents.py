"""What is in a task's folder: made, searched without following links, and removed whatever the task left in it; what its process has open.

The template imports this module and is small on purpose: standard library only.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from propeller.errors import InvalidError
from propeller.wasm.program_run import StateFolder

_COPIED_BYTES = 1024 * 1024

T = TypeVar("T")


class OutputError(InvalidError):
    """What a task left in ``/out`` or ``/state`` cannot be taken."""


def create(
    folder: Path,
    files: Mapping[str, bytes | Path],
    state: StateFolder | None = None,
    *,
    inputs: Path | None = None,
) -> None:
    """Make ``folder`` with ``in`` (holding ``files``), ``out`` and, for a task that has one, a copy of its ``state``.

    ``in`` is a link to ``inputs``, which is made, if that is given. A file that is given by its path is linked, or copied if it is on another file system.

    Raises:
        ValueError: a file's name is not a plain name.
    """
    folder.mkdir(mode=0o700)
    (inputs or folder / "in").mkdir(mode=0o700)
    if inputs is not None:
        (folder / "in").symlink_to(inputs)
    (folder / "out").mkdir(mode=0o700)
    if state is not None:
        (folder / "state").mkdir(mode=0o700)
        if state.source is not None:
            copy(state.source, folder / "state")
    for name, content in files.items():
        if name in {"", ".", ".."} or "/" in name or "\0" in name:
            raise ValueError(f"files: {name!r} is not a plain file name")
        if isinstance(content, Path):
            link_or_copy(content, folder / "in" / name)
            continue
        fd = os.open(folder / "in" / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        with open(fd, "wb") as file:  # noqa: PTH123 - of a descriptor
            file.write(content)


def give(folder: str, user: int) -> None:
    """Let a task's process use its folder as another user: read ``in``, whose files others may have too, and have the rest for its own.

    Only this process's user reaches the folder by its name. Needs the rights of root.
    """
    os.chmod(folder, 0o711)  # noqa: PTH101, S103
    os.chmod(f"{folder}/in", 0o755)  # noqa: PTH101, S103
    for path, _ in walk(f"{folder}/in"):
        os.chmod(path, 0o444)  # noqa: PTH101
    for name in ("out", "state"):
        with contextlib.suppress(FileNotFoundError):
            os.chown(f"{folder}/{name}", user, user)
            for path, _ in walk(f"{folder}/{name}"):
                os.chown(path, user, user, follow_symlinks=False)


def take_back(path: str | Path, status: os.stat_result) -> None:
    """Make what a task has left this process's user's own."""
    if status.st_uid != os.geteuid():
        os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)


def link_or_copy(file: Path, target: Path) -> None:
    """Have a file also at ``target``, where there is nothing yet."""
    try:
        os.link(file, target)
    except OSError:  # another file system, or one that has no links
        copy_file(file, target)


def copy(source: Path, target: Path) -> None:
    """Copy the files and folders of one folder into another, which is empty."""
    with os.scandir(source) as found:
        for entry in found:
            place = target / entry.name
            if entry.is_dir(follow_symlinks=False):
                place.mkdir(mode=0o700)
                copy(Path(entry.path), place)
            else:
                copy_file(Path(entry.path), place)


def copy_file(file: Path, target: Path) -> None:
    """Copy a file's content to one that is not there yet; no modes or times, which a confined process may not set."""
    with file.open("rb") as source, target.open("xb") as copied:
        while piece := source.read(_COPIED_BYTES):
            copied.write(piece)


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


def has_entries(folder: Path | str) -> bool:
    """Whether there is an entry in it, or it is gone."""
    try:
        with os.scandir(folder) as found:
            return next(found, None) is not None
    except OSError:
        return True


def open_files(pid: int) -> tuple[int, list[tuple[str, int]]]:
    """How many descriptors a process has, and the files among them that have no name any more: where each was, and its bytes; each once.

    These take room until the process ends. Nothing is told of one that has ended, or whose descriptors this user may not see.
    """
    count, found = 0, dict[tuple[int, int], tuple[str, int]]()
    try:
        with os.scandir(f"/proc/{pid}/fd") as descriptors:
            for descriptor in descriptors:
                count += 1
                with contextlib.suppress(OSError):  # closed meanwhile
                    status = descriptor.stat()
                    if not status.st_nlink and stat.S_ISREG(status.st_mode):
                        found[status.st_dev, status.st_ino] = (os.readlink(descriptor.path), status.st_size)  # noqa: PTH115
    except OSError:
        pass
    return count, list(found.values())


def thread_count(pid: int) -> int:
    """How many threads a process has; 0 if it has ended, or where the kernel does not tell."""
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink - 2  # noqa: PTH116 - small on purpose
    except OSError:
        return 0


def exceeded_limit(
    name: str, folder: str, max_bytes: int, max_files: int, unlinked: Iterable[tuple[str, int]] = ()
) -> str | None:
    """The limit that a folder's content is over, if any: ``NAME_files`` or ``NAME_bytes``; stops looking as soon as it knows.

    A file counts for its length, also where it has holes, and for each of its names. Those of ``unlinked`` count that were below the folder.
    """
    below = (
        f"/{'/'.join(folder.split('/')[-2:])}/"  # the task's and its own name: what is above may be a link
    )
    gone = [size for path, size in unlinked if below in path]
    size, count = sum(gone), len(gone)
    if count > max_files:
        return f"{name}_files"
    if size > max_bytes:
        return f"{name}_bytes"
    try:
        for _, status in walk(folder):
            count += 1
            if stat.S_ISREG(status.st_mode):
                size += status.st_size
            if count > max_files:
                return f"{name}_files"
            if size > max_bytes:
                return f"{name}_bytes"
    except OSError:  # too deep a path to name
        return f"{name}_files"
    return None


def take_files(
    folder: Path, target: Path | None = None, max_bytes: int = 0
) -> tuple[dict[str, bytes], dict[str, Path]]:
    """Read every file below ``folder``, by its path relative to it; those longer than ``max_bytes`` are moved to ``target`` instead.

    Args:
        folder: what a task saw as ``/out``.
        target: a folder on the same file system, made if it is needed; None: every file is read.
        max_bytes: the longest file that is read then.

    Raises:
        OutputError: one is a link or another thing that is not a file.
    """
    found: dict[str, bytes] = {}
    moved: dict[str, Path] = {}
    # By descriptors: whatever a process that is about to end does to the folder meanwhile, nothing else is read.
    for path, folders, files, at in os.fwalk(folder):
        inner = set(folders)  # of a hundred thousand, a list would take minutes
        for name in [*folders, *files]:
            shown = os.path.relpath(f"{path}/{name}", folder)
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
            except OSError:
                raise _unusual("out", shown) from None
            try:
                status = os.fstat(fd)
                if stat.S_ISDIR(status.st_mode) and name in inner:
                    continue
                if not stat.S_ISREG(status.st_mode):
                    raise _unusual("out", shown)
                if target is not None and status.st_size > max_bytes:
                    moved[shown] = _move(name, at, status, target / f"out-{len(moved)}", shown)
                else:
                    found[shown] = _read(fd)
            finally:
                os.close(fd)
    return found, moved


def _move(name: str, at: int, status: os.stat_result, target: Path, shown: str) -> Path:
    """Move a file of an open folder; it must be the one that was looked at."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.rename(name, target, src_dir_fd=at)
    if not os.path.samestat(status, target.lstat()):
        raise _unusual("out", shown)
    take_back(target, status)
    return target


def _read(fd: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        return file.read()


def keep_files(name: str, folder: Path) -> None:
    """See that a folder that a task saw as ``/NAME`` has nothing but files and folders, and make them this user's own.

    Raises:
        OutputError: it has something else, such as a link.
    """
    for path, status in walk(str(folder)):
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise _unusual(name, os.path.relpath(path, folder))
        take_back(path, status)
    take_back(folder, folder.lstat())


def _unusual(name: str, shown: str) -> OutputError:
    return OutputError(f"/{name}/{shown}: not a regular file; write files and folders only")


def remove(folder: Path) -> None:
    """Remove a folder, however deep it is: inner folders are moved to its top until there are none.

    A task may have made them with any mode.
    """
    number = 0
    pending = [folder]
    while pending:
        current = pending.pop()
        with contextlib.suppress(FileNotFoundError):
            for entry in _opened(current, lambda folder: list(os.scandir(folder)), current):
                if entry.is_dir(follow_symlinks=False):
                    number += 1
                    moved = folder / f".remove-{number}"
                    _opened(entry.path, os.rename, entry.path, moved)
                    pending.append(moved)
                else:
                    os.unlink(entry.path)  # noqa: PTH108 - of an entry
            if current != folder:
                current.rmdir()
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()


def _opened(folder: str | Path, act: Callable[..., T], *arguments: str | Path) -> T:
    """Do something to a folder, or to what is in it, whose mode may forbid that to its owner."""
    try:
        return act(*arguments)
    except PermissionError:
        os.chmod(folder, stat.S_IRWXU)  # noqa: PTH101 - small on purpose
        return act(*arguments)
