"""What all tasks of a device may take together: a task waits until there is room for it, and is refused where daemons leave none.

What a task takes is what its own limits let it take, so that the sum holds whatever programs do.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import psutil

from propeller.process.logs import get_logger
from propeller.proplet.errors import TaskError
from propeller.proplet.settings import PropletSettings

log = get_logger("task")

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Resources:
    """Bytes of memory and of the disk, threads, open descriptors."""

    memory: int
    disk: int
    threads: int
    descriptors: int

    def __add__(self, other: "Resources") -> "Resources":
        """Both together."""
        return Resources(*map(int.__add__, astuple(self), astuple(other)))

    def __sub__(self, other: "Resources") -> "Resources":
        """What is left."""
        return Resources(*map(int.__sub__, astuple(self), astuple(other)))

    def lacking(self, need: "Resources") -> str | None:
        """The first of them of which there is less than is needed."""
        short = (each.name for each in fields(self) if getattr(self, each.name) < getattr(need, each.name))
        return next(short, None)


NOTHING = Resources(0, 0, 0, 0)


def whole_room(settings: PropletSettings) -> Resources:
    """What all tasks may take by a proplet's settings.

    Where one is not set: what ``PROPLET_MAX_TASKS`` tasks and as many daemons may take, and of memory no more than the device has, but room for one task.
    """
    places, one = 2 * settings.max_tasks, settings.largest_task
    memory = settings.max_memory or min(places * one["memory"], max(_device_memory(), one["memory"]))
    return Resources(
        memory,
        settings.max_disk or places * one["disk"],
        settings.max_threads or places * one["threads"],
        settings.max_descriptors or places * one["descriptors"],
    )


def _device_memory() -> int:
    """Bytes of memory that this device has, or its control group (version 2) may take."""
    memory: int = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit
        memory = min(memory, int(_CGROUP_LIMIT.read_text()))
    return memory


@dataclass(eq=False)
class _Waiting:
    need: Resources
    daemon: bool
    admitted: asyncio.Future[None]


class TaskRoom:
    """The room of one proplet; tasks get theirs in the order in which they ask."""

    def __init__(self, whole: Resources) -> None:
        self._whole = self._free = whole
        self._daemons = NOTHING
        self._waiting: deque[_Waiting] = deque()

    @contextlib.asynccontextmanager
    async def taken(self, need: Resources, *, daemon: bool = False) -> AsyncIterator[None]:
        """Take room until the block ends, as soon as there is some.

        Raises:
            TaskError: there will be none before a daemon is stopped; the text names the setting.
        """
        await self._take(need, daemon=daemon)
        try:
            yield
        finally:
            self._give_back(need, daemon=daemon)

    def _give_back(self, need: Resources, *, daemon: bool) -> None:
        self._free += need
        if daemon:
            self._daemons -= need
        self._admit()

    async def _take(self, need: Resources, *, daemon: bool) -> None:
        asked = _Waiting(need, daemon, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        self._admit()
        if not asked.admitted.done():
            name = self._free.lacking(need)
            log.info("the task waits for room", setting=_setting(name) if name else "those before it")
        try:
            await asked.admitted
        except asyncio.CancelledError:
            if asked in self._waiting:
                self._waiting.remove(asked)
                self._admit()
            elif not asked.admitted.cancelled() and asked.admitted.exception() is None:
                self._give_back(need, daemon=daemon)  # let in and stopped at the same time
            raise

    def _admit(self) -> None:
        """Let in those that have room, in order; refuse those that daemons leave none."""
        while True:
            self._refuse()
            if not self._waiting or self._free.lacking(self._waiting[0].need):
                return
            first = self._waiting.popleft()
            if not first.admitted.cancelled():
                self._free -= first.need
                if first.daemon:
                    self._daemons += first.need
                first.admitted.set_result(None)

    def _refuse(self) -> None:
        left = self._whole - self._daemons
        for each in [one for one in self._waiting if left.lacking(one.need)]:
            self._waiting.remove(each)
            if not each.admitted.cancelled():
                each.admitted.set_exception(TaskError(self._refusal(left, each.need)))

    def _refusal(self, left: Resources, need: Resources) -> str:
        name = left.lacking(need) or "memory"
        held, whole = getattr(self._daemons, name), getattr(self._whole, name)
        return (
            f"{name}: the task may take {getattr(need, name)}, and daemons hold {held} of the {whole} that all tasks of this device "
            f"may take ({_setting(name)}): stop a daemon, or give the task lower limits"
        )


def _setting(name: str) -> str:
    return str(PropletSettings.model_fields[f"max_{name}"].alias)
