"""From the updates of a closed round to a model version: streamed to the aggregator, stored by the registry."""

import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from propeller.coordinator.clients import AggregatorClient, ModelRegistryClient
from propeller.coordinator.rounds import RoundRecord
from propeller.coordinator.updates import UpdateDocument, check_fits
from propeller.errors import PropellerError
from propeller.process.logs import get_logger
from propeller.process.retry import retry
from propeller.store.blobs import BlobStore

log = get_logger("coordinator")

RETRY_DELAYS = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Seconds between tries to aggregate; after the last one the round fails."""


class AggregationError(PropellerError):
    """A round's updates could not be aggregated or the aggregate not stored; the text says why."""


@dataclass(frozen=True)
class NewVersion:
    """A model version that was stored, and how long the stages took, in milliseconds."""

    version: int
    timings: dict[str, float]


class Aggregation:
    """Keeps the updates of rounds as blobs, named by their digests, and makes model versions of them."""

    def __init__(
        self,
        blobs: BlobStore,
        registry: ModelRegistryClient,
        aggregator: AggregatorClient,
        *,
        retry_delays: tuple[float, ...] = RETRY_DELAYS,
    ) -> None:
        """``retry_delays`` are in seconds."""
        self._blobs, self._registry, self._aggregator = blobs, registry, aggregator
        self._retry_delays = retry_delays

    async def store_update(self, document: UpdateDocument) -> None:
        """Make an update durable."""
        await self._blobs.put(document.digest, document.content)

    async def has_updates(self, record: RoundRecord) -> bool:
        """Whether all updates of a round are still there."""
        for update in record.updates.values():
            if not await self._blobs.has(update.digest):
                return False
        return True

    async def list_updates(self) -> list[str]:
        """The digests of all updates that are there."""
        return await self._blobs.list()

    async def delete_updates(self, digests: Iterable[str]) -> None:
        """Remove updates; those that are not there are fine."""
        for digest in digests:
            await self._blobs.delete(digest)

    async def make_version(self, record: RoundRecord, proplet_ids: tuple[str, ...]) -> NewVersion:
        """Aggregate the updates of these proplets and store the result; a second call gives the same version.

        Raises:
            AggregationError: a service refused, or did not answer in all the tries.
        """

        def report(error: BaseException, delay_s: float) -> None:
            log.warning(
                "aggregation failed, trying again",
                round_id=record.round_id,
                reason=_describe(error),
                delay_s=delay_s,
                exc_info=None if isinstance(error, PropellerError) else error,
            )

        try:
            return await retry(
                lambda: self._try_to_make_version(record, proplet_ids),
                delays=self._retry_delays,
                # What was not foreseen is of the blobs' store, most likely, and may pass.
                on=lambda error: not isinstance(error, PropellerError) or error.temporary,
                failed=report,
            )
        except Exception as error:
            if not isinstance(
                error, PropellerError
            ):  # a round must not be left open by what was not foreseen
                log.exception("updates cannot be aggregated", round_id=record.round_id)
            raise AggregationError(f"aggregation: {_describe(error)}") from error

    async def _try_to_make_version(self, record: RoundRecord, proplet_ids: tuple[str, ...]) -> NewVersion:
        started = time.perf_counter()
        model, tensors = await self._aggregator.aggregate(self._stream(record, proplet_ids))
        check_fits(tensors, record.specs)
        aggregated = time.perf_counter()
        # The same key after a crash: the registry answers with the version that it allocated before. The time tells
        # the round from one of the same id that another coordinator, or a lost database, had.
        version = await self._registry.add_version(model, f"{record.round_id}.{record.created_at:.6f}")
        stored = time.perf_counter()
        self._registry.remember_specs(version, tensors)
        return NewVersion(
            version,
            {
                "aggregate_ms": round((aggregated - started) * 1e3, 2),
                "store_ms": round((stored - aggregated) * 1e3, 2),
            },
        )

    async def _stream(self, record: RoundRecord, proplet_ids: tuple[str, ...]) -> AsyncIterator[bytes]:
        for proplet_id in proplet_ids:
            async for piece in self._blobs.stream(record.updates[proplet_id].digest):
                yield piece


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, PropellerError) else f"{type(error).__name__}: {error}"
