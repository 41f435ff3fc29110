"""Model versions as files: ``global_model_v{n}.safetensors``, written once, whole and durably, and read by blocks.

A version is allocated under a lock on the folder, which registries on the same folder share, and its file appears by a link that
exactly one writer can make. The file's ``__metadata__`` has all that a restart needs: the key under which the version was
asked for and the digest of its tensors. Files ``global_model_v{n}.json`` of absmach/propeller's registry are read where they lie.
"""

import contextlib
import io
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from propeller.errors import ConflictError, NotFoundError, PropellerError
from propeller.fl.tensors import TensorError, Tensors, from_safetensors, to_safetensors
from propeller.fl.tensors.json import decode_json
from propeller.model_registry.uploads import Upload
from propeller.process.file_lock import FileLock
from propeller.process.files import remove_left_over
from propeller.process.logs import get_logger
from propeller.protocol.models import LINEAGE_FIELD, lineage_of, lineage_text, without_updates
from propeller.protocol.wire import format_time, now
from propeller.store.documents import Document

log = get_logger("models")

MAX_VERSION = 2**53 - 1
"""The largest version: every JSON reader keeps it exact (RFC 8259, section 6)."""

_OWN = "propeller."
_KEY_FIELD, DIGEST_FIELD, _TIME_FIELD = f"{_OWN}key", f"{_OWN}content", f"{_OWN}created_at"
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

    def __init__(self, version: int, file: str, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"Invalid model file: version {version} is damaged ({file} in MODELS_DIR); restore it from a backup"
        )


FileStamp = tuple[str, int, int, int]
"""A file's name, inode, size in bytes and time of change in nanoseconds."""


@dataclass(frozen=True)
class VersionRecord:
    """What is kept in memory of a version.

    Attributes:
        version: its number.
        stamp: of its file.
        digest: of its content; empty if the file cannot be read.
        key: under which it was allocated, if any.
        experiment: of its lineage, if any.
        strategy: the name or program in its lineage, if any.
    """

    version: int
    stamp: FileStamp
    digest: str
    key: str = ""
    experiment: str = ""
    strategy: str = ""


