"""What the manager does by the clock: gives up lost tasks, publishes late starts, stops what outlived its round, writes samples, prunes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import datetime

from propeller.manager.proplets import Fleet, Proplet
from propeller.manager.rounds import Rounds
from propeller.manager.runs import Runs
from propeller.manager.samples import Samples
from propeller.manager.task import ACTIVE
from propeller.manager.task_store import TaskStore
from propeller.process.logs import get_logger

log = get_logger("manager")

WRITE_EVERY_S = 1.0
RESUME_EVERY_S = 2.0
PRUNE_EVERY_S = 30.0
_SHORTEST_S = 0.05


class Watch:
    """The manager's clockwork."""

    def __init__(
        self,
        fleet: Fleet,
        store: TaskStore,
        runs: Runs,
        rounds: Rounds,
        samples: Samples,
        *,
        interval_s: float,
        tasks_keep: int,
        is_connected: Callable[[], bool],
    ) -> None:
        """``interval_s`` is the longest time between two looks at the fleet, ``tasks_keep`` how many ended tasks stay."""
        self._tasks_keep = tasks_keep
        self._is_connected = is_connected
        self._fleet, self._store, self._runs = fleet, store, runs
        self._rounds, self._samples = rounds, samples
        self._interval_s = interval_s
        self._since = fleet.clock()

    def listen(self) -> None:
        """Heartbeats are heard from now on: the silence before means nothing."""
        self._since = self._fleet.clock()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Go on for the length of the block."""
        routines = [
            asyncio.create_task(routine)
            for routine in (self._watch(), self._resume(), self._write(), self._prune())
        ]
        try:
            yield
        finally:
            for routine in routines:
                routine.cancel()
            await asyncio.gather(*routines, return_exceptions=True)

    async def give_up_lost(self) -> None:
        """Fail the tasks of proplets that have been silent for their whole window.

        A proplet whose last will came may be back soon, and its task with it: only silence counts.
        """
        if not self._is_connected():
            return
        loads = await self._store.loads()
        lost = {}
        for proplet_id in loads:
            proplet = self._fleet.get(proplet_id)
            if proplet is None:
                lost[proplet_id] = f"proplet {proplet_id} was deleted while the task ran"
            elif self._end_of_window(proplet) <= self._fleet.clock():
                lost[proplet_id] = (
                    f"proplet {proplet_id} was lost: no heartbeat for {proplet.window.total_seconds():g} s "
                    f"(last: {proplet.last_alive_at or 'never'})"
                )
        if not lost:
            return
        for task in await self._store.in_state(*ACTIVE):
            if task.proplet_id in lost:
                await self._runs.lose(task.id, lost[task.proplet_id])

    def next_look(self) -> float:
        """Seconds until a proplet that lives now could be lost, at most the interval."""
        now = self._fleet.clock()
        ends = (self._end_of_window(proplet) for proplet in self._fleet.all())
        soonest = min(((end - now).total_seconds() for end in ends if end > now), default=self._interval_s)
        return max(_SHORTEST_S, min(soonest, self._interval_s))

    def _end_of_window(self, proplet: Proplet) -> datetime:
        return max(self._since, proplet.last_alive_at or self._since) + proplet.window

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.next_look())
            await self._attempt("looking for lost tasks", self.give_up_lost())

    async def _resume(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._fleet.returned.wait(), min(RESUME_EVERY_S, self._interval_s))
            self._fleet.returned.clear()
            if self._is_connected():
                await self._attempt("publishing late starts", self._rounds.resume())
                await self._attempt("stopping late tasks", self._rounds.stop_late())

    async def _write(self) -> None:
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            await self._attempt("writing heartbeats and samples", self.write())

    async def _prune(self) -> None:
        while True:
            await asyncio.sleep(PRUNE_EVERY_S)
            await self._attempt("pruning samples", self._samples.prune())
            await self._attempt("pruning tasks", self.prune_tasks())

    async def prune_tasks(self) -> None:
        """Delete the oldest ended tasks that are over the limit."""
        if count := await self._store.prune(self._tasks_keep, self._fleet.clock()):
            log.info("old tasks deleted", count=count, kept=self._tasks_keep)

    async def write(self) -> None:
        """Write the heartbeats and samples that wait."""
        await self._fleet.write_heartbeats()
        await self._samples.write()

    async def _attempt(self, what: str, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("the manager could not do its routine", what=what)
