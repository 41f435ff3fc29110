"""What waits for the proxy: for what a reference stands for, or for the chunks of a program."""

import asyncio

from propeller.process.logs import get_logger
from propeller.proplet.assembly import Assembly, ChunkError
from propeller.protocol.programs import ProgramChunk, ResolvedProgram

log = get_logger("programs")


class Waiting:
    """Something asked of the proxy and what has come of it so far.

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

    def answer(self, answer: ResolvedProgram) -> None:
        """Take the proxy's answer."""
        if answer.error:
            self.error = answer.error
        else:
            self.resolved = answer
        self._changed.set()

    def take(self, chunk: ProgramChunk) -> None:
        """Take a chunk, or the failure that is sent in its place."""
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

    async def changes(self, wait: float) -> bool:
        """Wait for the next change, up to ``wait`` seconds; whether there was one."""
        try:
            await asyncio.wait_for(self._changed.wait(), wait)
        except TimeoutError:
            return False
        self._changed.clear()
        return True
