"""What is too large for memory: models that tasks are given and updates that they leave, in files of a folder of the proplet's own."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from propeller.process.opening import open_in_thread
from propeller.proplet.errors import TaskError
from propeller.wasm import folder_contents

PIECE_BYTES = 1024 * 1024
"""How much of a file is in memory at a time."""


@dataclass(frozen=True)
class FileBody:
    """A body that is sent from a file.

    Attributes:
        head: its first bytes.
        file: has the rest.
        start: where the rest begins in it.
        length: of the body, in bytes.
    """

    head: bytes
    file: Path
    start: int
    length: int

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, some of it at a time.

        Raises:
            OSError: the file cannot be read.
        """
        yield self.head
        with await open_in_thread(lambda: self.file.open("rb")) as file:
            file.seek(self.start)
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield piece


@dataclass(frozen=True)
class _Kept:
    source: str
    etag: str
    file: Path


class LargeFiles:
    """The large files of one proplet, which alone uses the folder: of each task in a folder of its own, until it ends.

    Of what was fetched the newest is kept for the next task, under each name.
    """

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, made when it is needed; what an earlier process left in it is removed."""
        self._folder = folder
        self._kept: dict[str, _Kept] = {}
        folder_contents.remove(folder)

    @contextlib.asynccontextmanager
    async def task_folder(self) -> AsyncIterator[Path]:
        """A folder for a task's files, made by who puts the first into it, and removed at the end of the block."""
        folder = self._folder / f"task-{secrets.token_hex(8)}"
        try:
            yield folder
        finally:
            if folder.exists():
                await asyncio.shield(asyncio.to_thread(folder_contents.remove, folder))

    def place_kept(self, name: str, folder: Path, source: str) -> str | None:
        """Place the file that is kept under a name in a task's folder, if it came from ``source``; its entity tag."""
        kept = self._kept.get(name)
        if kept is None or kept.source != source:
            return None
        with _disk_errors(name, self._folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            (folder / name).hardlink_to(kept.file)
        return kept.etag

    async def receive(
        self, name: str, folder: Path, pieces: AsyncIterable[bytes], *, source: str, etag: str
    ) -> Path:
        """Write a file into a task's folder, and keep it for the next; of its content a piece is in memory.

        Raises:
            TaskError: there is no room for it.
        """
        target = folder / name
        with _disk_errors(name, self._folder):
            with _create(target) as file:
                async for piece in pieces:
                    await asyncio.to_thread(file.write, piece)
            if etag:
                self._keep(name, target, source, etag)
        return target

    def _keep(self, name: str, file: Path, source: str, etag: str) -> None:
        before = self._kept.pop(name, None)
        if before is not None:
            before.file.unlink(missing_ok=True)
        kept = self._folder / f"kept-{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):  # a file system without links: it is fetched again
            kept.hardlink_to(file)
            self._kept[name] = _Kept(source, etag, kept)


def _create(target: Path) -> BinaryIO:
    """Create a file, read-only but through this: programs see this very file. One of a try before is replaced."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    return os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb")


@contextlib.contextmanager
def _disk_errors(name: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TaskError(
            f"{name}: it cannot be written to {folder} (PROPLET_STATE): {error.strerror}; a large model needs room for itself and "
            "for its update there"
        ) from error
