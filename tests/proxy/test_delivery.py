"""Sending chunks: each once, however the requests for them fall together."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from propeller.digests import digest_of
from propeller.mqtt.session import NotConnectedError
from propeller.protocol.programs import ProgramChunk
from propeller.proxy.delivery import (
    MAX_CONCURRENT_CHUNKS,
    DeliveryError,
    Parcel,
    ProgramGoneError,
    ProgramSender,
)
from propeller.proxy.metrics import ProxyMetrics

DATA = bytes(range(95))
DIGEST = digest_of(DATA)
DIRECTED = Parcel(f"t/{DIGEST}", "x:latest", DIGEST, shared=False)
SHARED = Parcel("t", "x:latest", DIGEST, shared=True)


class Broker:
    """Takes messages slowly, and fails when told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, ProgramChunk]] = []
        self.failures = 0
        self.now = self.most = 0
        self.on_send: Callable[[int], Awaitable[None]] | None = None

    async def publish(self, topic: str, payload: bytes) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0)
            if self.failures:
                self.failures -= 1
                raise NotConnectedError("no broker")
            chunk = ProgramChunk.decode(payload)
            self.sent.append((topic, chunk))
            if self.on_send is not None:
                await self.on_send(chunk.chunk_idx)
        finally:
            self.now -= 1

    def counts(self) -> Counter[int]:
        return Counter(chunk.chunk_idx for _, chunk in self.sent)


def new_sender(broker: Broker, *, window_s: float = 0.0, content: bytes | None = DATA) -> ProgramSender:
    async def open_program(_digest: str) -> BinaryIO | None:
        if content is None:
            return None
        file = tempfile.TemporaryFile()  # noqa: SIM115 - whoever opens a program closes it
        file.write(content)
        file.flush()
        return file

    return ProgramSender(open_program, broker.publish, 10, ProxyMetrics(), window_s=window_s)


async def test_fifty_who_ask_together_cost_each_chunk_once() -> None:
    broker = Broker()
    sender = new_sender(broker, window_s=0.01)
    await asyncio.gather(*(sender.send(DIRECTED, len(DATA)) for _ in range(50)))
    assert [chunk.chunk_idx for _, chunk in broker.sent] == list(range(10))
    assert b"".join(chunk.payload() for _, chunk in broker.sent) == DATA
    first = broker.sent[0][1]
    assert (first.total_chunks, first.digest, first.size, first.app_name) == (10, DIGEST, 95, "x:latest")


async def test_who_comes_late_gets_what_was_sent_before_and_shares_the_rest() -> None:
    broker, joined = Broker(), asyncio.Event()
    sender = new_sender(broker)
    late: list[asyncio.Task[None]] = []

    async def join(index: int) -> None:
        if index == 3 and not joined.is_set():
            joined.set()
            late.append(asyncio.create_task(sender.send(DIRECTED, len(DATA))))
            await asyncio.sleep(0)

    broker.on_send = join
    await sender.send(DIRECTED, len(DATA))
    await late[0]
    assert [chunk.chunk_idx for _, chunk in broker.sent] == [*range(10), 0, 1, 2, 3]


async def test_only_what_is_missing_is_sent() -> None:
    broker = Broker()
    sender = new_sender(broker)
    await asyncio.gather(
        sender.send(DIRECTED, len(DATA), [9, 2]),
        sender.send(DIRECTED, len(DATA), [2, 4, 10, 999]),
        sender.send(DIRECTED, len(DATA), []),
    )
    assert broker.counts() == Counter([2, 4, 9])


@given(
    st.lists(st.tuples(st.integers(0, 9), st.none() | st.sets(st.integers(0, 12), max_size=5)), max_size=8)
)
@settings(max_examples=50, deadline=None)
def test_everyone_gets_what_they_asked_for_after_they_asked(asks: list[tuple[int, set[int] | None]]) -> None:
    async def run() -> None:
        broker = Broker()
        sender = new_sender(broker)
        tasks = [asyncio.create_task(sender.send(DIRECTED, len(DATA)))]
        asked_at: list[tuple[int, set[int]]] = []
        waiting = list(asks)

        async def join(_index: int) -> None:
            for at, missing in [one for one in waiting if one[0] <= len(broker.sent)]:
                waiting.remove((at, missing))
                wanted = set(range(10)) if missing is None else {number for number in missing if number < 10}
                asked_at.append((len(broker.sent), wanted))
                tasks.append(asyncio.create_task(sender.send(DIRECTED, len(DATA), missing)))

        broker.on_send = join
        while tasks:
            await tasks.pop(0)
        for position, wanted in asked_at:
            assert wanted <= {chunk.chunk_idx for _, chunk in broker.sent[position:]}
        # No chunk is sent more often than there were times to ask for it.
        assert all(count <= 1 + len(asked_at) for count in broker.counts().values())

    asyncio.run(run())


async def test_on_the_shared_topic_each_name_has_its_own_chunks() -> None:
    broker = Broker()
    sender = new_sender(broker)
    other = Parcel("t", "ghcr.io/u/x", DIGEST, shared=True)
    await asyncio.gather(
        sender.send(SHARED, len(DATA)), sender.send(SHARED, len(DATA)), sender.send(other, len(DATA))
    )
    assert Counter(chunk.app_name for _, chunk in broker.sent) == {"x:latest": 10, "ghcr.io/u/x": 10}


async def test_two_programs_of_one_name_do_not_mix_on_the_shared_topic() -> None:
    broker = Broker()
    sender = new_sender(broker)
    moved = Parcel("t", "x:latest", digest_of(b"new"), shared=True)
    await asyncio.gather(sender.send(SHARED, len(DATA)), *(sender.send(moved, len(DATA)) for _ in range(3)))
    digests = [chunk.digest for _, chunk in broker.sent]
    assert digests == [DIGEST] * 10 + [moved.digest] * 10


async def test_memory_is_bounded_however_many_programs_go_at_once() -> None:
    broker = Broker()
    sender = new_sender(broker)
    parcels = [Parcel(f"t/{number}", "x", f"{DIGEST[:-2]}{number:02}", shared=False) for number in range(20)]
    await asyncio.gather(*(sender.send(parcel, len(DATA)) for parcel in parcels))
    assert len(broker.sent) == 200
    assert broker.most == MAX_CONCURRENT_CHUNKS


async def test_a_chunk_that_the_broker_did_not_take_is_sent_again() -> None:
    broker = Broker()
    broker.failures = 2
    await new_sender(broker).send(DIRECTED, len(DATA))
    assert broker.counts() == Counter(range(10))


async def test_a_broker_that_takes_nothing_ends_the_delivery_for_all() -> None:
    broker = Broker()
    broker.failures = 1000
    sender = new_sender(broker)
    both = await asyncio.gather(*(sender.send(DIRECTED, len(DATA)) for _ in range(2)), return_exceptions=True)
    assert [type(result) for result in both] == [DeliveryError, DeliveryError]
    broker.failures = 0
    await sender.send(DIRECTED, len(DATA))
    assert broker.counts() == Counter(range(10))


async def test_a_program_that_is_gone_is_told_to_all() -> None:
    sender = new_sender(Broker(), content=None)
    with pytest.raises(ProgramGoneError):
        await sender.send(DIRECTED, len(DATA))
