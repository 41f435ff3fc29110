"""Datasets as files, ``{id}.json``: whole or absent, durable, served as they were written."""

import asyncio
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from propeller.errors import InvalidError, NotFoundError, PropellerError
from propeller.process.byte_lru import ByteLru
from propeller.process.files import remove_left_over, write_durably
from propeller.process.logs import get_logger
from propeller.protocol.ids import InvalidIdError, check_id
from propeller.protocol.wire import MalformedMessageError, decode_object

log = get_logger("data-store")

CACHE_BYTES = 64 * 1024 * 1024

DEMO_SCHEMA = "fl-demo-dataset-v1"
DEMO_SAMPLES = 64


@dataclass(frozen=True)
class Dataset:
    """A dataset as it is served.

    Attributes:
        content: its bytes.
        etag: the entity tag that stands for them.
        stamp: the file's inode, size in bytes and time of change in nanoseconds when it was read: others may write
            to the folder too.
    """

    content: bytes
    etag: str
    stamp: tuple[int, int, int]


class DataStore:
    """The datasets in a folder."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, making it if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        remove_left_over([folder])
        self._folder = folder
        self._cache: ByteLru[str, Dataset] = ByteLru(CACHE_BYTES, lambda dataset: len(dataset.content))

    async def seed(self, proplet_ids: list[str]) -> None:
        """Give the demo's data to those ids that have none."""
        for proplet_id in proplet_ids:
            content = _encode(demo_dataset(proplet_id))
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
            dataset = self._cache.get(proplet_id)
            if dataset is None or dataset.stamp != _stamp(path.stat()):
                dataset = self._cache[proplet_id] = await asyncio.to_thread(_read, path)
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
        log.info("Dataset served", proplet_id=proplet_id, bytes=len(dataset.content))
        return dataset

    async def put(self, proplet_id: str, fields: dict[str, Any]) -> int:
        """Store the dataset of a proplet, replacing the one it has; returns the number of samples.

        Raises:
            InvalidError: the dataset is not one.
            InvalidIdError: the id is not one.
        """
        check_id(proplet_id)

        def store() -> int:
            dataset = complete_dataset(proplet_id, fields)
            write_durably(self._path(proplet_id), _encode(dataset))
            return int(dataset["size"])

        size = await asyncio.to_thread(store)
        log.info("Dataset stored", proplet_id=proplet_id, size=size)
        return size

    def _path(self, proplet_id: str) -> Path:
        return self._folder / f"{proplet_id}.json"


def complete_dataset(proplet_id: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The dataset as it is stored: its ids are the proplet's, its size is counted, its other fields are kept.

    Datasets of the demo's schema (also: of none) hold samples ``{"x": [numbers], "y": number}`` of one length. One that names
    another schema is left to its program: only its ``data`` must be a list.

    Raises:
        InvalidError: naming what is wrong, and in which sample.
    """
    schema = fields.get("schema") or DEMO_SCHEMA
    data = fields.get("data")
    if not isinstance(schema, str):
        raise InvalidError("schema: must be text")
    if not isinstance(data, list):
        raise InvalidError('data: must be a list of samples, as [{"x": [0.1, 0.2], "y": 1}]')
    if schema == DEMO_SCHEMA:
        _check_demo_samples(data)
    return {**fields, "schema": schema, "proplet_id": proplet_id, "client_id": proplet_id, "size": len(data)}


def demo_dataset(proplet_id: str) -> dict[str, Any]:
    """What a proplet of the guide's demo trains on, the same for an id each time: ``x`` of three numbers in [0, 1), ``y`` 0 or 1.

    The numbers are those of absmach/propeller's data store wherever its hash of the id is not negative. Where it is, that one gave
    negative numbers and labels; here the remainder is never negative.
    """
    base = _hash(proplet_id)
    values = [(base + number) % 1000 for number in range(DEMO_SAMPLES)]
    data = [
        {"x": [value % 10 / 10, 2 * value % 10 / 10, 3 * value % 10 / 10], "y": value % 2} for value in values
    ]
    return {
        "schema": DEMO_SCHEMA,
        "proplet_id": proplet_id,
        "client_id": proplet_id,
        "data": data,
        "size": DEMO_SAMPLES,
    }


def _check_demo_samples(data: list[Any]) -> None:
    features: int | None = None
    for number, sample in enumerate(data):
        x = sample.get("x") if isinstance(sample, dict) else None
        if not isinstance(x, list) or not x or not all(map(_is_number, x)):
            raise InvalidError(f"data[{number}].x: must be a list of finite numbers")
        if not _is_number(sample.get("y")):
            raise InvalidError(f"data[{number}].y: must be a finite number")
        if features is None:
            features = len(x)
        if len(x) != features:
            raise InvalidError(f"data[{number}].x: has {len(x)} numbers, data[0].x has {features}")


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _hash(text: str) -> int:
    """The polynomial hash of base 31 in signed 64-bit arithmetic."""
    value = 0
    for character in text:
        value = (value * 31 + ord(character)) % 2**64
    return value - 2**64 if value >= 2**63 else value


def _read(path: Path) -> Dataset:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        content = file.read()
    decode_object(content)
    digest = hashlib.sha256(content).hexdigest()[:32]
    return Dataset(content, f'"{digest}"', _stamp(status))


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _encode(dataset: dict[str, Any]) -> bytes:
    return json.dumps(dataset, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _is_id(text: str) -> bool:
    try:
        check_id(text)
    except InvalidIdError:
        return False
    return True
