"""Running tasks: started on a proplet, stopped, and ended by a result or by the loss of the proplet."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from cachetools import LRUCache

from propeller.errors import ConflictError, NotFoundError, PropellerError, UnavailableError
from propeller.manager.coordinator_client import RoundReporter
from propeller.manager.dispatcher import Dispatcher
from propeller.manager.fleet import Fleet, PropletRecord
from propeller.manager.task import ACTIVE_STATES, EndCause, Task, TaskState
from propeller.manager.task_repository import TaskRepository
from propeller.process.keyed_locks import KeyedLocks
from propeller.process.logs import get_logger
from propeller.protocol.models import SentModel
from propeller.protocol.task import Stage, TaskResult, TaskStage

log = get_logger("manager")

MAX_RESTARTS = 3
"""Of a round's task whose proplet ended: one that brings its proplet down each time must end."""

MAX_UPDATE_COPY = 256 * 1024
"""Characters of the copy of an update that stays in the result of a round's task."""

_INTERRUPTED = "interrupted: "
"""How the error of a task begins that ended because its proplet did."""

_MAX_STAGES = 10_000
"""Tasks whose stage is remembered: those of which something was said last."""

_IDLE_STATES = (TaskState.PENDING, TaskState.COMPLETED, TaskState.FAILED)
_MAX_LOGGED_CHARACTERS = 500


