"""Datasets as files, ``{id}.json``: whole or absent, durable, served as they were written."""

import asyncio
import hashlib
import json
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from propeller.data_store.dataset import checked
from propeller.data_store.samples import seed
from propeller.errors import NotFoundError, PropellerError
from propeller.process.files import remove_left_over, write_durably
from propeller.process.logs import get_logger
from propeller.protocol.ids import InvalidIdError, check_id
from propeller.protocol.wire import MalformedMessageError, decode_object

log = get_logger("data-store")

_ROOM = 64 * 1024 * 1024


@dataclass(frozen=True)
class Dataset:
    """A dataset's bytes, and the entity tag that stands for them."""

    content: bytes
    etag: str
    stamp: tuple[int, int, int]
    """The file's inode, size and time of change when it was read: others may write to the folder too."""


class Datasets:
    """The datasets in a folder."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, making it if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        remove_left_over([folder])
        self._folder = folder
        self._kept: OrderedDict[str, Dataset] = OrderedDict()

    async def seed(self, proplet_ids: list[str]) -> None:
        """Give the demo's data to those ids that have none."""
        for proplet_id in proplet_ids:
            content = _encoded(seed(proplet_id))
            try:
                await asyncio.to_thread(write_durably, self._path(proplet_id), content, replace=False)
            except FileExistsError:
                continue
            log.info("Dataset seeded", proplet_id=proplet_id)

    async def ids(self) -> list[str]:
        """The ids that have a dataset, sorted."""
        return await asyncio.to_thread(
            lambda: sorted(file.stem for file in self._folder.glob("*.json") if _is_id(file.stem))
        )

    async def get(self, proplet_id: str) -> Dataset:
        """The dataset of a proplet.

        Raises:
            NotFoundError: it has none.
            PropellerError: its file is not a JSON object.
            InvalidIdError: the id is not one.
        """
        path = self._path(check_id(proplet_id))
        try:
            stat = path.stat()
            kept = self._kept.get(proplet_id)
            if kept is None or kept.stamp != (stat.st_ino, stat.st_size, stat.st_mtime_ns):
                kept = await asyncio.to_thread(_read, path)
                self._keep(proplet_id, kept)
        except FileNotFoundError:
            log.warning("Dataset missing", proplet_id=proplet_id)
            raise NotFoundError(
                f"Dataset not found: {proplet_id} has none; POST one to /datasets/{proplet_id}, "
                "or name the id in FL_DATASET_PARTICIPANTS and restart"
            ) from None
        except MalformedMessageError as error:
            log.error("Invalid dataset file", proplet_id=proplet_id, reason=str(error))  # noqa: TRY400
            raise PropellerError(
                f"Invalid dataset file: {path.name} is not a JSON object; POST it again"
            ) from None
        log.info("Dataset served", proplet_id=proplet_id, bytes=len(kept.content))
        return kept

    async def put(self, proplet_id: str, dataset: dict[str, Any]) -> int:
        """Store the dataset of a proplet, replacing the one it has; gives the number of samples.

        Raises:
            InvalidError: the dataset is not one.
            InvalidIdError: the id is not one.
        """
        size = await asyncio.to_thread(self._put, check_id(proplet_id), dataset)
        log.info("Dataset stored", proplet_id=proplet_id, size=size)
        return size

    def _put(self, proplet_id: str, dataset: dict[str, Any]) -> int:
        whole = checked(proplet_id, dataset)
        write_durably(self._path(proplet_id), _encoded(whole))
        return int(whole["size"])

    def _keep(self, proplet_id: str, dataset: Dataset) -> None:
        self._kept.pop(proplet_id, None)
        self._kept[proplet_id] = dataset
        while self._kept and sum(len(kept.content) for kept in self._kept.values()) > _ROOM:
            self._kept.popitem(last=False)

    def _path(self, proplet_id: str) -> Path:
        return self._folder / f"{proplet_id}.json"


def _read(path: Path) -> Dataset:
    with path.open("rb") as stream:
        stat = os.fstat(stream.fileno())
        content = stream.read()
    decode_object(content)
    digest = hashlib.sha256(content).hexdigest()[:32]
    return Dataset(content, f'"{digest}"', (stat.st_ino, stat.st_size, stat.st_mtime_ns))


def _encoded(dataset: dict[str, Any]) -> bytes:
    return json.dumps(dataset, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _is_id(text: str) -> bool:
    try:
        check_id(text)
    except InvalidIdError:
        return False
    return True
