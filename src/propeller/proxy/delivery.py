"""Sending programs in chunks: each byte once on a topic, however many wait for it there."""

import asyncio
import base64
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO

from propeller.errors import NotFoundError, UnavailableError
from propeller.mqtt.session import NotConnectedError
from propeller.process.logs import get_logger
from propeller.protocol.programs import ProgramChunk
from propeller.proxy.metrics import ProxyMetrics

log = get_logger("proxy")

Publish = Callable[[str, bytes], Awaitable[None]]
"""Publishes on a topic and waits until the broker has it; raises ``NotConnectedError``."""

JOIN_WINDOW_S = 0.010
"""How long the first chunk waits for others who want the same program."""

MAX_CONCURRENT_CHUNKS = 4
"""Chunks of all programs in memory at once."""

MAX_FAILURES = 3
"""Chunks that the broker did not take in time, after which a delivery is given up."""


@dataclass(frozen=True)
class Parcel:
    """A program on its way to a topic; ``app_name`` is how the requester called it."""

    topic: str
    app_name: str
    digest: str
    shared: bool
    """Whether the topic carries all programs: there proplets tell them apart by ``app_name`` alone."""

    @property
    def key(self) -> tuple[str, str]:
        """What may not be sent twice at the same time."""
        return self.topic, self.app_name if self.shared else self.digest


class DeliveryError(UnavailableError):
    """The broker did not take the chunks."""


class ProgramGoneError(NotFoundError):
    """The program is no longer in the cache, or was changed there."""


class ProgramSender:
    """Sends programs to topics.

    A delivery has the set of chunks that are still wanted. Whoever joins adds what they miss, also what was sent before;
    what is not sent yet is sent once for all of them. Memory is bounded: chunks are read from the file as they go.
    """

    def __init__(
        self,
        open_program: Callable[[str], Awaitable[BinaryIO | None]],
        publish: Publish,
        chunk_size: int,
        metrics: ProxyMetrics,
        *,
        window_s: float = JOIN_WINDOW_S,
    ) -> None:
        """``open_program`` takes a digest; ``chunk_size`` in bytes; ``window_s``: how long the first chunk waits for others."""
        self._open, self._publish, self._chunk_size = open_program, publish, chunk_size
        self._metrics, self._window_s = metrics, window_s
        self._running: dict[tuple[str, str], _Delivery] = {}
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_CHUNKS)

    def total_chunks(self, size: int) -> int:
        """How many chunks a program of ``size`` bytes has."""
        return -(-size // self._chunk_size)

    def wanted_bytes(self, size: int, missing: Iterable[int] | None) -> int:
        """How many bytes a request asks for: of a program of ``size`` bytes, or of its chunks in ``missing``."""
        return min(size, len(self._wanted(self.total_chunks(size), missing)) * self._chunk_size)

    async def send(self, parcel: Parcel, size: int, missing: Iterable[int] | None = None) -> None:
        """Send a program, or its chunks in ``missing``; returns when they are sent.

        Raises:
            ProgramGoneError: put it into the cache and try again.
            DeliveryError: the broker did not take it.
        """
        total = self.total_chunks(size)
        wanted = self._wanted(total, missing)
        if not wanted:
            return
        delivery = self._running.get(parcel.key)
        while delivery is not None and delivery.parcel.digest != parcel.digest:
            # The tag was moved: proplets on the shared topic would mix the two programs.
            await asyncio.wait([delivery.task])
            delivery = self._running.get(parcel.key)
        if delivery is None:
            delivery = self._running[parcel.key] = _Delivery(parcel, size, total)
            delivery.task = asyncio.create_task(self._run(delivery))
        delivery.wanted |= wanted
        await asyncio.shield(delivery.task)

    async def close(self) -> None:
        """Stop sending."""
        tasks = [delivery.task for delivery in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wanted(self, total: int, missing: Iterable[int] | None) -> set[int]:
        return set(range(total)) if missing is None else {index for index in missing if index < total}

    async def _run(self, delivery: "_Delivery") -> None:
        parcel, started_at, failures = delivery.parcel, time.monotonic(), 0
        try:
            file, _ = await asyncio.gather(self._open(parcel.digest), asyncio.sleep(self._window_s))
            if file is None:
                raise ProgramGoneError(f"{parcel.digest} is not in the proxy's cache any more")
            with file:
                if os.fstat(file.fileno()).st_size != delivery.size:
                    raise ProgramGoneError(f"{parcel.digest} is not in the proxy's cache any more")
                while delivery.wanted:
                    index = delivery.next_chunk()
                    try:
                        await self._send_chunk(delivery, index, file)
                    except NotConnectedError as error:
                        failures += 1
                        if failures == MAX_FAILURES:
                            raise DeliveryError(str(error)) from None
                        delivery.wanted.add(index)
        finally:
            # Nothing awaits between the last look at ``wanted`` and here, so that nobody joins a delivery that is over.
            del self._running[parcel.key]
        log.info(
            "successfully sent all chunks",
            app_name=parcel.app_name,
            digest=parcel.digest,
            total_chunks=delivery.total,
            sent_chunks=delivery.sent,
            ms=round((time.monotonic() - started_at) * 1000),
        )

    async def _send_chunk(self, delivery: "_Delivery", index: int, file: BinaryIO) -> None:
        parcel = delivery.parcel
        async with self._slots:
            data = os.pread(file.fileno(), self._chunk_size, index * self._chunk_size)
            chunk = ProgramChunk(
                app_name=parcel.app_name,
                chunk_idx=index,
                total_chunks=delivery.total,
                data=base64.b64encode(data).decode(),
                digest=parcel.digest,
                size=delivery.size,
            )
            await self._publish(parcel.topic, chunk.encode())
        delivery.sent += 1
        self._metrics.chunks.inc()
        self._metrics.bytes.inc(len(data))
        log.info(
            "sent container chunk to MQTT stream",
            app_name=parcel.app_name,
            chunk_idx=index,
            total_chunks=delivery.total,
        )


class _Delivery:
    """One run over a program's chunks."""

    task: asyncio.Task[None]

    def __init__(self, parcel: Parcel, size: int, total: int) -> None:
        self.parcel, self.size, self.total = parcel, size, total
        self.wanted: set[int] = set()
        self.sent = 0
        self._next = 0

    def next_chunk(self) -> int:
        """The next wanted chunk: onwards, then again from the start for those who came late.

        It counts as sent from here on: who joins now may have missed it.
        """
        index = min((at for at in self.wanted if at >= self._next), default=None)
        if index is None:
            index = min(self.wanted)
        self.wanted.discard(index)
        self._next = index + 1
        return index
