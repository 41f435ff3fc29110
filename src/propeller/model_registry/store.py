"""Model versions as files: ``global_model_v{n}.safetensors``, written once, whole and durably.

A version is allocated under a lock on the folder, which registries on the same folder share, and its file appears by a link that
exactly one writer can make. The file's ``__metadata__`` has all that a restart needs: the key under which the version was
asked for and the digest of its tensors. Files ``global_model_v{n}.json`` of absmach/propeller's registry are read where they lie.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from propeller.errors import ConflictError, NotFoundError, PropellerError
from propeller.fl.tensors import (
    Specs,
    TensorError,
    Tensors,
    TensorSpec,
    from_safetensors,
    specs_of,
    to_safetensors,
)
from propeller.fl.tensors.json import decode_json
from propeller.fl.tensors.safetensors import PREFIX, Header, header_length, read_header
from propeller.process.file_lock import FileLock
from propeller.process.files import remove_left_over, write_durably
from propeller.process.logs import get_logger
from propeller.protocol.wire import format_time, now

log = get_logger("models")

MAX_VERSION = 2**53 - 1
"""The largest version: every JSON reader keeps it exact (RFC 8259, section 6)."""

LINEAGE_FIELD = "lineage"
"""The field of a document's ``__metadata__`` that says where a version comes from, in JSON (``protocol.models``)."""

_OWN = "propeller."
_KEY_FIELD, _DIGEST_FIELD, _TIME_FIELD = f"{_OWN}key", f"{_OWN}content", f"{_OWN}created_at"
"""Fields of a file's ``__metadata__`` that are the registry's own."""

_FILE_NAME = re.compile(r"global_model_v(0|[1-9]\d{0,15})\.(safetensors|json)")


class VersionExistsError(ConflictError):
    """The version is there with other content."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"version {version} exists with other content, and versions never change; "
            "leave version out to get the next one"
        )


class VersionNotFoundError(NotFoundError):
    """There is no such version."""

    def __init__(self, version: int) -> None:
        super().__init__(f"Model not found: there is no version {version}; GET /models lists those there are")


class NoVersionLeftError(ConflictError):
    """The largest version there can be is taken."""

    def __init__(self) -> None:
        super().__init__(f"version {MAX_VERSION}, the last there can be, is taken")


class DamagedVersionError(PropellerError):
    """The version's file cannot be used.

    Attributes:
        reason: what is wrong with the file, for the log.
    """

    def __init__(self, version: int, reason: str) -> None:
        self.reason = reason
        super().__init__(f"Invalid model file: version {version} is damaged; restore it from a backup")


FileStamp = tuple[str, int, int, int]
"""A file's name, inode, size in bytes and time of change in nanoseconds."""


@dataclass(frozen=True)
class StoredModel:
    """What is stored of a version: tensors, the metadata they were stored with, and their digest."""

    tensors: Tensors
    metadata: dict[str, str]
    digest: str


@dataclass(frozen=True)
class VersionRecord:
    """A version: the digest of its tensors, and the key under which it was allocated, if any."""

    version: int
    digest: str
    key: str = ""


@dataclass(frozen=True)
class VersionInfo:
    """What is known of a version without reading its numbers.

    Attributes:
        version: its number.
        created_at: when it was stored; of a file without that, when the file was written.
        size: of its file, in bytes.
        digest: of its tensors.
        specs: the type and shape of each tensor, in the model's order.
        lineage: where it comes from, as JSON; empty if that is not known.
    """

    version: int
    created_at: datetime
    size: int
    digest: str
    specs: Specs
    lineage: str


