"""How a program reaches this proplet: asked for by reference, resolved to a digest, assembled from chunks, cached.

The proxy first says what a reference stands for (``ResolvedProgram``), once if it is by digest; what is cached then costs no bytes. A compat
proplet is answered as those of absmach/propeller are: with the chunks at once, to everyone, on the shared topic.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

from cachetools import LRUCache

from propeller.digests import digest_of
from propeller.mqtt.session import Handler, NotConnectedError, Session, SubscriptionRefusedError
from propeller.native_program import is_native
from propeller.process.logs import get_logger
from propeller.process.single_flight import SingleFlight
from propeller.proplet.assembly import Assembly
from propeller.proplet.errors import AssemblyError, ChunkError, TaskError
from propeller.proplet.policy import Policy, PolicyFile
from propeller.proplet.settings import LIMIT_SETTINGS
from propeller.protocol.programs import ProgramChunk, ProgramRequest, ResolvedProgram
from propeller.protocol.topics import Kind, PropletTopics
from propeller.protocol.wire import MalformedMessageError
from propeller.wasm.layers import runtime_of
from propeller.wasm.program_run import Limits, ProgramError

log = get_logger("programs")

QOS = 0
"""Of requests, answers and chunks: what is lost is asked for again, and the broker need not store any of it."""

RESOLVE_WAIT_S = 1.0
"""Without an answer for this long the request is sent again."""

MAX_RESOLVE_WAIT_S = 8.0
CHUNK_WAIT_S = 2.0
"""Without a chunk for this long the missing ones are asked for again."""

_MAX_MISSING_LISTED = 4096
"""Above this many missing chunks all are asked for."""

_MAX_DOWNLOADS = 2
"""How often a program whose bytes are not those that were announced is downloaded."""


_MAX_PINNED = 1000
"""References by digest of which it is remembered what they stand for."""


_FORGOTTEN = "the program's signature must be looked at again: start the task again"


class ProgramStore(Protocol):
    """Where programs are kept (``wasm.sandbox.Sandbox``)."""

    def has(self, digest: str) -> bool:
        """Whether the program is there."""

    def read(self, digest: str) -> bytes:
        """Its bytes; raises ``ProgramError`` if it is not there."""

    def is_native(self, digest: str) -> bool:
        """Whether it is a native program; raises ``ProgramError`` if it is not there."""

    def missing_runtime(self, digest: str) -> str | None:
        """The digest of the shared runtime that it needs and that is not there; raises ``ProgramError`` if it is not there itself."""

    async def keep(self, digest: str, wasm: bytes, limits: Limits = ...) -> None:
        """Keep a program; raises ``ProgramError``."""

    async def prepare(self, digest: str, limits: Limits = ...) -> float:
        """Have it compiled, where it is run compiled; the milliseconds that this took now. Raises ``ProgramError``."""

    def fetch_lock(self, digest: str, wait_s: float) -> contextlib.AbstractAsyncContextManager[bool]:
        """Fetch it while no other proplet that shares the store does."""


class PendingFetch:
    """Something asked of the proxy, and what has come of it so far.

    Attributes:
        assembly: the chunks.
        resolved: the proxy's answer.
        error: why there will be none.
    """

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.resolved: ResolvedProgram | None = None
        self.error: str | None = None
        self._changed = asyncio.Event()

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.resolved is not None or self.error is not None or self.assembly.complete

    def set_answer(self, answer: ResolvedProgram) -> None:
        """Note the proxy's answer."""
        if answer.error:
            self.error = answer.error
        else:
            self.resolved = answer
        self._changed.set()

    def add_chunk(self, chunk: ProgramChunk) -> None:
        """Add a chunk, or note the failure that is sent in its place."""
        if chunk.error:
            self.error = chunk.error
        else:
            try:
                if not self.assembly.add(chunk):
                    return
            except ChunkError as error:
                log.warning("chunk dropped", image=chunk.app_name, reason=str(error))
                return
        self._changed.set()

    async def wait_for_change(self, wait_s: float) -> bool:
        """Wait for the next change, up to ``wait_s`` seconds; whether there was one."""
        try:
            await asyncio.wait_for(self._changed.wait(), wait_s)
        except TimeoutError:
            return False
        self._changed.clear()
        return True


