"""How a program reaches this proplet: asked for by reference, resolved to a digest, assembled from chunks, cached.

The proxy first says what a reference stands for (``ResolvedProgram``); what is cached then costs no bytes. A proxy of
absmach/propeller does not: it sends chunks to everyone at once, on the shared topic, and those are taken then.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

from propeller.mqtt.session import Handler, NotConnectedError, Session, SubscriptionRefusedError
from propeller.process.logs import get_logger
from propeller.proplet.assembly import Assembly, AssemblyError, digest_of
from propeller.proplet.waiting import Waiting
from propeller.proplet.work import TaskError, once
from propeller.protocol.programs import ProgramChunk, ProgramRequest, ResolvedProgram
from propeller.protocol.topics import Channel, Kind
from propeller.protocol.wire import MalformedMessageError
from propeller.wasm.job import Limits, ProgramError

log = get_logger("programs")

QOS = 0
"""Of requests, answers and chunks: what is lost is asked for again, and the broker need not store any of it."""

RESOLVE_WAIT_S = 1.0
"""Without an answer for this long the shared topic is listened to as well, and the request is sent again."""

LONGEST_WAIT_S = 8.0
SILENCE_S = 2.0
"""Without a chunk for this long the missing ones are asked for again."""

_MISSING_NAMED = 4096
"""Above this many missing chunks all are asked for."""


class Store(Protocol):
    """Where programs are kept (``wasm.sandbox.Sandbox``)."""

    def has(self, digest: str) -> bool:
        """Whether the program is there."""

    async def add(self, digest: str, wasm: bytes, limits: Limits = ...) -> None:
        """Keep a program; raises ``ProgramError``."""

    def turn(self, digest: str, wait_s: float) -> contextlib.AbstractAsyncContextManager[bool]:
        """Fetch it while no other proplet that shares the store does."""


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
        self._resolving: dict[str, Waiting] = {}
        self._downloading: dict[str, Waiting] = {}
        self._fetches: dict[str, asyncio.Task[str]] = {}
        self._downloads: dict[str, asyncio.Task[None]] = {}
        self._listeners = 0
        self._announces = True  # whether the proxy says what a reference stands for

    async def open(self) -> None:
        """Take the proxy's answers."""
        await self._session.subscribe(self._channel.answers(self._proplet_id), self._take_answer, qos=QOS)

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
        try:
            return await once(self._fetches, reference, lambda: self._fetch(reference))
        except AssemblyError as error:
            raise TaskError(f"program {reference}: {error}") from None

    async def add(self, content: bytes) -> str:
        """Put a program that came with its task into the store; its digest.

        Raises:
            TaskError: it is not a program.
        """
        digest = await asyncio.to_thread(digest_of, content)
        await self._keep("in the task's file", digest, content)
        return digest

    async def _fetch(self, reference: str) -> str:
        log.info("Requesting binary from registry: %s", reference)
        waiting = self._resolving[reference] = Waiting(Assembly(self._limits.module_bytes))
        try:
            await self._ask(reference, waiting)
        finally:
            del self._resolving[reference]
        if waiting.error is not None:
            raise TaskError(f"program {reference} cannot be fetched: {waiting.error}")
        if waiting.resolved is None:
            return await self._assembled(reference, waiting.assembly)
        self._announces = True
        digest = waiting.resolved.digest
        if digest is None:
            raise TaskError(f"program {reference}: the proxy resolved it to no digest")
        if not self._store.has(digest):
            resolved = waiting.resolved
            await once(self._downloads, digest, lambda: self._download(reference, digest, resolved))
        return digest

    async def _ask(self, reference: str, waiting: Waiting) -> None:
        """Ask until the proxy has answered, or a proxy that gives no answers has sent every chunk."""
        request = ProgramRequest(app_name=reference, proplet_id=self._proplet_id)
        wait, left = RESOLVE_WAIT_S, self._timeout
        async with contextlib.AsyncExitStack() as listening:
            listens = not self._announces
            if listens:
                await listening.enter_async_context(self._listening_on_shared())
            while True:
                await self._publish(request)
                while not waiting.settled and await waiting.changes(wait):
                    left = self._timeout
                if waiting.settled:
                    return
                left -= wait
                if left <= 0:
                    raise TaskError(_nothing_came(reference, self._timeout, waiting.assembly))
                if not listens:
                    listens, self._announces = True, False
                    await listening.enter_async_context(self._listening_on_shared())
                wait = min(2 * wait, LONGEST_WAIT_S)

    async def _download(self, reference: str, digest: str, resolved: ResolvedProgram) -> None:
        """Take the chunks of a program that the proxy has resolved, and keep it, unless another proplet has it done."""
        async with self._store.turn(digest, self._timeout):
            if not self._store.has(digest):
                await self._take_chunks(reference, digest, resolved)

    async def _take_chunks(self, reference: str, digest: str, resolved: ResolvedProgram) -> None:
        assembly = Assembly(
            self._limits.module_bytes, digest=digest, size=resolved.size, total=resolved.total_chunks
        )
        waiting = self._downloading[digest] = Waiting(assembly)
        topic = self._channel.chunks(digest)

        async def take(_topic: str, payload: bytes) -> None:
            if chunk := _read_chunk(payload):
                waiting.take(chunk)

        try:
            await self._subscribe(topic, take)
            await self._all_chunks(reference, digest, waiting)
        finally:
            del self._downloading[digest]
            await self._session.unsubscribe(topic)

    async def _all_chunks(self, reference: str, digest: str, waiting: Waiting) -> None:
        """Ask for the chunks, and again for those that do not come; a tampered program is asked for once more."""
        left, tries = self._timeout, 2
        while True:
            missing = waiting.assembly.missing()
            request = ProgramRequest(
                app_name=reference,
                proplet_id=self._proplet_id,
                digest=digest,
                missing=missing if waiting.assembly.chunks and len(missing) <= _MISSING_NAMED else None,
            )
            await self._publish(request)
            while not waiting.settled and await waiting.changes(SILENCE_S):
                left = self._timeout
            if waiting.error is not None:
                raise TaskError(f"program {reference} cannot be fetched: {waiting.error}")
            if waiting.assembly.complete:
                tries -= 1
                try:
                    await self._assembled(reference, waiting.assembly)
                except AssemblyError as error:
                    if tries == 0:
                        raise
                    log.warning("the assembled binary is not what was announced", reason=str(error))
                    waiting.assembly.clear()
                else:
                    return
            else:
                left -= SILENCE_S
                if left <= 0:
                    raise TaskError(_nothing_came(reference, self._timeout, waiting.assembly))

    async def _assembled(self, reference: str, assembly: Assembly) -> str:
        chunks = assembly.chunks
        content = await asyncio.to_thread(assembly.take)
        digest = await asyncio.to_thread(digest_of, content)
        log.info("Assembled binary", image=reference, digest=digest, bytes=len(content), chunks=chunks)
        await self._keep(reference, digest, content)
        return digest

    async def _keep(self, reference: str, digest: str, content: bytes) -> None:
        if self._store.has(digest):
            return
        try:
            await self._store.add(digest, content, self._limits)
        except ProgramError as error:
            raise TaskError(f"program {reference}: {error}") from error

    async def _publish(self, request: ProgramRequest) -> None:
        topic = self._channel.topic(Kind.REGISTRY_REQUEST)
        try:
            await self._session.publish(topic, request.encode(), qos=QOS, timeout=self._timeout)
        except NotConnectedError as error:
            raise TaskError(f"program {request.app_name} cannot be asked for: {error}") from None

    async def _subscribe(self, topic: str, handler: Handler) -> None:
        try:
            await self._session.subscribe(topic, handler, qos=QOS)
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
            answer = ResolvedProgram.decode(payload)
        except MalformedMessageError as error:
            log.warning("the proxy's answer is dropped", reason=str(error))
            return
        waiting = self._resolving.get(answer.app_name)
        if answer.error and answer.digest:  # it cannot send what it has resolved
            waiting = self._downloading.get(answer.digest)
        if waiting is not None:
            waiting.answer(answer)

    async def _take_shared_chunk(self, _topic: str, payload: bytes) -> None:
        chunk = _read_chunk(payload)
        waiting = self._resolving.get(chunk.app_name) if chunk else None
        if chunk and waiting:
            waiting.take(chunk)


def _read_chunk(payload: bytes) -> ProgramChunk | None:
    try:
        return ProgramChunk.decode(payload)
    except MalformedMessageError as error:
        log.warning("chunk dropped", reason=str(error))
        return None


def _nothing_came(reference: str, timeout: float, assembly: Assembly) -> str:
    came = f"{assembly.chunks} chunks came, then none" if assembly.chunks else "nothing came"
    return (
        f"program {reference} cannot be fetched: {came} for {timeout:g} s; check that the proxy runs and is on this "
        "channel"
    )
