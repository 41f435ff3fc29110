"""Blobs on disk by digest: bounded, the least recently used go first, checked whenever they are used."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from propeller.process.logs import get_logger

log = get_logger("proxy")


class BlobCache:
    """A folder of blobs. Its methods block on the disk; call them from a thread where that matters.

    Nothing is synced: a blob that a power cut tore does not have its digest and is fetched again.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open ``folder``, made if it is not there; ``max_bytes`` for all blobs together."""
        self._folder, self._max = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.part"):
            left.unlink()

    def size(self, digest: str) -> int | None:
        """The size of a blob in bytes, or ``None`` if it is not here; its bytes are not checked."""
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def open(self, digest: str) -> BinaryIO | None:
        """A blob's file, checked against its digest; it stays readable when the blob is removed meanwhile."""
        path = self._path(digest)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" != digest:
            file.close()
            log.warning("cached program was changed on disk, fetching it again", digest=digest)
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
        return file

    def get(self, digest: str) -> bytes | None:
        """A small blob's bytes, checked."""
        file = self.open(digest)
        if file is None:
            return None
        with file:
            file.seek(0)
            return file.read()

    def put(self, digest: str, data: bytes) -> None:
        """Keep a small blob, which is checked already."""
        with self.writer(digest) as file:
            file.write(data)

    @contextlib.contextmanager
    def writer(self, digest: str) -> Iterator[BinaryIO]:
        """A file for a blob that becomes part of the cache when the block ends without an error."""
        beside = self._folder / f"{uuid.uuid4().hex}.part"
        try:
            with beside.open("w+b") as file:
                yield file
            beside.rename(self._path(digest))
        finally:
            beside.unlink(missing_ok=True)
        self._evict(self._path(digest))

    def _evict(self, keep: Path) -> None:
        found = [(path, path.stat()) for path in self._folder.glob("sha256-*")]
        total = sum(stat.st_size for _, stat in found)
        for path, stat in sorted(found, key=lambda item: item[1].st_mtime):
            if total <= self._max:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= stat.st_size

    def _path(self, digest: str) -> Path:
        return self._folder / digest.replace(":", "-")
