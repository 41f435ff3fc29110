"""What the manager does periodically: fails lost tasks, publishes late starts, stops late tasks, writes metrics, deletes old data."""

import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta

from propeller.errors import PropellerError
from propeller.manager.coordinator_client import CoordinatorClient, RoundReporter
from propeller.manager.fleet import Fleet, PropletRecord
from propeller.manager.metrics_repository import MetricsRepository
from propeller.manager.round_repository import RoundRepository
from propeller.manager.task import ACTIVE_STATES, TaskState
from propeller.manager.task_repository import TaskRepository
from propeller.manager.task_runner import TaskRunner
from propeller.process.background import BackgroundTasks
from propeller.process.keyed_locks import KeyedLocks
from propeller.process.logs import get_logger

log = get_logger("manager")

LATE_TASK_GRACE_S = 10.0
"""How long a task may still run after its round's deadline: its result may be under way, and says more than a stop."""

WRITE_INTERVAL_S = 1.0
RESUME_INTERVAL_S = 2.0
PRUNE_INTERVAL_S = 30.0
_MIN_CHECK_INTERVAL_S = 0.05


class Housekeeping:
    """The manager's periodic work; each job is a method that can be called at any time too."""

    def __init__(
        self,
        fleet: Fleet,
        tasks: TaskRepository,
        rounds: RoundRepository,
        round_locks: KeyedLocks,
        runner: TaskRunner,
        metrics: MetricsRepository,
        coordinator: CoordinatorClient | None,
        reporter: RoundReporter,
        *,
        interval_s: float,
        tasks_keep: int,
        is_connected: Callable[[], bool],
    ) -> None:
        """``interval_s`` is the longest time between two checks of the fleet, ``tasks_keep`` how many ended tasks stay."""
        self._fleet, self._tasks, self._rounds, self._round_locks = fleet, tasks, rounds, round_locks
        self._runner, self._metrics = runner, metrics
        self._coordinator, self._reporter = coordinator, reporter
        self._interval_s, self._tasks_keep, self._is_connected = interval_s, tasks_keep, is_connected
        self._listening_since = fleet.clock()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Do the periodic work for the length of the block."""
        background = BackgroundTasks("manager")
        resume_interval_s = min(RESUME_INTERVAL_S, self._interval_s)

        async def resume_when_due() -> None:
            await self._fleet.wait_for_return(resume_interval_s)
            if self._is_connected():
                await self.resume_starts()

        for name, work, every_s in (
            ("failing tasks of lost proplets", self.fail_lost_tasks, self.seconds_to_next_check),
            ("publishing late starts", resume_when_due, 0.0),
            ("stopping late tasks", self.stop_late_tasks, resume_interval_s),
            ("writing heartbeats and metrics", self.write, WRITE_INTERVAL_S),
            ("deleting old metrics", self._metrics.prune, PRUNE_INTERVAL_S),
            ("deleting old tasks", self.prune_tasks, PRUNE_INTERVAL_S),
        ):
            background.spawn_periodic(name, work, every_s)
        try:
            yield
        finally:
            await background.close()

    async def on_connect(self) -> None:
        """Heartbeats arrive from now on, so silence before means nothing; starts that did not go out go out now."""
        self._listening_since = self._fleet.clock()
        await self.resume_starts()

    async def fail_lost_tasks(self) -> None:
        """Fail the tasks of proplets that have been silent for their whole window.

        A proplet whose last will came may be back soon, and its task with it: only silence counts.
        """
        if not self._is_connected():
            return
        lost = {}
        for proplet_id in await self._tasks.count_active():
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
        for task in await self._tasks.in_state(*ACTIVE_STATES):
            if task.proplet_id in lost:
                await self._runner.fail_lost(task.id, lost[task.proplet_id])

    def seconds_to_next_check(self) -> float:
        """Seconds until a proplet that is alive now could be lost, at most the interval."""
        now = self._fleet.clock()
        ends = (self._end_of_window(proplet) for proplet in self._fleet.all())
        soonest = min(((end - now).total_seconds() for end in ends if end > now), default=self._interval_s)
        return max(_MIN_CHECK_INTERVAL_S, min(soonest, self._interval_s))

    async def resume_starts(self) -> None:
        """Publish starts that were decided and may not have gone out: after a crash, a lost connection, a slow broker."""
        overdue = await self._rounds.overdue(self._fleet.clock(), TaskState.SCHEDULED)
        over_since: dict[str, datetime | None] = {**overdue}
        for task in await self._tasks.in_state(TaskState.SCHEDULED):
            round_id = task.round_id or ""
            async with self._round_locks.holding(round_id):  # not while the round is being launched
                if self._coordinator is not None and round_id and round_id not in over_since:
                    is_collecting = await self._coordinator.is_collecting(round_id)
                    over_since[round_id] = None if is_collecting else self._fleet.clock()
                await self._runner.resume(task.id, over_since.get(round_id))

    async def stop_late_tasks(self) -> None:
        """Stop what still runs for rounds that ended: later rounds need the proplets."""
        if not self._is_connected():
            return
        latest = self._fleet.clock() - timedelta(seconds=LATE_TASK_GRACE_S)
        overdue = await self._rounds.overdue(latest, TaskState.RUNNING)
        for task in await self._tasks.in_state(TaskState.RUNNING) if overdue else ():
            if (ended_at := overdue.get(task.round_id or "")) is not None:
                error = f"stopped: it still ran when its round ended at {ended_at}"
                try:
                    await self._runner.stop(task.id, error, round_is_over=True)
                except PropellerError as refused:  # it ended by itself, or the broker is away
                    log.info("late task is not stopped", task_id=task.id, reason=str(refused))

    async def report_failures(self) -> None:
        """Report every failure in rounds that may still be open: a crash may have kept them from the coordinator."""
        for round_id, proplet_id, reason in await self._rounds.failures(self._fleet.clock()):
            self._reporter.report(round_id, proplet_id, reason)

    async def write(self) -> None:
        """Write new heartbeats and metrics to the database."""
        await self._fleet.write_heartbeats()
        await self._metrics.write()

    async def prune_tasks(self) -> None:
        """Delete the oldest ended tasks that are over the limit."""
        if count := await self._tasks.prune(self._tasks_keep, self._fleet.clock()):
            log.info("old tasks deleted", count=count, kept=self._tasks_keep)

    def _end_of_window(self, proplet: PropletRecord) -> datetime:
        return max(self._listening_since, proplet.last_alive_at or self._listening_since) + proplet.window
