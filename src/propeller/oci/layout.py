"""An OCI image-layout folder that holds several repositories (image specification 1.1, "OCI Image Layout").

    oci-layout               the version of the layout
    index.json               a descriptor for every manifest of a repository, and one for every tag
    blobs/sha256/HEX         the bytes, shared by all repositories
    uploads/ID               bytes that are still coming in

A tag is a descriptor whose ``org.opencontainers.image.ref.name`` is ``repository:tag``, a manifest that belongs to a
repository one with ``repository@sha256:…``. Every file is written beside its place, synced and renamed, so that readers see
the old or the new state, also after a crash; a lock file keeps writers of several processes apart.
"""

import contextlib
import json
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

from cachetools import LRUCache

from propeller.digests import digest_of, digest_of_file, is_digest
from propeller.oci.errors import DamagedLayoutError, DigestMismatchError
from propeller.oci.manifest import IMAGE_INDEX, REF_NAME, Descriptor
from propeller.process.file_lock import FileLock
from propeller.process.files import remove_left_over, sync_folder, write_durably
from propeller.process.logs import get_logger

log = get_logger("layout")

MAX_UPLOAD_AGE_S = 24 * 3600.0
"""Unfinished uploads older than this are removed when the layout is opened."""

_MAX_VERIFIED = 10_000

_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")