class ModelStore:
    """A folder of versions. Its methods block: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, making it if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        remove_left_over([folder])
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[int, VersionRecord] = {}
        self._listed: dict[int, int] = {}
        self._by_key: dict[str, int] = {}
        self._checked: dict[int, FileStamp] = {}

    def versions(self) -> list[int]:
        """Every version, in order: those of other registries on the folder too."""
        return sorted(self._files())

    def records(self) -> list[VersionRecord]:
        """What is known of every version, in order."""
        with self._lock:
            self._read_changes()
            return [self._known[version] for version in sorted(self._known)]

    def stamp(self, version: int) -> FileStamp:
        """What distinguishes the file of a version from one that an operator put in its place.

        Raises:
            VersionNotFoundError: there is none.
        """
        for path in (self.path(version), self.path(version).with_suffix(".json")):
            with contextlib.suppress(FileNotFoundError):
                return stamp_of(path)
        raise VersionNotFoundError(version)

    @contextlib.contextmanager
    def open(self, version: int) -> Iterator[Document]:
        """The document of a version; its numbers are not checked.

        Raises:
            VersionNotFoundError: there is none.
            DamagedVersionError: its file cannot be read, also while the block reads it.
        """
        file = self._folder / self.stamp(version)[0]
        try:
            with _open(file) as document:
                yield document
        except FileNotFoundError:
            raise VersionNotFoundError(version) from None
        except (OSError, TensorError) as error:
            raise DamagedVersionError(version, file.name, str(error)) from None

    def check(self, version: int) -> str:
        """Compare a version's numbers with the digest they were stored with, once for a file; gives the digest.

        Raises:
            VersionNotFoundError: there is none.
            DamagedVersionError: its file cannot be read, or holds other numbers.
        """
        stamp = self.stamp(version)
        if self._checked.get(version) == stamp and (known := self.record(version)).digest:
            return known.digest
        with self.open(version) as document:
            digest = document.check()
            if document.metadata.get(DIGEST_FIELD, digest) != digest:
                raise DamagedVersionError(version, stamp[0], "its numbers are not those that were stored")
        self._checked[version] = stamp
        return digest

    def read(self, version: int) -> tuple[Tensors, dict[str, str]]:
        """The tensors of a version and the metadata they are sent with; checked.

        Raises:
            VersionNotFoundError: there is none.
            DamagedVersionError: its file cannot be read, or holds other numbers.
        """
        self.check(version)
        with self.open(version) as document:
            tensors, metadata = from_safetensors(document.read())
        return tensors, sent_metadata(metadata)

    def record(self, version: int) -> VersionRecord:
        """What is known of a version.

        Raises:
            VersionNotFoundError: there is none.
        """
        with self._lock:
            return self._current(version)

    def created_at(self, version: int, metadata: dict[str, str]) -> datetime:
        """When a version was stored; of a file that does not say it, when it was written.

        Raises:
            VersionNotFoundError: there is none.
        """
        with contextlib.suppress(KeyError, ValueError):
            return datetime.fromisoformat(metadata[_TIME_FIELD])
        return datetime.fromtimestamp(self.stamp(version)[3] / 1e9, UTC)

    def upload(self, key: str = "") -> Upload:
        """Begin a new version, allocated under ``key`` if that is not empty; to be given to ``add``."""

        def fields(metadata: dict[str, str]) -> dict[str, str]:
            kept = without_own_fields(metadata)
            if LINEAGE_FIELD in kept:
                kept[LINEAGE_FIELD] = lineage_text(kept[LINEAGE_FIELD])
            own = {_TIME_FIELD: format_time(now()), **({_KEY_FIELD: key} if key else {})}
            return {**kept, **own}

        return Upload(self._folder, fields, DIGEST_FIELD)

    def add(self, upload: Upload, version: int | None) -> VersionRecord:
        """Store a finished upload as ``version``, or as the next one; on the disk when this returns.

        The same key again gives the version that it gave first, and the same content under the same version changes nothing.

        Raises:
            VersionExistsError: the version has other content.
            NoVersionLeftError: there is no next version.
        """
        key = upload.metadata.get(_KEY_FIELD, "")
        with FileLock(self._folder / ".lock"), self._lock:
            self._read_changes()
            chosen = self._by_key.get(key) if key else None
            if chosen is None:
                chosen = version
            if chosen is not None and chosen in self._known:
                return _require_same(self._current(chosen), upload.digest, key)
            number = self._next_version() if chosen is None else chosen
            path = self.path(number)
            upload.commit(path, replace=False)
            stamp = self._checked[number] = stamp_of(path)
            return self._remember(_record(number, stamp, upload.metadata, upload.digest))

    def path(self, version: int) -> Path:
        """The file of a version."""
        return self._folder / f"global_model_v{version}.safetensors"

    def _next_version(self) -> int:
        version = max(self._known, default=-1) + 1
        if version > MAX_VERSION:
            raise NoVersionLeftError
        return version

    def _read_changes(self) -> None:
        """Take note of versions that others wrote to the folder, and of those that an operator removed or replaced."""
        files = self._files()
        for version, known in list(self._known.items()):
            # Inodes of the listing are compared with those of the listing: some file systems show others to stat.
            entry = files.get(version)
            if entry is None or self._listed.setdefault(version, entry.inode()) != entry.inode():
                del self._known[version]
                self._listed.pop(version, None)
                if self._by_key.get(known.key) == version:
                    del self._by_key[known.key]
        for version in sorted(files.keys() - self._known.keys()):
            self._listed[version] = files[version].inode()
            with contextlib.suppress(VersionNotFoundError):  # taken away meanwhile
                self._current(version)

    def _current(self, version: int) -> VersionRecord:
        stamp, known = self.stamp(version), self._known.get(version)
        if known is None or known.stamp != stamp:
            known = self._remember(self._read_record(version, stamp))
        return known

    def _read_record(self, version: int, stamp: FileStamp) -> VersionRecord:
        try:
            with _open(self._folder / stamp[0]) as document:
                digest = document.metadata.get(DIGEST_FIELD) or document.check()
                return _record(version, stamp, document.metadata, digest)
        except (OSError, TensorError) as error:
            log.error("model version cannot be read", version=version, file=stamp[0], reason=str(error))  # noqa: TRY400
            return VersionRecord(version, stamp, "")

    def _remember(self, record: VersionRecord) -> VersionRecord:
        self._known[record.version] = record
        if record.key:
            self._by_key.setdefault(record.key, record.version)
        return record

    def _files(self) -> "dict[int, os.DirEntry[str]]":
        found: dict[int, os.DirEntry[str]] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                match = _FILE_NAME.fullmatch(entry.name)
                if match is not None and (match[2] == "safetensors" or int(match[1]) not in found):
                    found[int(match[1])] = entry
        return found


def stamp_of(path: Path) -> FileStamp:
    """The stamp of a file.

    Raises:
        FileNotFoundError: there is none.
    """
    status = path.stat()
    return path.name, status.st_ino, status.st_size, status.st_mtime_ns


def without_own_fields(metadata: dict[str, str]) -> dict[str, str]:
    """Metadata as it was sent, without the fields that are the registry's."""
    return {name: text for name, text in metadata.items() if not name.startswith(_OWN)}


def sent_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Metadata with which a version is sent: without the registry's own fields and its lineage's list of updates."""
    return without_updates(without_own_fields(metadata))


def _record(version: int, stamp: FileStamp, metadata: dict[str, str], digest: str) -> VersionRecord:
    lineage = lineage_of(metadata) or {}
    strategy = lineage.get("strategy")
    used = strategy if isinstance(strategy, dict) else {}
    return VersionRecord(
        version,
        stamp,
        digest,
        metadata.get(_KEY_FIELD, ""),
        str(lineage.get("experiment") or ""),
        str(used.get("name") or used.get("program") or ""),
    )


def _open(file: Path) -> Document:
    """The document in a file; one of absmach/propeller is read into memory."""
    if file.suffix != ".json":
        return Document.open(file)
    return Document(io.BytesIO(to_safetensors(decode_json(file.read_bytes())[0])))


def _require_same(stored: VersionRecord, digest: str, key: str) -> VersionRecord:
    # A key alone decides: the sender of the same key wants what it got before, and never a second version.
    if stored.digest != digest and not (key and key == stored.key):
        raise VersionExistsError(stored.version)
    return stored
