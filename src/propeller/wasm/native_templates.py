"""Template processes of native programs: one at a time, of the program whose tasks came last, for as long as they go on coming.

A task of a native program spends nearly all of its time importing libraries. The template has imported them, and nothing of the program (``native/template.py``).
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from propeller.process.logs import get_logger
from propeller.wasm.messages import TemplateReady
from propeller.wasm.template_client import SandboxError, TemplateClient

log = get_logger("sandbox")

IDLE_S = 60.0
"""How long a template is kept after its last task, in seconds; then it gives back its memory."""

_MAX_COLD = 256

Key = tuple[str, int]
"""Of a template: the digest of the program, and the bytes of memory that its processes may have."""

Command = tuple[Sequence[str], Mapping[str, str]]
"""What is run, but for the arguments of ``TemplateClient``, and with which environment."""


class _Template:
    def __init__(self, key: Key, client: TemplateClient) -> None:
        self.key, self.client = key, client
        self.users = 0
        self.ready = asyncio.ensure_future(client.ready())

    @property
    def is_usable(self) -> bool:
        return self.client.is_open or not self.ready.done()


class NativeTemplates:
    """Has a template when there are tasks for it. Close it."""

    def __init__(self, nice: int, tasks: Path, processors: int | None) -> None:
        """As ``TemplateClient``."""
        self._nice, self._tasks, self._processors = nice, tasks, processors
        self._current: _Template | None = None
        self._cold: OrderedDict[Key, None] = OrderedDict()
        self._idle: asyncio.TimerHandle | None = None
        self._ends: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def template_pid(self) -> int | None:
        """The process id of the template, if there is one, for measuring it."""
        current = self._current
        return current.client.pid if current is not None and current.client.is_open else None

    @contextlib.asynccontextmanager
    async def taken(
        self, key: Key, command: Callable[[], Command], stopped: "asyncio.Future[None]"
    ) -> AsyncIterator[TemplateClient | None]:
        """A template to start a task of, for the length of the block; ``None``: the task needs an interpreter of its own.

        Args:
            key: whose it is.
            command: what starts it.
            stopped: is done when nobody waits for the task any more.
        """
        current = self._take(key, command)
        if current is None:
            yield None
            return
        current.users += 1
        try:
            first: list[asyncio.Future[Any]] = [current.ready, stopped]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            client = current.client if current.ready.done() and current.client.is_open else None
            if current.ready.done() and (reason := _why_not(current.ready)):
                if not self._closed:
                    self._note_cold(current, reason)
                client = None
            yield client
        finally:
            current.users -= 1
            if not current.users and current is self._current:
                self._idle = asyncio.get_running_loop().call_later(IDLE_S, self.end_idle)

    def end_idle(self) -> None:
        """End the template, if it has no task: others need its memory."""
        if self._current is not None and not self._current.users:
            self._end(self._current)
            self._current = None

    async def close(self) -> None:
        """End it, and its tasks; none is started from here on."""
        self._closed = True
        if self._current is not None:
            self._end(self._current)
            self._current = None
        if self._ends:
            await asyncio.wait(self._ends)

    def _take(self, key: Key, command: Callable[[], Command]) -> _Template | None:
        current = self._current
        if current is not None and (current.key != key or not current.is_usable):
            if current.users:  # another program's tasks run; one at a time, as each takes memory
                return None
            self.end_idle()  # also where this task will have no template: nobody reserved room for it
        if key in self._cold or self._closed:
            return None
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._current is None:
            code, env = command()
            client = TemplateClient(self._nice, self._tasks, self._processors, command=code, env=env)
            try:
                client.open()
            except SandboxError:
                return None
            self._current = _Template(key, client)
        return self._current

    def _note_cold(self, current: _Template, reason: str) -> None:
        """It starts no task: its program is run without one from here on."""
        if current.key not in self._cold:
            log.info("tasks of the program start an interpreter each", program=current.key[0], reason=reason)
            self._cold[current.key] = None
            if len(self._cold) > _MAX_COLD:
                self._cold.popitem(last=False)
        if current is self._current:
            self._current = None
            self._end(current)

    def _end(self, template: _Template) -> None:
        ending = asyncio.ensure_future(self._close(template))
        self._ends.add(ending)
        ending.add_done_callback(self._ends.discard)

    @staticmethod
    async def _close(template: _Template) -> None:
        await template.client.close()
        await asyncio.gather(template.ready, return_exceptions=True)  # its tasks were told


def _why_not(ready: "asyncio.Future[TemplateReady]") -> str:
    """Why a template starts no task; nothing if it does."""
    if ready.cancelled():
        return "it did not start"
    error = ready.exception()
    if error is not None:
        return str(error) or "it has not started in time"
    return ready.result().unusable