class TaskRunner:
    """Starts tasks and ends them."""

    def __init__(
        self,
        repository: TaskRepository,
        locks: KeyedLocks,
        fleet: Fleet,
        dispatcher: Dispatcher,
        reporter: RoundReporter,
    ) -> None:
        """``locks`` are those of the tasks, held by whoever changes one."""
        self._repository, self._locks, self._fleet = repository, locks, fleet
        self._dispatcher, self._reporter = dispatcher, reporter
        self._interruptions: Counter[str] = Counter()
        self._stages: LRUCache[str, Stage] = LRUCache(_MAX_STAGES)
        self._last_chosen: str | None = None

    async def start(self, task_id: str) -> Task:
        """Run a task that does not run, on its own proplet or on the least loaded one.

        Raises:
            NotFoundError: there is no such task.
            ConflictError: it runs already, has no program, or its proplet is not alive.
            TooLargeError: its program does not fit in a message.
            UnavailableError: no proplet is alive, or the broker cannot be reached. The task is then as it was.
        """
        async with self._locks.holding(task_id):
            before = await self._repository.get(task_id)
            if before.active:
                raise ConflictError(f"task {task_id} is already running on proplet {before.proplet_id}")
            program = await self._repository.program(task_id) if before.file_preview else None
            if program is None and not before.spec.image_url:
                raise no_program(task_id)
            proplet = await self._choose_proplet(before)
            if before.spec.kind == "prefetch" and not proplet.directed:
                raise ConflictError(
                    f"task {task_id} is to be fetched and not run, which proplet {proplet.id} of absmach/propeller does not know"
                )
            message = self._dispatcher.encode_start(before, proplet, program)
            scheduled = self._schedule(before, proplet.id)
            if not await self._repository.replace(scheduled, _IDLE_STATES):
                raise NotFoundError(f"no task {task_id}: it was deleted just now")
            try:
                await self._dispatcher.start(message, proplet)
            except PropellerError:
                await self._repository.replace(before, ACTIVE_STATES)
                raise
            await self._repository.mark_running([task_id])
        log.info("task started", task_id=task_id, proplet_id=proplet.id, name=before.spec.name)
        return replace(scheduled, state=TaskState.RUNNING)

    async def stop(
        self, task_id: str, error: str = "stopped by request", *, round_is_over: bool = False
    ) -> None:
        """End a running task; it is Failed with ``error``. One that has ended stays as it is.

        Args:
            task_id: of the task.
            error: why it is stopped.
            round_is_over: the coordinator expects no update of it any more, so nothing is reported there.

        Raises:
            NotFoundError: there is no such task.
            ConflictError: it was never started.
            UnavailableError: the broker cannot be reached. The task is then as it was.
        """
        async with self._locks.holding(task_id):
            task = await self._repository.get(task_id)
            if task.ended:
                return
            if not task.active or task.proplet_id is None:
                raise ConflictError(f"task {task_id} is not running (state {task.state.name.capitalize()})")
            proplet = self._fleet.get(task.proplet_id)
            await self._dispatcher.stop(
                task_id, task.proplet_id, directed=proplet is not None and proplet.directed
            )
            stopped = self._end(task, EndCause.STOP, error=error)
            await self._repository.replace(replace(stopped, stopping_on=task.proplet_id), ACTIVE_STATES)
            if not round_is_over:
                self._report_failure(stopped)
        log.info(
            "task stopped", task_id=task_id, proplet_id=task.proplet_id, round_id=task.round_id, reason=error
        )

    async def accept_result(self, message: TaskResult) -> None:
        """End a task with the result from the proplet that it runs on; any other result is logged and ignored."""
        async with self._locks.holding(message.task_id):
            task = await self._repository.find(message.task_id)
            line = log.bind(task_id=message.task_id, proplet_id=message.sender)
            if task is None:
                line.warning("result ignored: no such task")
            elif _confirms_stop(message, task):
                await self._repository.replace(replace(task, stopping_on=None), TaskState)
                line.info("proplet has stopped the task")
            elif message.sender is not None and message.sender != task.proplet_id:
                line.warning(
                    "result ignored: the task runs on another proplet", expected_proplet_id=task.proplet_id
                )
            elif not task.active and task.ended_by is not EndCause.LOST:
                line.info("result ignored: the task has already ended", state=task.state.name.capitalize())
            elif self._may_restart(task, message):
                await self._repository.replace(self._schedule(task, task.proplet_id), TaskState)
                line.warning(
                    "task will be started again when its proplet is back",
                    round_id=task.round_id,
                    reason=str(message.error)[:_MAX_LOGGED_CHARACTERS],
                )
            else:
                results = message.results if task.round_id is None else self._without_update(task, message)
                ended = self._end(task, EndCause.RESULT, error=message.error, results=results)
                ended = replace(ended, usage=message.usage or None)
                await self._repository.replace(ended, TaskState)
                self._report_failure(ended)
                if message.failed:
                    reason = str(message.error)[:_MAX_LOGGED_CHARACTERS]
                    line.warning("task failed", round_id=task.round_id, error=reason)
                else:
                    line.info("task completed", round_id=task.round_id)

    async def note_stage(self, message: TaskStage) -> None:
        """Remember what a proplet does for a task, and have the coordinator know, if the task runs there."""
        task = await self._repository.find(message.task_id)
        if task is None or not task.active or task.proplet_id != message.proplet_id:
            return
        self._stages[task.id] = message.stage
        if task.round_id is not None:
            self._reporter.report_stage(task.round_id, message.proplet_id, message.stage)

    def stage(self, task: Task) -> Stage | None:
        """What a task's proplet does for it, as it said last; ``None`` if that is not known, or the task does not run."""
        return self._stages.get(task.id) if task.active else None

    async def fail_lost(self, task_id: str, error: str) -> None:
        """Fail a running task because of its proplet; a result that comes after all still counts."""
        async with self._locks.holding(task_id):
            task = await self._repository.find(task_id)
            if task is not None and task.active:
                await self._fail_lost(task, error)

    async def resume(self, task_id: str, over_since: datetime | None) -> None:
        """Publish the start of a scheduled task that may not have gone out; a proplet drops one that it has, by its id.

        A task whose proplet is not alive waits: the proplet comes back, or its silence ends the task. ``over_since``
        is the end of the task's round if that is over: then the task fails.
        """
        async with self._locks.holding(task_id):
            task = await self._repository.find(task_id)
            if task is None or task.state is not TaskState.SCHEDULED:
                return
            proplet = self._fleet.get(task.proplet_id or "")
            if over_since is not None:
                error = f"not started before its round ended at {over_since}"
                await self._fail_lost(task, error, round_is_over=True)
            elif proplet is None:
                await self._fail_lost(
                    task, f"its proplet {task.proplet_id} was deleted before it was started"
                )
            elif self._fleet.is_alive(proplet.id) and await self.publish_start(task, proplet):
                await self._repository.mark_running([task_id])

    async def publish_start(self, task: Task, proplet: PropletRecord, model: SentModel | None = None) -> bool:
        """Publish the start of a scheduled task; whether the broker has it. If not, ``resume`` tries again.

        ``model`` goes with it to a proplet that knows of such. It is not kept: whoever starts later asks the model registry.
        """
        line = log.bind(round_id=task.round_id, task_id=task.id, proplet_id=proplet.id)
        try:
            if not self._dispatcher.connected:
                line.warning("task will be started when the broker is back")
                return False
            program = await self._repository.program(task.id) if task.file_preview else None
            message = self._dispatcher.encode_start(task, proplet, program, model)
            await self._dispatcher.start(message, proplet)
        except PropellerError as error:
            line.warning("task will be started later", reason=str(error))
            return False
        line.info("launched task for FL round participant" if task.round_id else "task started")
        return True

    async def _fail_lost(self, task: Task, error: str, *, round_is_over: bool = False) -> None:
        lost = self._end(task, EndCause.LOST, error=error)
        await self._repository.replace(lost, ACTIVE_STATES)
        if not round_is_over:
            self._report_failure(lost)
        log.warning(
            "task failed", task_id=task.id, proplet_id=task.proplet_id, round_id=task.round_id, error=error
        )

    def _may_restart(self, task: Task, message: TaskResult) -> bool:
        """Whether a round's task that ended because its proplet did is started once more."""
        if task.round_id is None or not (message.error or "").startswith(_INTERRUPTED):
            return False
        self._interruptions[task.id] += 1
        return self._interruptions[task.id] <= MAX_RESTARTS

    def _without_update(self, task: Task, message: TaskResult) -> Any:
        """The results to store: of a proplet of absmach/propeller as it sent them, as its users read the update there."""
        results, proplet = message.results, self._fleet.get(task.proplet_id or "")
        copy = results.get("update_b64") if isinstance(results, dict) else None
        if proplet is None or proplet.directed or len(str(copy)) > MAX_UPDATE_COPY:
            return without_update(results)
        return results

    def _report_failure(self, ended: Task) -> None:
        """Report to the coordinator if a participant of a round has failed."""
        if ended.round_id and ended.proplet_id and ended.error:
            self._reporter.report(ended.round_id, ended.proplet_id, ended.error)

    async def _choose_proplet(self, task: Task) -> PropletRecord:
        pinned = task.spec.proplet_id
        if pinned is not None:
            proplet = self._fleet.get(pinned)
            if proplet is None:
                raise ConflictError(
                    f"task {task.id} is for proplet {pinned}, which has not registered: ids are client ids, not "
                    "instance names; GET /proplets?status=active lists the live ones"
                )
            if not self._fleet.is_alive(pinned):
                last = proplet.last_alive_at
                raise ConflictError(
                    f"task {task.id} is for proplet {pinned}, which is not alive (last heartbeat: {last or 'never'}): "
                    "start it again, or give the task another proplet_id"
                )
            return proplet
        loads = await self._repository.count_active()
        alive = {proplet.id: loads.get(proplet.id, 0) for proplet in self._fleet.alive()}
        chosen = choose_least_loaded(alive, self._last_chosen)
        proplet = self._fleet.get(chosen) if chosen else None
        if proplet is None:
            raise UnavailableError(
                "no proplet is alive: start one and see GET /proplets?status=active, then try again"
            )
        self._last_chosen = proplet.id
        return proplet

    def _schedule(self, task: Task, proplet_id: str | None) -> Task:
        moment = self._fleet.clock()
        return replace(
            task,
            state=TaskState.SCHEDULED,
            proplet_id=proplet_id,
            results=None,
            error=None,
            usage=None,
            ended_by=None,
            start_time=moment,
            finish_time=None,
            updated_at=moment,
        )

    def _end(self, task: Task, cause: EndCause, *, error: str | None, results: Any = None) -> Task:
        moment = self._fleet.clock()
        self._interruptions.pop(task.id, None)
        self._stages.pop(task.id, None)
        return replace(
            task,
            state=TaskState.FAILED if error else TaskState.COMPLETED,
            results=results,
            error=error or None,
            ended_by=cause,
            finish_time=moment,
            updated_at=moment,
        )


