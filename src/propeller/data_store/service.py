"""Datasets as files, ``{id}.json``: whole or absent, durable, served as they were written."""

import asyncio
import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from propeller.errors import InvalidError, NotFoundError, PropellerError
from propeller.process.byte_lru import ByteLru
from propeller.process.decoding import decode
from propeller.process.files import DurableFile, remove_left_over, write_durably
from propeller.process.logs import get_logger
from propeller.protocol.booleans import as_numbers
from propeller.protocol.ids import InvalidIdError, check_id
from propeller.protocol.long_lists import NoSuchListError, find_list, read_items
from propeller.protocol.strict import MAX_FIELDS, nearest_names
from propeller.protocol.wire import MalformedMessageError, decode_object, decode_trusted

log = get_logger("data-store")

CACHE_BYTES = 64 * 1024 * 1024

_LONG_BYTES = 64 * 1024

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

    async def put(self, proplet_id: str, text: bytes) -> int:
        """Store the dataset of a proplet, replacing the one it has; returns the number of samples.

        Raises:
            InvalidError: the dataset is not one.
            InvalidIdError: the id is not one.
        """
        check_id(proplet_id)
        size = await decode(lambda given: self._store(proplet_id, given), text)
        log.info("Dataset stored", proplet_id=proplet_id, size=size)
        return size

    def _store(self, proplet_id: str, text: bytes) -> int:
        with DurableFile(self._folder, proplet_id) as file:
            size = write_dataset(proplet_id, text, file.stream)
            file.commit(self._path(proplet_id))
        return size

    def _path(self, proplet_id: str) -> Path:
        return self._folder / f"{proplet_id}.json"


def write_dataset(proplet_id: str, text: bytes, target: BinaryIO) -> int:
    """Write a dataset as it is stored: its ids are the proplet's, its size is counted, its other fields are kept; gives the size.

    Datasets of the demo's schema (also: of none) hold samples ``{"x": [numbers], "y": number}`` of one length; true is 1. One that names
    another schema is left to its program: only its ``data`` must be a list. Of a long one some samples are in memory at a time.

    Raises:
        InvalidError: naming what is wrong, and in which sample.
    """
    fields, parts = _read_parts(text)
    schema = fields.pop("schema", None) or DEMO_SCHEMA
    if not isinstance(schema, str):
        raise InvalidError("schema: must be text")
    fields |= {"schema": schema, "proplet_id": proplet_id, "client_id": proplet_id}
    check, size = DemoSamples() if schema == DEMO_SCHEMA else None, 0
    target.write(b'{"data":[')
    for part in parts:
        if check is not None:
            check.add(part)
        target.write(b"," if size and part else b"")
        target.write(_encode(part)[1:-1])
        size += len(part)
    rest = _encode({**fields, "size": size})
    target.write(b"]," + rest[1:])
    return size


def _read_parts(text: bytes) -> tuple[dict[str, Any], Iterator[list[Any]]]:
    """The fields without the samples, and the samples, some at a time.

    Raises:
        InvalidError: it is not a dataset.
    """
    if len(text) > _LONG_BYTES:
        with contextlib.suppress(NoSuchListError):
            begin = find_list(text, "data")
            end = begin
            for _items, end in read_items(text, "data", begin):  # noqa: B007 - its end is needed, and that it can be read
                pass
            fields = decode_object(text[:begin] + text[end:])
            if fields.pop("data", None) == []:  # not another one of that name
                return fields, (items for items, _end in read_items(text, "data", begin))
    fields = decode_object(text)
    data = fields.pop("data", None)
    if not isinstance(data, list):
        near = nearest_names("data", list(fields)[:MAX_FIELDS]) if data is None else []
        meant = f"it is missing (did you mean it by {near[0][:80]!r}?), and " if near else ""
        raise InvalidError(f'data: {meant}must be a list of samples, as [{{"x": [0.1, 0.2], "y": 1}}]')
    return fields, iter([data])


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


class DemoSamples:
    """Checks samples of the demo's schema."""

    def __init__(self) -> None:
        self._count, self._features = 0, 0

    def add(self, samples: list[Any]) -> None:
        """Check some that follow; true and false in them become 1 and 0.

        Raises:
            InvalidError: naming what is wrong, and in which sample.
        """
        for at, number in enumerate(range(self._count, self._count + len(samples))):
            sample = samples[at]
            if not _is_plain(sample):
                sample = samples[at] = as_numbers(sample)
            x = sample.get("x") if isinstance(sample, dict) else None
            if not isinstance(x, list) or not x or not all(map(_is_number, x)):
                raise InvalidError(
                    f"data[{number}].x: {_missing(sample, 'x')}must be a list of finite numbers{_OTHER_SAMPLES}"
                )
            if not _is_number(sample.get("y")):
                raise InvalidError(
                    f"data[{number}].y: {_missing(sample, 'y')}must be a finite number{_OTHER_SAMPLES}"
                )
            self._features = self._features or len(x)
            if len(x) != self._features:
                raise InvalidError(f"data[{number}].x: has {len(x)} numbers, data[0].x has {self._features}")
        self._count += len(samples)


_OTHER_SAMPLES = '; samples of another form need a schema of your own, as {"schema": "mine", "data": […]}'


def _missing(sample: Any, name: str) -> str:
    """That a field is not there, for an error, and which one may be meant by it; empty if it is there."""
    if not isinstance(sample, dict) or name in sample:
        return ""
    meant = [one for one in sample if one.casefold() == name]
    return f"it is missing{f' (there is {meant[0]!r})' if meant else ''}, and "


def _is_plain(sample: Any) -> bool:
    """Whether a sample has no true or false in the place of a number."""
    if not isinstance(sample, dict):
        return True
    x = sample.get("x")
    return type(sample.get("y")) is not bool and not (isinstance(x, list) and bool in set(map(type, x)))


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
    _check_object(content)
    digest = hashlib.sha256(content).hexdigest()[:32]
    return Dataset(content, f'"{digest}"', _stamp(status))


def _check_object(text: bytes) -> None:
    if len(text) > _LONG_BYTES:
        with contextlib.suppress(InvalidError):
            for _items in _read_parts(text)[1]:
                pass
            return  # an object, whatever its samples are
    decode_trusted(text)


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _is_id(text: str) -> bool:
    try:
        check_id(text)
    except InvalidIdError:
        return False
    return True
