"""A file that says until when a proplet counts as alive: it serves no HTTP that a health check could ask."""

import contextlib
import time
from pathlib import Path

MISSED = 3
"""Heartbeats that may be missed, as with the manager."""


class Heartbeat:
    """The file ``heartbeat`` of a proplet's folder: a time in seconds since 1970."""

    def __init__(self, folder: Path, interval: float) -> None:
        """``interval`` between heartbeats, in seconds."""
        self._file, self._good_for = folder / "heartbeat", MISSED * interval

    def clear(self) -> None:
        """Forget what an earlier process said.

        Raises:
            OSError: the file cannot be removed.
        """
        self._file.unlink(missing_ok=True)

    def mark(self) -> None:
        """A heartbeat went out. A disk that does not take the note costs the check's verdict, not the next heartbeat."""
        whole = self._file.with_suffix(".new")
        with contextlib.suppress(OSError):
            whole.write_text(f"{time.time() + self._good_for:.3f}\n", encoding="ascii")
            whole.replace(self._file)
