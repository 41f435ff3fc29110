"""The updates of rounds, kept until nobody needs them any more: small ones in the database, others as blobs."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable

from cachetools import LRUCache

from propeller.coordinator.active_rounds import ActiveRounds
from propeller.coordinator.rounds import RoundRecord
from propeller.coordinator.small_documents import SMALL_BYTES, SmallDocuments
from propeller.coordinator.store import Also, RoundStore
from propeller.coordinator.updates import UpdateDocument
from propeller.errors import PropellerError
from propeller.fl.round import RoundState
from propeller.process.clock import steady_time
from propeller.process.files import DurableFile
from propeller.process.logs import get_logger
from propeller.store.blobs import BlobNotFoundError, BlobStore
from propeller.store.database import Database

log = get_logger("coordinator")


_MAX_VERIFIED = 100_000
_IN_THREAD = 256 * 1024
"""From so many bytes on hashing would hold up the event loop."""


class DamagedUpdateError(PropellerError):
    """An update is not what its digest says.

    Attributes:
        digest: which.
    """

    def __init__(self, digest: str) -> None:
        self.digest = digest
        super().__init__(f"the update {digest[:16]}… is damaged where the coordinator keeps it")


class KeptUpdates:
    """Updates by their digests.

    Where one is depends on its size when it came: it is looked for in the database, then among the blobs, where small ones are too
    that came before there were any in the database.
    """

    def __init__(self, blobs: BlobStore, database: Database, *, small_bytes: int = SMALL_BYTES) -> None:
        """Keep those of at most ``small_bytes`` in ``database``, which has the coordinator's tables, others in ``blobs``."""
        self._blobs, self._small, self._small_bytes = blobs, SmallDocuments(database), small_bytes
        self._verified: LRUCache[str, str] = LRUCache(_MAX_VERIFIED)

    async def put(self, document: UpdateDocument) -> Also | None:
        """Make an update durable; of a small one, give what does so in the transaction by which it counts.

        Raises:
            BlobStoreError: there is no place for it.
        """
        if isinstance(document.content, DurableFile):
            await self._blobs.put_file(document.digest, document.content)
            await self._remember(document.digest)
            return None
        if document.size <= self._small_bytes:
            return self._small.writer(document.digest, document.content)
        await self._blobs.put(document.digest, document.content)
        await self._remember(document.digest)
        return None

    def new_file(self) -> DurableFile:
        """A file for an update that is not in memory, to be closed; ``put`` keeps it.

        Raises:
            BlobStoreError: there is no place for it.
        """
        return self._blobs.new_file()

    async def has_all(self, record: RoundRecord) -> bool:
        """Whether all updates of a round are still there."""
        digests = {update.digest for update in record.updates.values()}
        for digest in digests - await self._small.among(digests):
            if not await self._blobs.has(digest):
                return False
        return True

    async def missing(self, digests: Iterable[str]) -> list[str]:
        """Those of these updates that are not there, or are not what their digest says."""
        missing = []
        for digest in digests:
            try:
                is_whole = await self._is_whole(digest)
            except (BlobNotFoundError, DamagedUpdateError):
                is_whole = False
            if not is_whole:
                missing.append(digest)
        return missing

    async def damaged(self, digests: Iterable[str]) -> list[str]:
        """Those of these updates that are blobs and not what their digest says; ``stream`` and ``read`` look at the others.

        One that was found whole is not read again, unless it was changed since.

        Raises:
            BlobNotFoundError: one is not there.
        """
        wanted = set(digests)
        damaged = []
        for digest in sorted(wanted - await self._small.among(wanted)):
            version = await self._blobs.version(digest)
            if version and self._verified.get(digest) == version:
                continue
            if not await self._is_whole(digest):
                damaged.append(digest)
            elif version:
                self._verified[digest] = version
        return damaged

    async def _get_small(self, digest: str) -> bytes | None:
        content = await self._small.get(digest)
        if content is not None and hashlib.sha256(content).hexdigest() != digest:
            raise DamagedUpdateError(digest)
        return content

    async def _is_whole(self, digest: str) -> bool:
        """Whether an update is what its digest says."""
        found = hashlib.sha256()
        async for piece in self.stream(digest):
            await asyncio.to_thread(found.update, piece) if len(piece) > _IN_THREAD else found.update(piece)
        return found.hexdigest() == digest

    async def _remember(self, digest: str) -> None:
        """Note that a blob is whole, as it was just written."""
        if version := await self._blobs.version(digest):
            self._verified[digest] = version

    async def digests(self) -> list[str]:
        """The digests of all updates that are there."""
        return [*await self._small.list(), *await self._blobs.list()]

    async def stream(self, digest: str) -> AsyncIterator[bytes]:
        """An update's document in pieces.

        Raises:
            BlobNotFoundError: it is not there.
            DamagedUpdateError: it is in the database, and not what its digest says.
        """
        content = await self._get_small(digest)
        if content is not None:
            yield content
            return
        async for piece in self._blobs.stream(digest):
            yield piece

    async def read(self, digest: str, start: int, end: int) -> bytes:
        """The bytes of an update's document from ``start`` to before ``end``.

        Raises:
            BlobNotFoundError: it is not there.
            DamagedUpdateError: it is in the database, and not what its digest says.
        """
        content = await self._get_small(digest)
        return await self._blobs.read(digest, start, end) if content is None else content[start:end]

    async def remove(self, digests: Iterable[str]) -> None:
        """Remove updates; those that are not there are fine."""
        wanted = set(digests)
        small = await self._small.among(wanted)
        if small:
            await self._small.remove(small)
        for digest in wanted - small:
            await self._blobs.delete(digest)


class UpdateRetention:
    """How long the updates of rounds that are over stay."""

    def __init__(
        self,
        updates: KeptUpdates,
        store: RoundStore,
        rounds: ActiveRounds,
        *,
        keep_failed_s: float,
        keep_all: bool,
    ) -> None:
        """Remove those of failed rounds after ``keep_failed_s`` seconds, of others at once; with ``keep_all`` none."""
        self._updates, self._store, self._rounds = updates, store, rounds
        self.keep_failed_s, self.keep_all = keep_failed_s, keep_all

    async def remove_of(self, record: RoundRecord) -> None:
        """Remove the updates of a round that is over, unless they are to be kept."""
        if not self.keep_all:
            await self._updates.remove(update.digest for update in record.updates.values())

    async def remove_left_out(self, before: RoundRecord, after: RoundRecord) -> None:
        """Remove the updates that count no more; those of waves are removed with the wave's."""
        if not (self.keep_all or before.keeps_updates):
            gone = before.updates.keys() - after.updates.keys()
            await self._updates.remove(before.updates[name].digest for name in gone)

    async def remove_of_experiment(self, experiment_id: str) -> None:
        """Remove the updates of an experiment that no round needs any more, as it is over."""
        async for some in self._store.rounds_of(experiment_id):
            for record in some:
                if record.keeps_updates:
                    await self.remove_of(record)

    async def remove_old(self) -> None:
        """Remove the updates of completed rounds that a crash left, and those of rounds that failed long ago."""
        digests = await self._updates.digests()
        await self._updates.remove(await self._store.completed_among(digests))
        for round_id in await self._store.failed_before(steady_time() - self.keep_failed_s, digests):
            active = await self._rounds.find(round_id)
            if active is None:
                continue
            async with active.lock:  # it may be retried just now
                if active.record.state is RoundState.FAILED:
                    await self.remove_of(active.record)
                    log.info("updates of a failed round removed", round_id=round_id)
