"""Programs from registries: resolved and fetched once however many ask, kept on disk."""

import asyncio
import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from cachetools import LRUCache, TTLCache

from propeller.digests import digest_of_file
from propeller.oci.client import Artifact, RegistryClient
from propeller.oci.errors import NotSignedError
from propeller.oci.reference import DefaultRegistry, Reference, Registry
from propeller.oci.signatures import Signature
from propeller.oci.signers import Signers
from propeller.process.files import trim_folder
from propeller.process.logs import get_logger
from propeller.process.opening import open_in_thread
from propeller.process.single_flight import SingleFlight
from propeller.proxy.metrics import ProxyMetrics

log = get_logger("proxy")

NOBODY = Signers("proxy")

MAX_CONCURRENT_FETCHES = 4


SIGNATURES_LAST_S = 2.0
"""How long signatures are kept, in seconds, so that those who ask together cost one look; one that is added is seen after it."""

_MAX_SIGNED = 1000


@dataclass(frozen=True)
class Resolution:
    """What a reference names.

    Attributes:
        reference: the same by its manifest's digest.
        artifact: the program, and the manifest.
        signatures: of the artifact, if they were looked for.
    """

    reference: Reference
    artifact: Artifact
    signatures: list[Signature] | None = None


class BlobCache:
    """A folder of blobs by their digest: bounded, the least recently used go first, checked whenever they are used.

    Its methods block on the disk; call them from a thread where that matters.
    Nothing is synced: a blob that a power cut tore does not have its digest and is fetched again.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open ``folder``, made if it is not there; ``max_bytes`` for all blobs together."""
        self._folder, self._max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob("*.part"):
            left_over.unlink()

    def size(self, digest: str) -> int | None:
        """The size of a blob in bytes, or ``None`` if it is not here; its bytes are not checked."""
        try:
            return self._path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def open(self, digest: str) -> BinaryIO | None:
        """A blob's file, checked against its digest; it stays readable when the blob is removed meanwhile."""
        path = self._path(digest)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        if digest_of_file(file) != digest:
            file.close()
            log.warning("cached program was changed on disk, fetching it again", digest=digest)
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
        return file

    def get(self, digest: str) -> bytes | None:
        """A small blob's bytes, checked."""
        file = self.open(digest)
        if file is None:
            return None
        with file:
            file.seek(0)
            return file.read()

    def put(self, digest: str, data: bytes) -> None:
        """Keep a small blob, which is checked already."""
        with self.writer(digest) as file:
            file.write(data)

    @contextlib.contextmanager
    def writer(self, digest: str) -> Iterator[BinaryIO]:
        """A file for a blob that becomes part of the cache when the block ends without an error."""
        partial = self._folder / f"{uuid.uuid4().hex}.part"
        try:
            with partial.open("w+b") as file:
                yield file
            partial.rename(self._path(digest))
        finally:
            partial.unlink(missing_ok=True)
        trim_folder(self._folder.glob("sha256-*"), self._max_bytes, keep=[self._path(digest)])

    def _path(self, digest: str) -> Path:
        return self._folder / digest.replace(":", "-")


class ProgramSource:
    """What references stand for, and the bytes of programs.

    A tag is asked for anew each time, by one request for all who ask at once. A digest that is in the cache needs
    no registry.
    """

    def __init__(
        self,
        client: RegistryClient,
        blobs: BlobCache,
        default: DefaultRegistry,
        metrics: ProxyMetrics,
        signers: Signers = NOBODY,
    ) -> None:
        """``default`` is where references are that name no registry; one of ``signers``, if there are any, must have signed a program."""
        self._client, self._blobs, self._default, self._metrics = client, blobs, default, metrics
        self._signers = signers
        self._resolves: SingleFlight[Reference, Resolution] = SingleFlight()
        self._signatures: TTLCache[str, list[Signature]] = TTLCache(_MAX_SIGNED, SIGNATURES_LAST_S)
        self._signed: LRUCache[str, bool] = LRUCache(_MAX_SIGNED)
        self._fetches: SingleFlight[tuple[Registry, str, str], int] = SingleFlight()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_FETCHES)

    async def resolve(self, app_name: str, *, signatures: bool = False) -> Resolution:
        """What a reference names now; with its signatures if they are wanted, or the proxy asks for one.

        Raises:
            OciError: with the cause and the remedy.
        """
        reference = Reference.parse(app_name, self._default)

        async def ask() -> Resolution:
            artifact = await self._client.resolve(reference)
            pinned = Reference(reference.registry, reference.repository, digest=artifact.digest)
            return Resolution(pinned, artifact)

        found = await self._resolves.run(reference, ask)
        if signatures or self._signers:
            found = replace(found, signatures=await self._find_signatures(found))
        if self._signers:
            self._check_signed(found)
        return found

    async def _find_signatures(self, found: Resolution) -> list[Signature]:
        key = str(found.reference)
        if (known := self._signatures.get(key)) is not None:
            return known
        signatures = await self._client.signatures(found.reference, found.artifact.digest)
        self._signatures[key] = signatures
        return signatures

    def _check_signed(self, found: Resolution) -> None:
        signer = self._signers.check(str(found.reference), found.artifact.digest, found.signatures or ())
        if found.artifact.program.digest not in self._signed:
            log.info("program is signed", reference=str(found.reference), signer=signer)
        for digest in _digests(found):
            self._signed[digest] = True

    async def ensure(self, app_name: str, digest: str) -> int:
        """Have a program, or the runtime of one, in the cache, from the repository that ``app_name`` names; gives its size in bytes.

        Raises:
            OciError: with the cause and the remedy.
        """
        reference = Reference.parse(app_name, self._default)
        self._client.check(reference)
        if self._signers and digest not in self._signed:  # it may have been resolved by an earlier process
            found = await self.resolve(app_name)
            if digest not in _digests(found):
                raise NotSignedError(
                    f"{app_name} does not name {digest} any more, and who signed that is not known",
                    "try again",
                )
        size = self._blobs.size(digest)
        if size is not None:
            return size
        key = (reference.registry, reference.repository, digest)
        return await self._fetches.run(key, lambda: self._fetch(reference, digest))

    def has(self, digest: str) -> bool:
        """Whether a program is in the cache; its bytes are not checked."""
        return self._blobs.size(digest) is not None

    async def open(self, digest: str) -> BinaryIO | None:
        """A program's file, checked; ``None`` if it is not in the cache (any more)."""
        return await open_in_thread(lambda: self._blobs.open(digest))

    async def close(self) -> None:
        """Cancel what is being fetched."""
        await self._resolves.close()
        await self._fetches.close()

    async def _fetch(self, reference: Reference, digest: str) -> int:
        async with self._slots:
            with self._blobs.writer(digest) as file:
                size = await self._client.fetch(reference, digest, file)
        self._metrics.fetched.inc()
        self._metrics.fetched_bytes.inc(size)
        log.info("fetched container", app_name=str(reference), digest=digest, size=size)
        return size


def _digests(found: Resolution) -> list[str]:
    """Of the program, and of the runtime that it needs."""
    return [one.digest for one in (found.artifact.program, found.artifact.runtime) if one is not None]