class Layout:
    """A layout folder. Its methods block on the disk; call them from a thread where that matters."""

    def __init__(self, folder: Path) -> None:
        """Open ``folder``, which is made if it is missing.

        Raises:
            DamagedLayoutError: its index cannot be read.
        """
        self.folder, self._lock_file = folder, folder / ".lock"
        self._blobs, self._uploads = folder / "blobs" / "sha256", folder / "uploads"
        for path in (self._blobs, self._uploads):
            path.mkdir(parents=True, exist_ok=True)
        self._verified: LRUCache[str, tuple[int, int, int]] = LRUCache(_MAX_VERIFIED)
        with FileLock(self._lock_file):
            if not (folder / "oci-layout").exists():
                write_durably(folder / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            if not (folder / "index.json").exists():
                self._save([])
            self._load()
        remove_left_over([folder, self._blobs])
        for path in self._uploads.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - MAX_UPLOAD_AGE_S:
                    path.unlink()

    # Blobs

    def find_blob(self, digest: str) -> Path | None:
        """The file of a blob, or ``None``; a damaged one is set aside, so that whoever pushes it again sends it.

        It is read and hashed when it is asked for first, and when its file was changed.

        Raises:
            ValueError: the digest is not one.
        """
        path = self._path(digest)
        try:
            status = path.stat()
            version = status.st_mtime_ns, status.st_size, status.st_ino
            if self._verified.get(digest) == version:
                return path
            with path.open("rb") as file:
                if digest_of_file(file) == digest:
                    self._verified[digest] = version
                    return path
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
        except FileNotFoundError:  # it was never there, or has just been deleted
            return None
        log.error("a blob is damaged: push its artifact again", digest=digest, kept_as=str(aside))
        return None

    def read_blob(self, digest: str) -> bytes | None:
        """The bytes of a small blob, or ``None``; as ``find_blob``."""
        path = self.find_blob(digest)
        try:
            return None if path is None else path.read_bytes()
        except FileNotFoundError:
            return None

    def store_blob(self, data: bytes) -> str:
        """Store a small blob; returns its digest."""
        digest = digest_of(data)
        if self.find_blob(digest) is None:
            write_durably(self._path(digest), data)
        return digest

    def delete_blob(self, digest: str) -> bool:
        """Remove a blob; whether it was there."""
        try:
            self._path(digest).unlink()
        except FileNotFoundError:
            return False
        return True

    # Uploads: their file is all of their state, so that they survive a restart

    def start_upload(self) -> str:
        """Start an upload; returns its id."""
        name = uuid.uuid4().hex
        (self._uploads / name).touch(exist_ok=False)
        return name

    def find_upload(self, name: str) -> Path | None:
        """The file of an upload, or ``None``."""
        path = self._uploads / name
        return path if _UPLOAD_ID.fullmatch(name) and path.is_file() else None

    def finish_upload(self, name: str, digest: str) -> None:
        """Make an upload a blob.

        Raises:
            DigestMismatchError: the bytes are not those; the upload is gone.
        """
        path = self._uploads / name
        with path.open("rb") as file:
            found = digest_of_file(file)
            if found != digest:
                path.unlink()
                raise DigestMismatchError(f"the upload is {found}, not {digest}", "upload it again")
            os.fsync(file.fileno())
        path.rename(self._path(digest))
        sync_folder(self._blobs)

    # Manifests and tags

    def find_manifest(self, repository: str, target: str) -> Descriptor | None:
        """The manifest that a tag or digest names in a repository, or ``None``."""
        name = _full_name(repository, target)
        found = (entry for entry in self._load() if entry.annotations.get(REF_NAME) == name)
        return next(found, None)

    def store_manifest(self, repository: str, target: str, media_type: str, data: bytes) -> Descriptor:
        """Store a manifest under its digest and, if ``target`` is a tag, under that tag."""
        digest = self.store_blob(data)
        names = {_full_name(repository, digest), _full_name(repository, target)}
        with FileLock(self._lock_file):
            others = [entry for entry in self._load() if entry.annotations.get(REF_NAME) not in names]
            added = [Descriptor(media_type, digest, len(data), {REF_NAME: name}) for name in sorted(names)]
            self._save(others + added)
        return added[0]

    def delete_manifest(self, repository: str, target: str) -> bool:
        """Remove a tag, or a manifest with every tag of it, from a repository; whether it was there."""
        name = _full_name(repository, target)
        with FileLock(self._lock_file):
            entries = self._load()
            others = [
                entry
                for entry in entries
                if entry.annotations.get(REF_NAME) != name
                and not (entry.digest == target and _repository(entry) == repository)
            ]
            if len(others) == len(entries):
                return False
            self._save(others)
        return True

    def list_manifests(self, repository: str) -> list[Descriptor]:
        """Every manifest of a repository, each once."""
        return [
            entry
            for entry in self._load()
            if entry.annotations.get(REF_NAME) == _full_name(repository, entry.digest)
        ]

    def list_tags(self, repository: str) -> list[str] | None:
        """The tags of a repository, sorted; ``None`` if there is no such repository."""
        names = [
            entry.annotations.get(REF_NAME, "") for entry in self._load() if _repository(entry) == repository
        ]
        return sorted(name.rpartition(":")[2] for name in names if "@" not in name) if names else None

    def list_repositories(self) -> list[str]:
        """The names of all repositories, sorted."""
        return sorted({_repository(entry) for entry in self._load()})

    def _path(self, digest: str) -> Path:
        if not is_digest(digest):  # it becomes a file name
            raise ValueError(f"{digest[:80]!r} is not a sha256 digest")
        return self._blobs / digest.removeprefix("sha256:")

    def _load(self) -> list[Descriptor]:
        file = self.folder / "index.json"
        try:
            document = json.loads(file.read_bytes())
            return [Descriptor.from_json(entry) for entry in document["manifests"]]
        except (ValueError, TypeError, KeyError, RecursionError, FileNotFoundError) as error:
            raise DamagedLayoutError(
                f"{file} is damaged: {error}; restore it from a backup, or remove it and push the programs again (their bytes stay in "
                f"{self._blobs})"
            ) from None

    def _save(self, entries: list[Descriptor]) -> None:
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": IMAGE_INDEX,
            "manifests": [entry.to_json() for entry in entries],
        }
        write_durably(self.folder / "index.json", json.dumps(document, indent=1).encode())


def _full_name(repository: str, target: str) -> str:
    return f"{repository}@{target}" if is_digest(target) else f"{repository}:{target}"


def _repository(entry: Descriptor) -> str:
    name = entry.annotations.get(REF_NAME, "")
    return name.partition("@")[0] if "@" in name else name.rpartition(":")[0]
