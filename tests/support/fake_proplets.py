"""Proplets that only ask the proxy for programs: directed ones, and those of absmach/propeller."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.session import Credentials, Session
from propeller.protocol.programs import ProgramChunk, ProgramRequest, ResolvedProgram
from propeller.protocol.topics import Channel, Kind, PropletTopics
from support.net import eventually


class FakeProplet:
    """Remembers every answer and chunk that reaches it."""

    def __init__(self, session: Session, channel: Channel, name: str) -> None:
        self.session, self.channel, self.name = session, channel, name
        self.answers: list[ResolvedProgram] = []
        self.chunks: list[ProgramChunk] = []

    async def ask(self, app_name: str, **fields: object) -> None:
        """Publish a request: one that names the proplet on its own topic, as directed ones do, another on the shared one."""
        request = ProgramRequest.model_validate({"app_name": app_name, **fields})
        topics = PropletTopics(self.channel, self.name, compat=request.proplet_id is None)
        await self.session.publish(topics.says(Kind.REGISTRY_REQUEST), request.encode())

    async def resolve(self, app_name: str) -> ResolvedProgram:
        """Ask as a directed proplet what a reference stands for."""
        count = len(self.answers)
        await self.ask(app_name, proplet_id=self.name)
        await eventually(lambda: len(self.answers) > count, 20, f"{self.name} gets an answer")
        return self.answers[-1]

    async def listen(self, topic: str) -> None:
        """Take chunks from a topic."""
        await self.session.subscribe(topic, self.record_chunk)

    async def download(self, app_name: str) -> bytes:
        """Have a program as a directed proplet does."""
        resolved = await self.resolve(app_name)
        assert resolved.digest is not None, resolved.error
        await self.listen(self.channel.chunks(resolved.digest))
        await self.ask(app_name, proplet_id=self.name, digest=resolved.digest)
        return await self.program()

    async def program(self) -> bytes:
        """Wait until every chunk is here; the program's bytes."""

        def parts() -> dict[int, bytes]:
            got = {chunk.chunk_idx: chunk.payload() for chunk in self.chunks if not chunk.error}
            return got if self.chunks and len(got) == self.chunks[-1].total_chunks else {}

        found = await eventually(parts, 30, f"{self.name} gets every chunk")
        return b"".join(found[index] for index in sorted(found))

    async def record_chunk(self, _topic: str, payload: bytes) -> None:
        """Take a chunk."""
        self.chunks.append(ProgramChunk.decode(payload))

    async def record_answer(self, _topic: str, payload: bytes) -> None:
        """Take an answer of the proxy."""
        self.answers.append(ResolvedProgram.decode(payload))


@contextlib.asynccontextmanager
async def proplet(port: int, channel: Channel, name: str) -> AsyncIterator[FakeProplet]:
    """A connected proplet that hears its own answers and, as those of absmach/propeller, the shared topic."""
    session = Session(
        BrokerAddress("127.0.0.1", port), Credentials(f"{channel.domain_id}-{name}"), clean=True
    )
    async with session.running():
        fake = FakeProplet(session, channel, name)
        await session.subscribe(channel.topic(Kind.REGISTRY_CHUNK), fake.record_chunk)
        await session.subscribe(channel.answers(name), fake.record_answer)
        assert await session.wait_connected(10)
        yield fake


@contextlib.asynccontextmanager
async def proplets(port: int, channel: Channel, count: int) -> AsyncIterator[list[FakeProplet]]:
    """Several of them."""
    async with contextlib.AsyncExitStack() as stack:
        entering = [
            stack.enter_async_context(proplet(port, channel, f"p{number}")) for number in range(count)
        ]
        yield list(await asyncio.gather(*entering))
