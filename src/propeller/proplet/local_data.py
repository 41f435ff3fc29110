"""The device's own data (``PROPLET_DATA``), from its files, in the place of a data store's. It goes to programs here, and nowhere else."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from propeller.errors import InvalidError, StartError
from propeller.process.logs import get_logger
from propeller.proplet.errors import TaskError

if TYPE_CHECKING:
    from propeller.samples.device_data import DeviceData

log = get_logger("data")

CHECK_S = 5.0
"""How often the files are looked at, in seconds, beside at the start of a task."""

_MAX_KEPT_BYTES = 64 * 1024 * 1024
"""A larger data set is read again for each task."""

_TRIES = 3

Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class LocalDataset:
    """A data set, and what stands for its version.

    Attributes:
        content: JSON, as a data store gives it.
        samples: how many there are.
        version: another one whenever the files change.
    """

    content: bytes
    samples: int
    version: str


class LocalData:
    """Reads the data, and again when a file has changed (by its time, size and number)."""

    def __init__(self, path: Path, label: str | None) -> None:
        """Read nothing yet; ``label`` is as in ``read_device_data``."""
        self._path, self._label = path, label
        self._stamp: Stamp | None = None
        self._kept: LocalDataset | None = None
        self._fault = ""
        self._columns: Mapping[str, str] | None = None
        self._reading = asyncio.Lock()

    async def open(self) -> None:
        """Read it for the first time.

        Raises:
            StartError: it cannot be read; the text names file, row and column.
        """
        try:
            await self._read()
        except InvalidError as error:
            raise StartError(f"PROPLET_DATA: {error}") from None

    async def look(self) -> None:
        """See whether a file has changed, and say in the log whether it can still be read."""
        async with self._reading:
            if self._stamp_now() == self._stamp:
                return
            try:
                await self._read()
            except InvalidError as error:
                self._report(error)

    async def dataset(self) -> LocalDataset:
        """The data as it is now.

        Raises:
            TaskError: it cannot be read. What is wrong stays in this device's log, as it may show what is in the data.
        """
        async with self._reading:
            if self._kept is not None and self._stamp_now() == self._stamp:
                return self._kept
            try:
                return await self._read()
            except InvalidError as error:
                self._report(error)
                raise TaskError(
                    "this device's own data (PROPLET_DATA) cannot be read: the log on the device names file, row and column"
                ) from None

    def _report(self, error: InvalidError) -> None:
        self._stamp, self._kept = self._stamp_now(), None
        if str(error) != self._fault:
            self._fault = str(error)
            log.error("the device's own data cannot be read: tasks fail until it can", reason=str(error))

    async def _read(self) -> LocalDataset:
        for _ in range(_TRIES):
            stamp = self._stamp_now()
            found = await asyncio.to_thread(self._load)
            if self._stamp_now() == stamp:  # else it was written to meanwhile
                break
        self._stamp, self._fault = stamp, ""
        if self._columns not in (None, found.columns):
            log.warning(
                "the columns of the device's own data have changed: programs may not fit them any more",
                before=_shown(self._columns or {}),
                now=_shown(found.columns),
            )
        self._columns = found.columns
        dataset = LocalDataset(found.content, found.samples, str(hash(stamp)))
        self._kept = dataset if len(found.content) <= _MAX_KEPT_BYTES else None
        log.info(
            "the device's own data is read",
            path=str(self._path),
            samples=found.samples,
            columns=_shown(found.columns),
            left_out=", ".join(found.left_out) or None,
        )
        return dataset

    def _load(self) -> "DeviceData":
        from propeller.samples.device_data import read_device_data  # memory that other proplets do without

        return read_device_data(self._path, self._label)

    def _stamp_now(self) -> Stamp:
        found = []
        try:
            entries = sorted(self._path.iterdir()) if self._path.is_dir() else [self._path]
            for one in entries:
                status = one.stat()
                found.append((os.fspath(one), status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:  # being replaced, or gone: reading it says so
            return (("", 0, 0, 0),)
        return tuple(found)


def _shown(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {what}" for name, what in columns.items())
