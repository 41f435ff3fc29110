"""Programs from registries: resolved and fetched once however many ask, kept on disk."""

import asyncio
from typing import BinaryIO

from propeller.oci.client import RegistryClient
from propeller.oci.reference import DefaultRegistry, Reference
from propeller.process.logs import get_logger
from propeller.proxy.cache import BlobCache
from propeller.proxy.flights import Flights
from propeller.proxy.metrics import ProxyMetrics

log = get_logger("proxy")

PARALLEL_FETCHES = 4


class Programs:
    """What references stand for, and the bytes of programs.

    A tag is asked for anew each time, by one request for all who ask at once. A digest that is in the cache needs
    no registry.
    """

    def __init__(
        self, client: RegistryClient, cache: BlobCache, home: DefaultRegistry, metrics: ProxyMetrics
    ) -> None:
        """``home`` is where references are that name no registry."""
        self._client, self._cache, self._home, self._metrics = client, cache, home, metrics
        self._resolving: Flights[tuple[str, int]] = Flights()
        self._fetching: Flights[int] = Flights()
        self._slots = asyncio.Semaphore(PARALLEL_FETCHES)

    async def resolve(self, app_name: str) -> tuple[str, int]:
        """The digest and size in bytes of the program that a reference names now.

        Raises:
            OciError: with the cause and the remedy.
        """
        reference = Reference.parse(app_name, self._home)

        async def ask() -> tuple[str, int]:
            program = (await self._client.resolve(reference)).program
            return program.digest, program.size

        return await self._resolving.join(reference, ask)

    async def ensure(self, app_name: str, digest: str) -> int:
        """Have a program in the cache, from the repository that ``app_name`` names; gives its size in bytes.

        Raises:
            OciError: with the cause and the remedy.
        """
        size = self._cache.size(digest)
        if size is not None:
            return size
        reference = Reference.parse(app_name, self._home)
        key = (reference.registry, reference.repository, digest)
        return await self._fetching.join(key, lambda: self._fetch(reference, digest))

    async def open(self, digest: str) -> BinaryIO | None:
        """A program's file, checked; ``None`` if it is not in the cache (any more)."""
        return await asyncio.to_thread(self._cache.open, digest)

    async def aclose(self) -> None:
        """Give up what is being fetched."""
        await self._resolving.aclose()
        await self._fetching.aclose()

    async def _fetch(self, reference: Reference, digest: str) -> int:
        async with self._slots:
            with self._cache.writer(digest) as file:
                size = await self._client.fetch(reference, digest, file)
        self._metrics.fetched.inc()
        self._metrics.fetched_bytes.inc(size)
        log.info("fetched container", app_name=str(reference), digest=digest, size=size)
        return size
