"""From the updates of a closed round to a model version: streamed to the aggregator, stored by the registry."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from propeller.coordinator.live import LiveRounds
from propeller.coordinator.peers import Aggregator, ModelRegistry
from propeller.coordinator.record import Record
from propeller.coordinator.store import RoundStore
from propeller.coordinator.updates import Document, check_shapes
from propeller.errors import ConflictError, PropellerError
from propeller.fl.round import RoundState
from propeller.process.logs import get_logger
from propeller.store.blobs import Blobs

log = get_logger("coordinator")

DELAYS = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Seconds between tries, before it is given up."""

CLEAR_EVERY_S = 600.0
"""Between looks for updates that nobody needs any more, in seconds."""


class AggregationError(Exception):
    """A round's updates could not be aggregated or the aggregate not stored; the text says why."""


@dataclass(frozen=True)
class Made:
    """A stored model version, and how long its stages took, in milliseconds."""

    version: int
    timings: dict[str, float]


class Aggregation:
    """Keeps the updates of rounds as blobs, named by their digests, and makes model versions of them."""

    def __init__(
        self,
        blobs: Blobs,
        registry: ModelRegistry,
        aggregator: Aggregator,
        *,
        keep_updates: bool = False,
        keep_failed_s: float = 7 * 86400.0,
        delays: tuple[float, ...] = DELAYS,
    ) -> None:
        """``keep_updates`` leaves all updates, ``keep_failed_s`` those of failed rounds for a while; ``delays`` are in seconds."""
        self._keep_failed_s = keep_failed_s
        self._blobs, self._registry, self._aggregator = blobs, registry, aggregator
        self._keep, self._delays = keep_updates, delays

    async def put(self, document: Document) -> None:
        """Make an update durable."""
        await self._blobs.put(document.digest, document.content)

    async def drop(self, document: Document) -> None:
        """Remove an update that does not count."""
        await self._blobs.delete(document.digest)

    async def make(self, record: Record, proplet_ids: tuple[str, ...]) -> Made:
        """Aggregate the updates of these proplets and store the result; a second call gives the same version.

        Raises:
            AggregationError: a peer said no, or did not answer in all the tries.
        """
        for delay in (*self._delays, None):
            try:
                return await self._try(record, proplet_ids)
            except PropellerError as error:
                reason = str(error)
                final = not error.temporary
            except Exception as error:
                # Of the blobs' store, most likely. A round must not be left open by what was not foreseen.
                log.exception("updates cannot be aggregated", round_id=record.round_id)
                reason, final = f"{type(error).__name__}: {error}", False
            if final or delay is None:
                break
            log.warning(
                "aggregation failed, trying again", round_id=record.round_id, reason=reason, delay_s=delay
            )
            await asyncio.sleep(delay)
        raise AggregationError(f"aggregation: {reason}")

    async def require(self, record: Record) -> None:
        """Check that the updates of a round, if it has failed, are still there.

        Raises:
            ConflictError: they are not.
        """
        for update in record.updates.values() if record.state is RoundState.FAILED else ():
            if not await self._blobs.has(update.digest):
                raise ConflictError(
                    f"round {record.round_id} cannot be retried: its updates are not there any more, they are kept "
                    f"for {self._keep_failed_s:g} s after it failed (COORDINATOR_KEEP_FAILED); start a new round"
                )

    async def clear(self, record: Record) -> None:
        """Remove the updates of a round that is over, unless they are to be kept."""
        if not self._keep:
            for update in record.updates.values():
                await self._blobs.delete(update.digest)

    async def keep_clear(self, store: RoundStore, rounds: LiveRounds) -> None:
        """Remove, again and again, the updates of completed rounds that a crash left and of rounds that failed long ago."""
        while not self._keep:
            try:
                await self._clear_old(store, rounds)
            except Exception:
                log.exception("updates of old rounds are not removed")
            await asyncio.sleep(CLEAR_EVERY_S)

    async def _clear_old(self, store: RoundStore, rounds: LiveRounds) -> None:
        digests = await self._blobs.list()
        for digest in await store.completed_of(digests):
            await self._blobs.delete(digest)
        for round_id in await store.failed_of(digests, time.time() - self._keep_failed_s):
            live = await rounds.find(round_id)
            if live is None:
                continue
            async with live.lock:  # it may be retried just now
                if live.record.state is RoundState.FAILED:
                    await self.clear(live.record)
                    log.info("updates of a failed round removed", round_id=round_id)

    async def _try(self, record: Record, proplet_ids: tuple[str, ...]) -> Made:
        begun = time.perf_counter()
        model, tensors = await self._aggregator.aggregate(self._documents(record, proplet_ids))
        check_shapes(tensors, record.shapes)
        aggregated = time.perf_counter()
        # The same key after a crash: the registry answers with the version that it allocated before. The time tells
        # the round from one of the same id that another coordinator, or a lost database, had.
        version = await self._registry.store(model, f"{record.round_id}.{record.created_at:.6f}")
        stored = time.perf_counter()
        self._registry.remember(version, tensors)
        return Made(
            version,
            {
                "aggregate_ms": round((aggregated - begun) * 1e3, 2),
                "store_ms": round((stored - aggregated) * 1e3, 2),
            },
        )

    async def _documents(self, record: Record, proplet_ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        for proplet_id in proplet_ids:
            async for piece in self._blobs.stream(record.updates[proplet_id].digest):
                yield piece
