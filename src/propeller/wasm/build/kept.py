"""Built programs, kept under what they were made of; those used longest ago go first."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from propeller.process.files import remove_left_over, write_durably

MOST_BYTES = 1 << 30
"""Of all programs together; one takes about 20 MB."""

_BUILDING = "building-"
_ABANDONED_S = 3600.0


class KeptBuilds:
    """A folder of programs, which several processes may share."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        """Make the folder if it is missing, and remove what builds left that were killed."""
        self._folder, self._most_bytes = folder, most_bytes
        folder.mkdir(parents=True, exist_ok=True)
        remove_left_over([folder])
        for place in folder.glob(f"{_BUILDING}*"):
            with contextlib.suppress(FileNotFoundError):
                if place.stat().st_mtime < time.time() - _ABANDONED_S:
                    shutil.rmtree(place, ignore_errors=True)

    def get(self, key: str) -> bytes | None:
        """A program, if it is here; it is in use again then."""
        try:
            content = self._path(key).read_bytes()
            os.utime(self._path(key))
        except FileNotFoundError:
            return None
        return content

    def put(self, key: str, program: bytes) -> None:
        """Keep a program, and make room for it."""
        write_durably(self._path(key), program)
        found = []
        for path in self._folder.glob("*.wasm"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total > self._most_bytes and path != self._path(key):
                path.unlink(missing_ok=True)
                total -= size

    @contextlib.contextmanager
    def workplace(self) -> Iterator[Path]:
        """A folder to build in, which is gone after."""
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=_BUILDING) as place:
            yield Path(place)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.wasm"
