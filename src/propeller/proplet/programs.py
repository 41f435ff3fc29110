"""How a program reaches this proplet: asked for by reference, resolved to a digest, assembled from chunks, cached.

The proxy first says what a reference stands for (``Resolved``); what is cached then costs no bytes. A proxy of
absmach/propeller does not: it sends chunks to everyone at once, on the shared topic, and those are taken then.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from propeller.mqtt.session import Handler, NotConnectedError, Session, SubscriptionRefusedError
from propeller.process.logs import get_logger
from propeller.proplet.assembly import Assembly, AssemblyError, ChunkError, digest_of
from propeller.proplet.work import TaskError
from propeller.protocol.registry import Chunk, ProgramRequest, Resolved
from propeller.protocol.topics import Channel, Kind
from propeller.protocol.wire import MalformedMessageError
from propeller.wasm.job import Limits, ProgramError

log = get_logger("programs")

RESOLVE_WAIT_S = 1.0
"""Without an answer for this long the shared topic is listened to as well, and the request is sent again."""

LONGEST_WAIT_S = 8.0
SILENCE_S = 2.0
"""Without a chunk for this long the missing ones are asked for again."""

_MISSING_NAMED = 4096
"""Above this many missing chunks all are asked for."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

T = TypeVar("T")


class Store(Protocol):
    """Where programs are kept (``wasm.sandbox.Sandbox``)."""

    def has(self, digest: str) -> bool:
        """Whether the program is there."""

    async def add(self, digest: str, wasm: bytes, limits: Limits = ...) -> None:
        """Keep a program; raises ``ProgramError``."""


@dataclass
class _Wanted:
    """A reference that waits for the proxy: its answer, or chunks of a proxy that gives none."""

    assembly: Assembly
    resolved: Resolved | None = None
    error: str | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def settled(self) -> bool:
        return self.resolved is not None or self.error is not None or self.assembly.complete