class ModelStore:
    """A folder of versions. Its methods block: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, making it if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        remove_left_over([folder])
        self._folder = folder
        self._known: dict[int, VersionRecord] = {}
        self._by_key: dict[str, int] = {}

    def versions(self) -> list[int]:
        """Every version, in order: those of other registries on the folder too."""
        return sorted(self._files())

    def stamp(self, version: int) -> FileStamp:
        """What distinguishes the file of a version from one that an operator put in its place.

        Raises:
            VersionNotFoundError: there is none.
        """
        for path in (self._path(version), self._path(version).with_suffix(".json")):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                return path.name, stat.st_ino, stat.st_size, stat.st_mtime_ns
        raise VersionNotFoundError(version)

    def read(self, version: int) -> StoredModel:
        """A version, checked against the digest it was stored with.

        Raises:
            VersionNotFoundError: there is none.
            DamagedVersionError: its file cannot be read, or holds other numbers.
        """
        file = self._folder / self.stamp(version)[0]
        try:
            content = file.read_bytes()
            tensors, metadata = decode_json(content) if file.suffix == ".json" else from_safetensors(content)
        except FileNotFoundError:
            raise VersionNotFoundError(version) from None
        except (OSError, TensorError) as error:
            raise DamagedVersionError(version, f"{file.name}: {error}") from None
        digest = content_digest(tensors)
        if metadata.get(_DIGEST_FIELD, digest) != digest:
            raise DamagedVersionError(version, f"{file.name}: its numbers are not those that were stored")
        return StoredModel(tensors, _without_own_fields(metadata), digest)

    def info(self, version: int) -> VersionInfo:
        """What is known of a version.

        Raises:
            VersionNotFoundError: there is none.
            DamagedVersionError: its file cannot be read.
        """
        name, _inode, size, changed_ns = self.stamp(version)
        file, written = self._folder / name, datetime.fromtimestamp(changed_ns / 1e9, UTC)
        try:
            if file.suffix == ".json":
                tensors = decode_json(file.read_bytes())[0]
                return VersionInfo(version, written, size, content_digest(tensors), specs_of(tensors), "")
            header = read_file_header(file)
            fields = header.metadata
            return VersionInfo(
                version,
                datetime.fromisoformat(fields[_TIME_FIELD]) if _TIME_FIELD in fields else written,
                size,
                fields.get(_DIGEST_FIELD) or self.read(version).digest,
                {name: TensorSpec(entry.dtype, entry.shape) for name, entry in header.entries.items()},
                fields.get(LINEAGE_FIELD, ""),
            )
        except FileNotFoundError:
            raise VersionNotFoundError(version) from None
        except (OSError, ValueError) as error:
            raise DamagedVersionError(version, f"{file.name}: {error}") from None

    def add(
        self, tensors: Tensors, metadata: Mapping[str, str], version: int | None, key: str
    ) -> VersionRecord:
        """Store a model as ``version``, or as the next one; on the disk when this returns.

        The same ``key`` again gives the version that it gave first, and the same content under the same version changes nothing.

        Raises:
            VersionExistsError: the version has other content.
            NoVersionLeftError: there is no next version.
            TensorError: a tensor cannot be stored.
        """
        digest = content_digest(tensors)
        with FileLock(self._folder / ".lock"):
            self._read_changes()
            chosen = self._by_key.get(key) if key else None
            if chosen is None:
                chosen = version
            if chosen is not None and chosen in self._known:
                return _require_same(self._known[chosen], digest, key)
            stored = VersionRecord(self._next_version() if chosen is None else chosen, digest, key)
            fields = {
                **_without_own_fields(metadata),
                _DIGEST_FIELD: digest,
                _TIME_FIELD: format_time(now()),
                **({_KEY_FIELD: key} if key else {}),
            }
            write_durably(self._path(stored.version), to_safetensors(tensors, fields), replace=False)
            self._remember(stored)
            return stored

    def _next_version(self) -> int:
        version = max(self._known, default=-1) + 1
        if version > MAX_VERSION:
            raise NoVersionLeftError
        return version

    def _read_changes(self) -> None:
        """Take note of versions that others wrote to the folder, and of those that an operator removed."""
        files = self._files()
        for version in self._known.keys() - files.keys():
            gone = self._known.pop(version)
            if self._by_key.get(gone.key) == version:
                del self._by_key[gone.key]
        for version in sorted(files.keys() - self._known.keys()):
            self._remember(self._read_record(version, files[version]))

    def _read_record(self, version: int, file: Path) -> VersionRecord:
        try:
            if file.suffix == ".json":
                return VersionRecord(version, content_digest(decode_json(file.read_bytes())[0]))
            metadata = read_file_header(file).metadata
            return VersionRecord(version, metadata.get(_DIGEST_FIELD, ""), metadata.get(_KEY_FIELD, ""))
        except (OSError, TensorError) as error:
            log.error("model version cannot be read", version=version, file=file.name, reason=str(error))  # noqa: TRY400
            return VersionRecord(version, "")

    def _remember(self, record: VersionRecord) -> None:
        self._known[record.version] = record
        if record.key:
            self._by_key.setdefault(record.key, record.version)

    def _files(self) -> dict[int, Path]:
        found: dict[int, Path] = {}
        for entry in os.scandir(self._folder):
            match = _FILE_NAME.fullmatch(entry.name)
            if match is not None and (match[2] == "safetensors" or int(match[1]) not in found):
                found[int(match[1])] = Path(entry.path)
        return found

    def _path(self, version: int) -> Path:
        return self._folder / f"global_model_v{version}.safetensors"


def content_digest(tensors: Tensors) -> str:
    """SHA-256 of the tensors' names, types, shapes and numbers, whatever order and encoding they came in."""
    return hashlib.sha256(to_safetensors(dict(sorted(tensors.items())))).hexdigest()


def _require_same(stored: VersionRecord, digest: str, key: str) -> VersionRecord:
    # A key alone decides: the sender of the same key wants what it got before, and never a second version.
    if stored.digest != digest and not (key and key == stored.key):
        raise VersionExistsError(stored.version)
    return stored


def _without_own_fields(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in metadata.items() if not name.startswith(_OWN)}


def read_file_header(file: Path) -> Header:
    """The header of a safetensors file; its numbers are not read.

    Raises:
        TensorError: it is malformed.
        OSError: the file cannot be read.
    """
    with file.open("rb") as stream:
        prefix = stream.read(PREFIX)
        return read_header(prefix + stream.read(header_length(prefix)))
