"""The updates of rounds, kept as blobs until nobody needs them any more."""

import hashlib
import time
from collections.abc import AsyncIterator, Iterable

from propeller.coordinator.active_rounds import ActiveRounds
from propeller.coordinator.rounds import RoundRecord
from propeller.coordinator.store import RoundStore
from propeller.coordinator.updates import UpdateDocument
from propeller.fl.round import RoundState
from propeller.process.files import DurableFile
from propeller.process.logs import get_logger
from propeller.store.blobs import BlobNotFoundError, BlobStore

log = get_logger("coordinator")


class KeptUpdates:
    """Updates by their digests."""

    def __init__(self, blobs: BlobStore) -> None:
        """Keep them in ``blobs``."""
        self._blobs = blobs

    async def add(self, document: UpdateDocument) -> None:
        """Make an update durable."""
        if isinstance(document.content, DurableFile):
            await self._blobs.put_file(document.digest, document.content)
        else:
            await self._blobs.put(document.digest, document.content)

    def new_file(self) -> DurableFile:
        """A file for an update that is not in memory, to be closed; ``add`` keeps it.

        Raises:
            BlobStoreError: there is no place for it.
        """
        return self._blobs.new_file()

    async def has_all(self, record: RoundRecord) -> bool:
        """Whether all updates of a round are still there."""
        for update in record.updates.values():
            if not await self._blobs.has(update.digest):
                return False
        return True

    async def missing(self, digests: Iterable[str]) -> list[str]:
        """Those of these updates that are not there, or are not what their digest says."""
        missing = []
        for digest in digests:
            found = hashlib.sha256()
            try:
                async for piece in self._blobs.stream(digest):
                    found.update(piece)
            except BlobNotFoundError:
                missing.append(digest)
                continue
            if found.hexdigest() != digest:
                missing.append(digest)
        return missing

    async def digests(self) -> list[str]:
        """The digests of all updates that are there."""
        return await self._blobs.list()

    def stream(self, digest: str) -> AsyncIterator[bytes]:
        """An update's document in pieces.

        Raises:
            BlobNotFoundError: it is not there.
        """
        return self._blobs.stream(digest)

    async def read(self, digest: str, start: int, end: int) -> bytes:
        """The bytes of an update's document from ``start`` to before ``end``.

        Raises:
            BlobNotFoundError: it is not there.
        """
        return await self._blobs.read(digest, start, end)

    async def remove(self, digests: Iterable[str]) -> None:
        """Remove updates; those that are not there are fine."""
        for digest in digests:
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
        for round_id in await self._store.failed_before(time.time() - self.keep_failed_s, digests):
            active = await self._rounds.find(round_id)
            if active is None:
                continue
            async with active.lock:  # it may be retried just now
                if active.record.state is RoundState.FAILED:
                    await self.remove_of(active.record)
                    log.info("updates of a failed round removed", round_id=round_id)
