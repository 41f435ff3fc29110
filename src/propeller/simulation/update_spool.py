"""The updates of a round until they are aggregated: in memory while they are small together, then in a file."""

import tempfile
from collections.abc import Container
from functools import partial
from pathlib import Path
from typing import IO

from propeller.fl.strategies.aggregation import UpdateTensors
from propeller.fl.tensors import Tensors, from_safetensors

_MEMORY_BYTES = 64 * 1024 * 1024
"""Of updates that a round keeps in memory."""


class UpdateSpool:
    """Updates by their participants. A file that there may be has no name; it goes with ``clear``."""

    def __init__(self, folder: Path, memory_bytes: int = _MEMORY_BYTES) -> None:
        """Keep nothing yet; ``folder`` takes a file if there is more than ``memory_bytes``."""
        self._folder, self._memory_bytes = folder, memory_bytes
        self._file: IO[bytes] | None = None
        self._places: dict[str, tuple[int, int]] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._places)

    def add(self, name: str, content: bytes) -> None:
        """Keep the update of a participant."""
        if self._file is None:
            self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed by ``clear``
                self._memory_bytes, dir=str(self._folder)
            )
        place = self._file.seek(0, 2)
        self._file.write(content)
        self._places[name] = place, len(content)
        self._size = place + len(content)

    def read(self, name: str) -> bytes:
        """The update of a participant.

        Raises:
            KeyError: it is not kept.
        """
        place, size = self._places[name]
        if self._file is None:
            raise KeyError(name)
        self._file.seek(place)
        return self._file.read(size)

    def tensors(self, name: str) -> UpdateTensors:
        """The tensors of a participant's update; if updates are in a file, what reads them."""
        return (
            self._read_tensors(name)
            if self._size <= self._memory_bytes
            else partial(self._read_tensors, name)
        )

    def _read_tensors(self, name: str) -> Tensors:
        return from_safetensors(self.read(name))[0]

    def keep(self, names: Container[str]) -> None:
        """Drop the updates of all others; the room is free once there are none."""
        self._places = {name: place for name, place in self._places.items() if name in names}
        if not self._places:
            self.clear()

    def clear(self) -> None:
        """Drop everything."""
        self._places, self._size = {}, 0
        if self._file is not None:
            self._file.close()
            self._file = None
