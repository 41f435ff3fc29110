"""How programs arrive: each byte once, whatever happens to the chunks, on topics of its own and on the shared one."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest

from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.session import Credentials, Session
from propeller.native_program import is_native
from propeller.proplet import programs as module
from propeller.proplet.errors import TaskError
from propeller.proplet.policy import PolicyFile
from propeller.proplet.programs import ProgramFetcher
from propeller.protocol.programs import ProgramChunk, ResolvedProgram
from propeller.protocol.topics import Kind, PropletTopics
from propeller.wasm.layers import runtime_of
from propeller.wasm.program_run import Limits, ProgramError
from support.net import eventually
from support.programs import digest
from support.proplet import IMAGE, Peers

CONTENT = bytes(range(256)) * 20
ME = "proplet-1"


class FakeStore:
    """Keeps programs without compiling them."""

    def __init__(self) -> None:
        self.programs: dict[str, bytes] = {}

    def has(self, digest: str) -> bool:
        return digest in self.programs

    def read(self, digest: str) -> bytes:
        return self.programs[digest]

    async def keep(self, digest: str, wasm: bytes, limits: Limits | None = None) -> None:
        if wasm == b"bad":
            raise ProgramError("not a valid Wasm program")
        self.programs[digest] = wasm

    async def prepare(self, digest: str, limits: Limits | None = None) -> float:
        if self.programs[digest] == b"too long":
            raise ProgramError.over_limit("compile_s", 60.0)
        return 7.0

    def is_native(self, digest: str) -> bool:
        return is_native(self.programs[digest])

    def missing_runtime(self, digest: str) -> str | None:
        needed = runtime_of(self.programs[digest])
        return None if needed is None or needed in self.programs else needed

    def fetch_lock(self, digest: str, wait_s: float) -> AbstractAsyncContextManager[bool]:
        return nullcontext(True)


class Scene:
    """Opens program fetchers of a proplet, and holds what they fetch into."""

    def __init__(self, port: int, peers: Peers, stack: AsyncExitStack) -> None:
        self.port, self.peers, self.stack, self.store = port, peers, stack, FakeStore()
        self.policy: Path | None = None

    async def open(
        self, timeout: float = 10.0, limits: Limits | None = None, *, compat: bool = False
    ) -> ProgramFetcher:
        session = Session(
            BrokerAddress("127.0.0.1", self.port), Credentials(f"{ME}-{self.peers.channel.channel_id}")
        )
        topics = PropletTopics(self.peers.channel, ME, compat=compat)
        await self.stack.enter_async_context(session.running())
        one = ProgramFetcher(
            session, topics, self.store, limits or Limits(), timeout, PolicyFile(self.policy)
        )
        await one.open()
        assert await session.wait_connected(10)
        self.stack.push_async_callback(one.close)
        return one


@pytest.fixture
async def scene(broker_port: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(module, "RESOLVE_WAIT_S", 0.3)
    monkeypatch.setattr(module, "CHUNK_WAIT_S", 0.2)
    peers = Peers(broker_port)
    peers.programs[IMAGE] = CONTENT
    async with peers.running(), AsyncExitStack() as stack:
        yield Scene(broker_port, peers, stack)


async def test_what_is_cached_costs_no_bytes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "CHUNK_WAIT_S", 10.0
    )  # nothing is lost here, and a busy machine is no reason to ask again
    programs, peers = await scene.open(), scene.peers
    assert await programs.fetch(IMAGE) == digest(CONTENT)
    assert scene.store.programs == {digest(CONTENT): CONTENT}
    assert await programs.fetch(IMAGE) == digest(CONTENT)
    assert [request.digest for request in peers.requests] == [None, digest(CONTENT), None]
    assert peers.sent_bytes == len(CONTENT)


async def test_a_program_that_cannot_be_compiled_is_named_with_the_setting(scene: Scene) -> None:
    programs = await scene.open()
    assert await programs.compile(IMAGE, await programs.fetch(IMAGE), Limits()) == 7.0
    scene.peers.programs[IMAGE] = b"too long"
    found = await programs.fetch(IMAGE)
    with pytest.raises(
        TaskError, match=r"^program .*: compile_s: over the limit of 60 s \(PROPLET_TASK_COMPILE_TIME\)$"
    ):
        await programs.compile(IMAGE, found, Limits())


async def test_a_moved_tag_brings_the_new_program(scene: Scene) -> None:
    programs = await scene.open()
    await programs.fetch(IMAGE)
    scene.peers.programs[IMAGE] = CONTENT + b"new"
    assert await programs.fetch(IMAGE) == digest(CONTENT + b"new")


def shuffled(chunks: list[ProgramChunk]) -> list[ProgramChunk]:
    return random.Random(1).sample(chunks * 2, 2 * len(chunks))


def tampered(chunks: list[ProgramChunk]) -> list[ProgramChunk]:
    return [chunks[0].model_copy(update={"data": "AAAA" + chunks[0].data[4:]}), *chunks[1:]]


def out_of_range(chunks: list[ProgramChunk]) -> list[ProgramChunk]:
    wrong = [chunks[0].model_copy(update=change) for change in ({"total_chunks": 9}, {"chunk_idx": 8000})]
    return [*wrong, *chunks]


async def test_chunks_may_come_in_any_order_and_twice(scene: Scene) -> None:
    scene.peers.shuffle = shuffled
    assert await (await scene.open()).fetch(IMAGE) == digest(CONTENT)


async def test_chunks_that_cannot_be_of_it_are_left_out(scene: Scene) -> None:
    scene.peers.shuffle = out_of_range
    assert await (await scene.open()).fetch(IMAGE) == digest(CONTENT)


async def test_lost_chunks_are_asked_for_again_by_number(scene: Scene) -> None:
    losses = [[3, 17], [17]]

    def lossy(chunks: list[ProgramChunk]) -> list[ProgramChunk]:
        lost = losses.pop(0) if losses else []
        return [chunk for chunk in chunks if chunk.chunk_idx not in lost]

    scene.peers.shuffle = lossy
    await (await scene.open()).fetch(IMAGE)
    assert [request.missing for request in scene.peers.requests[1:]] == [None, [3, 17], [17]]
    assert scene.store.programs[digest(CONTENT)] == CONTENT


async def test_a_tampered_program_is_asked_for_once_more_then_refused(scene: Scene) -> None:
    programs, peers = await scene.open(), scene.peers
    peers.shuffle = tampered
    with pytest.raises(TaskError, match="digest: the bytes that came are"):
        await programs.fetch(IMAGE)
    assert len(peers.requests) == 3
    assert scene.store.programs == {}
    tries: list[int] = []

    def tampered_once(chunks: list[ProgramChunk]) -> list[ProgramChunk]:
        tries.append(1)
        return tampered(chunks) if len(tries) == 1 else chunks

    peers.shuffle = tampered_once
    assert await programs.fetch(IMAGE) == digest(CONTENT)


async def test_tasks_share_a_fetch_and_references_a_download(scene: Scene) -> None:
    programs, peers = await scene.open(), scene.peers
    peers.programs["registry.test/same:1"] = CONTENT
    wanted = [IMAGE, IMAGE, IMAGE, "registry.test/same:1"]
    assert set(await asyncio.gather(*map(programs.fetch, wanted))) == {digest(CONTENT)}
    assert peers.sent_bytes == len(CONTENT)


async def test_one_who_leaves_does_not_end_the_fetch_for_others(scene: Scene) -> None:
    programs = await scene.open()
    scene.peers.silent = True
    first, second = (asyncio.create_task(programs.fetch(IMAGE)) for _ in range(2))
    await eventually(lambda: scene.peers.requests)
    first.cancel()
    scene.peers.silent = False
    assert await second == digest(CONTENT)
    assert first.cancelled()


@pytest.mark.parametrize(
    ("content", "limits", "reason"),
    [
        (None, Limits(), "no such image"),
        (b"bad", Limits(), "not a valid Wasm program"),
        (CONTENT, Limits(module_bytes=100), r"module_bytes.*\(PROPLET_TASK_MODULE_BYTES\)"),
    ],
)
async def test_why_a_program_cannot_be_had_is_told(
    scene: Scene, content: bytes | None, limits: Limits, reason: str
) -> None:
    scene.peers.programs = {} if content is None else {IMAGE: content}
    with pytest.raises(TaskError, match=f"program {IMAGE}.*{reason}"):
        await (await scene.open(limits=limits)).fetch(IMAGE)


async def test_a_failure_after_resolving_ends_the_fetch_at_once(scene: Scene) -> None:
    peers = scene.peers

    def fails(chunks: list[ProgramChunk]) -> list[ProgramChunk]:
        answer = ResolvedProgram(app_name=IMAGE, digest=digest(CONTENT), error="blob unknown")
        failures.append(
            asyncio.ensure_future(peers.session.publish(peers.channel.answers(ME), answer.encode()))
        )
        return []

    failures: list[Any] = []
    peers.shuffle = fails
    with pytest.raises(TaskError, match="blob unknown"):
        await (await scene.open()).fetch(IMAGE)
    await asyncio.gather(*failures)


async def test_a_proxy_that_is_away_is_asked_again_until_the_time_is_up(scene: Scene) -> None:
    scene.peers.silent = True
    programs = await scene.open(timeout=0.8)
    with pytest.raises(TaskError, match=r"nothing came for 0\.8 s; check that the proxy runs"):
        await programs.fetch(IMAGE)
    assert len(scene.peers.requests) >= 2
    scene.peers.silent = False
    assert await programs.fetch(IMAGE) == digest(CONTENT)


async def test_a_reference_pinned_to_a_manifest_is_for_the_proxy_to_check(scene: Scene) -> None:
    pinned = f"registry.test/echo@{digest(b'its manifest')}"
    scene.peers.programs[pinned] = CONTENT
    programs = await scene.open()
    for _ in range(3):
        assert await programs.fetch(pinned) == digest(CONTENT)
    # It stands for the same program for ever: once it is here, nobody is asked.
    assert [request.digest for request in scene.peers.requests] == [None, digest(CONTENT)]
    scene.store.programs.clear()
    assert await programs.fetch(pinned) == digest(CONTENT)
    assert len(scene.peers.requests) == 4


async def test_a_compat_proplet_is_answered_on_the_shared_topic_only(scene: Scene) -> None:
    programs, peers = await scene.open(compat=True), scene.peers
    peers.shuffle = shuffled
    for asked in (1, 2):
        assert await programs.fetch(IMAGE) == digest(CONTENT)
        assert len(peers.requests) == asked
    assert {request.proplet_id for request in peers.requests} == {None}
    # S's failure is silence, and an error chunk is one of ours on the shared topic.
    peers.silent = True
    waiting = asyncio.create_task(programs.fetch(IMAGE))
    await eventually(lambda: len(peers.requests) == 3)
    error = ProgramChunk(app_name=IMAGE, error="denied")
    await peers.session.publish(peers.channel.topic(Kind.REGISTRY_CHUNK), error.encode())
    with pytest.raises(TaskError, match="denied"):
        await waiting
