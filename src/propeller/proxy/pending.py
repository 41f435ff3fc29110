"""Requests that were taken and not yet answered, kept so that they survive the process."""

import time
import uuid
from pathlib import Path

KEEP_S = 120.0
"""Older requests are dropped at a start, in seconds: whoever asked has given up."""


class Pending:
    """A folder with a file for every open request. It need not survive a power cut, so nothing is synced."""

    def __init__(self, folder: Path) -> None:
        """Open ``folder``, made if it is not there."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, payload: bytes) -> Path:
        """Keep a request; give the result to ``done`` when it is answered."""
        path = self._folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        beside = path.with_suffix(".part")
        beside.write_bytes(payload)
        return beside.rename(path)

    def done(self, path: Path) -> None:
        """Forget an answered request."""
        path.unlink(missing_ok=True)

    def left(self) -> list[tuple[Path, bytes]]:
        """What an earlier process left, oldest first."""
        found = []
        for path in sorted(self._folder.iterdir()):
            if path.suffix or path.stat().st_mtime < time.time() - KEEP_S:
                path.unlink()
            else:
                found.append((path, path.read_bytes()))
        return found