class Programs:
    """Fetches programs into the store. Tasks that want the same one share a fetch."""

    def __init__(
        self,
        session: Session,
        channel: Channel,
        proplet_id: str,
        store: Store,
        limits: Limits,
        timeout: float,
    ) -> None:
        """``timeout``: seconds without an answer or a new chunk after which a fetch is given up."""
        self._session, self._channel, self._proplet_id = session, channel, proplet_id
        self._store, self._limits, self._timeout = store, limits, timeout
        self._wanted: dict[str, _Wanted] = {}
        self._fetches: dict[str, asyncio.Task[str]] = {}
        self._downloads: dict[str, asyncio.Task[None]] = {}
        self._listeners = 0
        self._announces = True  # whether the proxy answers with what a reference stands for

    async def open(self) -> None:
        """Take the proxy's answers."""
        await self._session.subscribe(self._channel.answers(self._proplet_id), self._take_answer)

    async def close(self) -> None:
        """End every fetch."""
        tasks = [*self._fetches.values(), *self._downloads.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def fetch(self, reference: str) -> str:
        """Have the program that a reference stands for now in the store; its digest.

        Raises:
            TaskError: it cannot be had, and why.
        """
        pinned = _pinned_digest(reference)
        if pinned is not None and self._store.has(pinned):
            return pinned
        return await _shared(self._fetches, reference, lambda: self._fetch(reference, pinned))

    async def add(self, content: bytes) -> str:
        """Put a program that came with its task into the store; its digest.

        Raises:
            TaskError: it is not a program.
        """
        digest = await asyncio.to_thread(digest_of, content)
        if not self._store.has(digest):
            await self._compile("in the task's file", digest, content)
        return digest

    async def _fetch(self, reference: str, pinned: str | None) -> str:
        log.info("Requesting binary from registry: %s", reference)
        wanted = self._wanted[reference] = _Wanted(Assembly(self._limits.module_bytes, digest=pinned))
        try:
            await self._ask(reference, wanted)
        finally:
            del self._wanted[reference]
        if wanted.error is not None:
            raise TaskError(f"program {reference} cannot be fetched: {wanted.error}")
        if wanted.resolved is None:
            self._announces = False
            return await self._take_shared(reference, wanted.assembly)
        self._announces = True
        digest = wanted.resolved.digest
        if digest is None or (pinned is not None and digest != pinned):
            raise TaskError(f"program {reference}: the proxy resolved it to {digest or 'no digest'}")
        if not self._store.has(digest):
            resolved = wanted.resolved
            await _shared(self._downloads, digest, lambda: self._download(reference, digest, resolved))
        return digest

    async def _ask(self, reference: str, wanted: _Wanted) -> None:
        """Ask until the proxy has answered, or a proxy that gives no answers has sent every chunk."""
        request = ProgramRequest(app_name=reference, proplet_id=self._proplet_id)
        wait, left = RESOLVE_WAIT_S, self._timeout
        async with contextlib.AsyncExitStack() as listening:
            if not self._announces:
                await listening.enter_async_context(self._listening_on_shared())
            while not wanted.settled:
                await self._publish(request)
                while await _event(wanted.changed, wait):
                    left = self._timeout
                    if wanted.settled:
                        return
                left -= wait
                if left <= 0:
                    raise TaskError(_nothing_came(reference, self._timeout, wanted.assembly))
                if self._announces:
                    self._announces = False
                    await listening.enter_async_context(self._listening_on_shared())
                wait = min(2 * wait, LONGEST_WAIT_S)

    async def _download(self, reference: str, digest: str, resolved: Resolved) -> None:
        """Take the chunks of a program that the proxy has resolved, and keep it."""
        try:
            assembly = Assembly(
                self._limits.module_bytes, digest=digest, size=resolved.size, total=resolved.total_chunks
            )
        except AssemblyError as error:
            raise TaskError(f"program {reference}: {error}") from None
        wanted = _Wanted(assembly)

        async def take(_topic: str, payload: bytes) -> None:
            _take_chunk(wanted, payload)

        topic = self._channel.chunks(digest)
        await self._subscribe(topic, take)
        try:
            content = await self._all_chunks(reference, digest, wanted)
        finally:
            await self._session.unsubscribe(topic)
        await self._keep(reference, digest, content, assembly.chunks)

    async def _all_chunks(self, reference: str, digest: str, wanted: _Wanted) -> bytes:
        """Ask for the chunks, and again for those that do not come; a tampered program is asked for once more."""
        left, again = self._timeout, True
        while True:
            missing = wanted.assembly.missing() if wanted.assembly.chunks else None
            if missing is not None and len(missing) > _MISSING_NAMED:
                missing = None
            await self._publish(
                ProgramRequest(
                    app_name=reference, proplet_id=self._proplet_id, digest=digest, missing=missing
                )
            )
            while not wanted.settled and await _event(wanted.changed, SILENCE_S):
                left = self._timeout
            if wanted.error is not None:
                raise TaskError(f"program {reference} cannot be fetched: {wanted.error}")
            if wanted.assembly.complete:
                try:
                    return await asyncio.to_thread(wanted.assembly.take)
                except AssemblyError as error:
                    if not again:
                        raise TaskError(f"program {reference}: {error}") from None
                    log.warning("assembled binary is not the announced one, asking again", reason=str(error))
                    again = False
                    wanted.assembly.clear()
                    continue
            left -= SILENCE_S
            if left <= 0:
                raise TaskError(_nothing_came(reference, self._timeout, wanted.assembly))

    async def _take_shared(self, reference: str, assembly: Assembly) -> str:
        chunks = assembly.chunks
        try:
            content = await asyncio.to_thread(assembly.take)
        except AssemblyError as error:
            raise TaskError(f"program {reference}: {error}") from None
        digest = await asyncio.to_thread(digest_of, content)
        await self._keep(reference, digest, content, chunks)
        return digest

    async def _keep(self, reference: str, digest: str, content: bytes, chunks: int) -> None:
        log.info("Assembled binary", image=reference, digest=digest, bytes=len(content), chunks=chunks)
        if not self._store.has(digest):
            await self._compile(reference, digest, content)

    async def _compile(self, reference: str, digest: str, content: bytes) -> None:
        try:
            await self._store.add(digest, content, self._limits)
        except ProgramError as error:
            raise TaskError(f"program {reference}: {error}") from error

    async def _publish(self, request: ProgramRequest) -> None:
        try:
            await self._session.publish(
                self._channel.topic(Kind.REGISTRY_REQUEST), request.encode(), timeout=self._timeout
            )
        except NotConnectedError as error:
            raise TaskError(f"program {request.app_name} cannot be asked for: {error}") from None

    async def _subscribe(self, topic: str, handler: Handler) -> None:
        # QoS 0: a lost chunk is asked for again, and the broker need not store what everyone takes at once.
        try:
            await self._session.subscribe(topic, handler, qos=0)
        except SubscriptionRefusedError as error:
            raise TaskError(str(error)) from None

    @contextlib.asynccontextmanager
    async def _listening_on_shared(self) -> AsyncIterator[None]:
        """Take chunks from the topic that everyone shares, for as long as some fetch needs it."""
        topic = self._channel.topic(Kind.REGISTRY_CHUNK)
        self._listeners += 1
        try:
            if self._listeners == 1:
                await self._subscribe(topic, self._take_shared_chunk)
            yield
        finally:
            self._listeners -= 1
            if self._listeners == 0:
                await self._session.unsubscribe(topic)

    async def _take_answer(self, _topic: str, payload: bytes) -> None:
        try:
            answer = Resolved.decode(payload)
        except MalformedMessageError as error:
            log.warning("proxy's answer dropped", reason=str(error))
            return
        wanted = self._wanted.get(answer.app_name)
        if wanted is not None:
            wanted.resolved, wanted.error = answer, answer.error
            wanted.changed.set()

    async def _take_shared_chunk(self, _topic: str, payload: bytes) -> None:
        _take_chunk(self._wanted, payload)


def _take_chunk(wanted: _Wanted | dict[str, _Wanted], payload: bytes) -> None:
    """Take a chunk for what waits for it, found by its reference or known by its topic."""
    try:
        chunk = Chunk.decode(payload)
        target = wanted.get(chunk.app_name) if isinstance(wanted, dict) else wanted
        if target is None:
            return
        if chunk.error:
            target.error = chunk.error
        elif not target.assembly.add(chunk):
            return
    except (MalformedMessageError, ChunkError) as error:
        log.warning("chunk dropped", reason=str(error))
    else:
        target.changed.set()


async def _event(event: asyncio.Event, wait: float) -> bool:
    """Wait for an event and clear it; whether it came within ``wait`` seconds."""
    try:
        await asyncio.wait_for(event.wait(), wait)
    except TimeoutError:
        return False
    event.clear()
    return True


async def _shared(
    running: dict[str, asyncio.Task[T]], key: str, start: Callable[[], Coroutine[Any, Any, T]]
) -> T:
    """Join the work under a key, or start it; it goes on when one who waits for it is stopped."""
    task = running.get(key)
    if task is None:
        task = running[key] = asyncio.create_task(start())

        def done(ended: asyncio.Task[T]) -> None:
            running.pop(key, None)
            if not ended.cancelled():
                ended.exception()  # it may be that nobody waits for it any more

        task.add_done_callback(done)
    return await asyncio.shield(task)


def _pinned_digest(reference: str) -> str | None:
    """The digest of ``name@sha256:…``."""
    digest = reference.rpartition("@")[2]
    return digest if _DIGEST.fullmatch(digest) else None


def _nothing_came(reference: str, timeout: float, assembly: Assembly) -> str:
    """The error of a fetch that was given up."""
    came = f"{assembly.chunks} chunks came, then none" if assembly.chunks else "nothing came"
    return (
        f"program {reference} cannot be fetched: {came} for {timeout:g} s; check that the proxy runs and is on this "
        "channel"
    )