class ProgramFetcher:
    """Fetches programs into the store. Tasks that want the same one share a fetch."""

    def __init__(
        self,
        session: Session,
        topics: PropletTopics,
        store: ProgramStore,
        limits: Limits,
        timeout_s: float,
        policy: PolicyFile,
    ) -> None:
        """``timeout_s``: seconds without an answer or a new chunk after which a fetch is given up; ``policy``: what may run here."""
        self._session, self._topics = session, topics
        self._store, self._limits, self._timeout_s = store, limits, timeout_s
        self._pending_by_reference: dict[str, PendingFetch] = {}
        self._pending_by_digest: dict[str, PendingFetch] = {}
        self._fetches: SingleFlight[str, str] = SingleFlight()
        self._downloads: SingleFlight[str, None] = SingleFlight()
        self._shared_topic_users = 0
        self._pinned: LRUCache[str, str] = LRUCache(_MAX_PINNED)
        self._policy_file, self._policy = policy, policy.current()
        self._checked: LRUCache[str, bool] = LRUCache(_MAX_PINNED)
        self._unsigned: LRUCache[tuple[str, str], str] = LRUCache(_MAX_PINNED)
        """By reference and digest why it is not signed as native programs must be, where they must be; empty: it is."""
        self._compiled: LRUCache[tuple[str, bool], bool] = LRUCache(_MAX_PINNED)

    async def open(self) -> None:
        """Listen to the proxy's answers."""
        answers = self._topics.channel.answers(self._topics.proplet_id)
        await self._session.subscribe(answers, self._handle_answer, qos=QOS)

    async def close(self) -> None:
        """End every fetch."""
        await self._fetches.close()
        await self._downloads.close()

    async def fetch(self, reference: str) -> str:
        """Have the program that a reference stands for now in the store; its digest.

        Raises:
            TaskError: it cannot be fetched, or may not run here, and why.
        """
        policy = self._current_policy()
        policy.check_reference(reference)
        try:
            digest = await self._fetches.run(reference, lambda: self._fetch(reference, policy))
        except AssemblyError as error:
            raise TaskError(f"program {reference}: {error}") from None
        await self._check_content(reference, digest, policy)
        return digest

    async def add(self, content: bytes) -> str:
        """Put a program that came with its task into the store; its digest.

        Raises:
            TaskError: it is not a program.
        """
        policy = self._current_policy()
        if policy.repositories is not None or policy.signers:
            raise TaskError(
                "the policy of this device: programs come from repositories that it names, or signed, and not in a task"
            )
        if is_native(content):
            raise TaskError(
                "a native program comes from a repository that the policy of this device names, or signed, and not in a task: push it"
            )
        digest = await asyncio.to_thread(digest_of, content)
        await self._put_in_store("in the task's file", digest, content)
        if self._missing_runtime(digest):
            raise TaskError(
                "the program in the task's file needs a shared runtime, which is not in it: build it with --standalone"
            )
        await self._check_content("the program in the task's file", digest, policy)
        return digest

    async def compile(self, reference: str, digest: str, limits: Limits) -> float:
        """Have a program that was fetched compiled, once for all tasks; this goes on when the task is stopped.

        Returns:
            The milliseconds that it took now; 0 if it was compiled already.

        Raises:
            TaskError: it cannot be, within the limits.
        """
        build = digest, limits.fuel is not None
        if build in self._compiled:  # one that has made room since is compiled when it is run
            return 0.0
        try:
            took_ms = await self._store.prepare(digest, limits)
        except ProgramError as error:
            raise _refusal(reference, error) from error
        self._compiled[build] = True
        return took_ms

    def _current_policy(self) -> Policy:
        """The policy that holds now; what was checked by another one is checked again.

        Raises:
            TaskError: it cannot be read, so nothing runs.
        """
        policy = self._policy_file.current()
        if policy is not self._policy:
            self._policy = policy
            self._pinned.clear()
            self._checked.clear()
            self._unsigned.clear()
        return policy

    async def _check_content(self, reference: str, digest: str, policy: Policy) -> None:
        """See that the policy lets a program do what it can; raises ``TaskError`` if not."""
        if self._is_native(digest):
            policy.check_native(reference, self._unsigned.get((reference, digest), _FORGOTTEN))
        if policy.may is None or digest in self._checked:
            return
        try:
            content = await asyncio.to_thread(self._store.read, digest)
            if runtime := runtime_of(content):  # that has the imports
                content = await asyncio.to_thread(self._store.read, runtime)
        except ProgramError as error:
            raise TaskError(f"program {reference}: {error}") from None
        await asyncio.to_thread(policy.check_program, reference, content)
        self._checked[digest] = True

    async def _fetch(self, reference: str, policy: Policy) -> str:
        known = self._pinned.get(reference)
        is_kept = known is not None and self._store.has(known) and not self._missing_runtime(known)
        if known is not None and is_kept and self._is_settled(reference, known):
            return known
        log.info("Requesting binary from registry: %s", reference)
        pending = self._pending_by_reference[reference] = PendingFetch(Assembly(self._limits.module_bytes))
        try:
            await self._resolve(reference, pending, signatures=policy.needs_signatures)
        finally:
            del self._pending_by_reference[reference]
        if pending.error is not None:
            raise TaskError(f"program {reference} cannot be fetched: {pending.error}")
        policy.check_signature(reference, pending.resolved)
        unsigned = policy.unsigned(reference, pending.resolved)
        if pending.resolved is None:
            assembled = await self._store_assembled(reference, pending.assembly)
            self._unsigned[reference, assembled] = unsigned
            await self._have_runtime(reference, assembled)
            return assembled
        digest = pending.resolved.digest
        if digest is None:
            raise TaskError(f"program {reference}: the proxy resolved it to no digest")
        self._unsigned[reference, digest] = unsigned
        if not self._store.has(digest):
            resolved = pending.resolved
            await self._downloads.run(digest, lambda: self._download(reference, digest, resolved))
        await self._have_runtime(reference, digest)
        if "@sha256:" in reference:  # what it names cannot change
            self._pinned[reference] = digest
        return digest

    def _is_settled(self, reference: str, digest: str) -> bool:
        """Whether nothing is to be asked of a program that is here: a native one that was not signed may be now."""
        return self._unsigned.get((reference, digest)) == "" or not self._is_native(digest)

    def _is_native(self, digest: str) -> bool:
        try:
            return self._store.is_native(digest)
        except ProgramError as error:  # it made room for others just now
            raise TaskError(str(error)) from None

    def _missing_runtime(self, digest: str) -> str | None:
        try:
            return self._store.missing_runtime(digest)
        except ProgramError as error:  # it made room for others just now
            raise TaskError(str(error)) from None

    async def _have_runtime(self, reference: str, digest: str) -> None:
        """Have the shared runtime that a program needs: it is kept for all programs over it."""
        runtime = self._missing_runtime(digest)
        if runtime is None:
            return
        if self._topics.compat:
            raise TaskError(
                f"program {reference} needs a shared runtime, which a compat proplet cannot ask for: build it with --standalone"
            )
        log.info("Requesting the program's runtime: %s", runtime, image=reference)
        resolved = ResolvedProgram(app_name=reference, digest=runtime)
        await self._downloads.run(runtime, lambda: self._download(reference, runtime, resolved))

    async def _resolve(self, reference: str, pending: PendingFetch, *, signatures: bool) -> None:
        """Ask until the proxy has answered or, on the shared topic, has sent every chunk."""
        compat = self._topics.compat
        request = ProgramRequest(
            app_name=reference,
            proplet_id=None if compat else self._topics.proplet_id,
            signatures=True if signatures and not compat else None,
        )
        wait_s, left_s = RESOLVE_WAIT_S, self._timeout_s
        async with contextlib.AsyncExitStack() as listening:
            if compat:
                await listening.enter_async_context(self._listening_on_shared())
            while True:
                await self._publish(request)
                while not pending.settled and await pending.wait_for_change(wait_s):
                    left_s = self._timeout_s
                if pending.settled:
                    return
                left_s -= wait_s
                if left_s <= 0:
                    raise TaskError(_timeout_text(reference, self._timeout_s, pending.assembly))
                wait_s = min(2 * wait_s, MAX_RESOLVE_WAIT_S)

    async def _download(self, reference: str, digest: str, resolved: ResolvedProgram) -> None:
        """Download a program that the proxy has resolved, unless another proplet of this machine has done so."""
        async with self._store.fetch_lock(digest, self._timeout_s):
            if not self._store.has(digest):
                await self._download_chunks(reference, digest, resolved)

    async def _download_chunks(self, reference: str, digest: str, resolved: ResolvedProgram) -> None:
        assembly = Assembly(
            self._limits.module_bytes, digest=digest, size=resolved.size, total=resolved.total_chunks
        )
        pending = self._pending_by_digest[digest] = PendingFetch(assembly)
        topic = self._topics.channel.chunks(digest)

        async def handle_chunk(_topic: str, payload: bytes) -> None:
            if chunk := _read_chunk(payload):
                pending.add_chunk(chunk)

        try:
            await self._subscribe(topic, handle_chunk)
            await self._collect_chunks(reference, digest, pending)
        finally:
            del self._pending_by_digest[digest]
            await self._session.unsubscribe(topic)

    async def _collect_chunks(self, reference: str, digest: str, pending: PendingFetch) -> None:
        """Ask for the chunks, and again for those that do not come; a tampered program is asked for once more."""
        left_s, downloads = self._timeout_s, 0
        while True:
            missing = pending.assembly.missing()
            request = ProgramRequest(
                app_name=reference,
                proplet_id=self._topics.proplet_id,
                digest=digest,
                missing=missing if pending.assembly.chunks and len(missing) <= _MAX_MISSING_LISTED else None,
            )
            await self._publish(request)
            while not pending.settled and await pending.wait_for_change(CHUNK_WAIT_S):
                left_s = self._timeout_s
            if pending.error is not None:
                raise TaskError(f"program {reference} cannot be fetched: {pending.error}")
            if pending.assembly.complete:
                downloads += 1
                try:
                    await self._store_assembled(reference, pending.assembly)
                except AssemblyError as error:
                    if downloads == _MAX_DOWNLOADS:
                        raise
                    log.warning("the assembled binary is not what was announced", reason=str(error))
                    pending.assembly.clear()
                else:
                    return
            else:
                left_s -= CHUNK_WAIT_S
                if left_s <= 0:
                    raise TaskError(_timeout_text(reference, self._timeout_s, pending.assembly))

    async def _store_assembled(self, reference: str, assembly: Assembly) -> str:
        chunks = assembly.chunks
        content = await asyncio.to_thread(assembly.content)
        digest = await asyncio.to_thread(digest_of, content)
        log.info("Assembled binary", image=reference, digest=digest, bytes=len(content), chunks=chunks)
        await self._put_in_store(reference, digest, content)
        return digest

    async def _put_in_store(self, reference: str, digest: str, content: bytes) -> None:
        if self._store.has(digest):
            return
        try:
            await self._store.keep(digest, content, self._limits)
        except ProgramError as error:
            raise _refusal(reference, error) from error

    async def _publish(self, request: ProgramRequest) -> None:
        topic = self._topics.says(Kind.REGISTRY_REQUEST)
        try:
            await self._session.publish(topic, request.encode(), qos=QOS, timeout=self._timeout_s)
        except NotConnectedError as error:
            raise TaskError(f"program {request.app_name} cannot be asked for: {error}") from None

    async def _subscribe(self, topic: str, handler: Handler) -> None:
        try:
            await self._session.subscribe(topic, handler, qos=QOS)
        except SubscriptionRefusedError as error:
            raise TaskError(str(error)) from None

    @contextlib.asynccontextmanager
    async def _listening_on_shared(self) -> AsyncIterator[None]:
        """Listen to the topic that everyone shares, for as long as some fetch needs it."""
        topic = self._topics.channel.topic(Kind.REGISTRY_CHUNK)
        self._shared_topic_users += 1
        try:
            if self._shared_topic_users == 1:
                await self._subscribe(topic, self._handle_shared_chunk)
            yield
        finally:
            self._shared_topic_users -= 1
            if self._shared_topic_users == 0:
                await self._session.unsubscribe(topic)

    async def _handle_answer(self, _topic: str, payload: bytes) -> None:
        try:
            answer = ResolvedProgram.decode(payload)
        except MalformedMessageError as error:
            log.warning("the proxy's answer is dropped", reason=str(error))
            return
        pending = self._pending_by_reference.get(answer.app_name)
        if answer.error and answer.digest:  # it cannot send what it has resolved
            pending = self._pending_by_digest.get(answer.digest)
        if pending is not None:
            pending.set_answer(answer)

    async def _handle_shared_chunk(self, _topic: str, payload: bytes) -> None:
        chunk = _read_chunk(payload)
        pending = self._pending_by_reference.get(chunk.app_name) if chunk else None
        if chunk and pending:
            pending.add_chunk(chunk)


def _read_chunk(payload: bytes) -> ProgramChunk | None:
    try:
        return ProgramChunk.decode(payload)
    except MalformedMessageError as error:
        log.warning("chunk dropped", reason=str(error))
        return None


def _refusal(reference: str, error: ProgramError) -> TaskError:
    """A program cannot be kept or compiled; with the setting of the limit that it is over."""
    setting = LIMIT_SETTINGS.get(error.limit or "")
    return TaskError(f"program {reference}: {error}{f' ({setting})' if setting else ''}")


def _timeout_text(reference: str, timeout_s: float, assembly: Assembly) -> str:
    came = f"{assembly.chunks} chunks came, then none" if assembly.chunks else "nothing came"
    return (
        f"program {reference} cannot be fetched: {came} for {timeout_s:g} s; check that the proxy runs and is on this "
        "channel"
    )
