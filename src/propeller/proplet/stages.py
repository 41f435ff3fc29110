"""What a task of this proplet is doing, told to the manager once it takes long.

Whoever carries out a part of a task says so by ``enter``; whose task it is they know from their context, as log lines do.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from propeller.process.logs import get_logger
from propeller.protocol.task import Stage

log = get_logger("task")

TOLD_AFTER_S = 1.0
"""How long a stage lasts before it is told, in seconds: most tasks are over by then."""


class _Stages:
    """The stages of one task."""

    def __init__(self, tell: Callable[[Stage], None]) -> None:
        self._tell, self._loop = tell, asyncio.get_running_loop()
        self._stage = Stage.WAITING
        self._told: Stage | None = None
        self._since = self._loop.time()
        self._timer = self._loop.call_later(TOLD_AFTER_S, self._look)

    def enter(self, stage: Stage) -> None:
        """Note that another one begins."""
        self._stage, self._since = stage, self._loop.time()

    def close(self) -> None:
        """Tell no more."""
        self._timer.cancel()

    def _look(self) -> None:
        """Tell the stage, if it lasts long enough, and look again later."""
        left_s = self._since + TOLD_AFTER_S - self._loop.time()
        if left_s <= 0 and self._stage is not self._told:
            log.info("task stage", stage=self._stage.value)
            self._told = self._stage
            self._tell(self._stage)
        self._timer = self._loop.call_later(max(left_s, 0) or TOLD_AFTER_S, self._look)


_CURRENT: ContextVar[_Stages | None] = ContextVar("task_stages", default=None)


def enter(stage: Stage) -> None:
    """Note what is done next for the task of this context."""
    if (stages := _CURRENT.get()) is not None:
        stages.enter(stage)


@contextlib.contextmanager
def told_stages(tell: Callable[[Stage], None]) -> Iterator[None]:
    """Have the stages of a task, which is carried out in the block, told by ``tell``: each that lasts longer than ``TOLD_AFTER_S``."""
    stages = _Stages(tell)
    token = _CURRENT.set(stages)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        stages.close()