def no_program(task_id: str) -> ConflictError:
    """What is said of a task that has none."""
    return ConflictError(
        f"task {task_id} has no program: set image_url (PUT /tasks/{task_id}) "
        f"or upload one (PUT /tasks/{task_id}/upload)"
    )


def choose_least_loaded(loads: Mapping[str, int], last_chosen: str | None = None) -> str | None:
    """The proplet to run the next task: one of the least loaded, in turn among equals.

    Args:
        loads: how many tasks run on each live proplet.
        last_chosen: the proplet chosen before; the next id after it comes next, then round again.

    Returns:
        One of ``loads``, or ``None`` if there is none.
    """
    if not loads:
        return None
    lowest = min(loads.values())
    idle = sorted(proplet_id for proplet_id, load in loads.items() if load == lowest)
    return next(
        (proplet_id for proplet_id in idle if last_chosen is None or proplet_id > last_chosen), idle[0]
    )


def without_update(results: Any) -> Any:
    """The result of a round's task without its copy of the update: the coordinator has that, and here it would stay for good."""
    if isinstance(results, dict) and results.get("update_b64"):
        return {**results, "update_b64": ""}
    return results


def _confirms_stop(message: TaskResult, task: Task) -> bool:
    """Whether this ends a run that was stopped; it says nothing about a run started since."""
    return (
        task.stopping_on is not None
        and message.sender in {None, task.stopping_on}
        and "stopped before completion" in (message.error or "")
    )
