"""Runs of tasks: started on a proplet, stopped, and ended by a result or by the loss of the proplet."""

from collections import Counter
from dataclasses import replace
from datetime import datetime
from typing import Any

from propeller.errors import ConflictError, NotFoundError, PropellerError, UnavailableError
from propeller.manager.dispatch import Dispatcher
from propeller.manager.failures import Failures
from propeller.manager.proplets import Fleet, Proplet
from propeller.manager.scheduler import choose
from propeller.manager.task import ACTIVE, EndedBy, State, Task
from propeller.manager.tasks import Tasks
from propeller.process.logs import get_logger
from propeller.protocol.task import TaskResult

log = get_logger("manager")

_INTERRUPTED = "interrupted: "
"""How the error of a task begins that ended with its proplet's process, and not by any fault of its own."""

AGAIN = 3
"""How often a round's task is started again at most: one that brings its proplet down each time must end."""

_IDLE = (State.PENDING, State.COMPLETED, State.FAILED)


class Runs:
    """What makes tasks run and what ends them."""

    def __init__(self, tasks: Tasks, fleet: Fleet, dispatcher: Dispatcher, failures: Failures) -> None:
        self._tasks, self._store, self._fleet, self._dispatcher = tasks, tasks.store, fleet, dispatcher
        self._failures = failures
        self._interrupted: Counter[str] = Counter()
        self._last: str | None = None

    async def start(self, task_id: str) -> Task:
        """Run a task that does not run, on its own proplet or on the one the scheduler takes.

        Raises:
            PropellerError: 404; 409, it runs, has no program, or its proplet is not alive; 413; 503, no proplet lives
                or the broker is away. The task is then as it was.
        """
        async with self._tasks.locks.holding(task_id):
            before = await self._tasks.get(task_id)
            if before.active:
                raise ConflictError(f"task {task_id} is already running on proplet {before.proplet_id}")
            file = await self._store.file(task_id) if before.file_preview else None
            if file is None and not before.spec.image_url:
                raise ConflictError(
                    f"task {task_id} has no program: set image_url (PUT /tasks/{task_id}) "
                    f"or upload one (PUT /tasks/{task_id}/upload)"
                )
            proplet = await self._choose(before)
            message = self._dispatcher.encode_start(before, proplet, file)
            scheduled = self._scheduled(before, proplet.id)
            if not await self._store.replace(scheduled, _IDLE):
                raise NotFoundError(f"no task {task_id}: it was deleted just now")
            try:
                await self._dispatcher.start(message, proplet)
            except PropellerError:
                await self._store.replace(before, ACTIVE)
                raise
            await self._store.mark_running([task_id])
        log.info("task started", task_id=task_id, proplet_id=proplet.id, name=before.spec.name)
        return replace(scheduled, state=State.RUNNING)

    async def stop(
        self, task_id: str, error: str = "stopped by request", *, round_is_over: bool = False
    ) -> None:
        """End a running task; it is Failed with ``error``.

        Raises:
            PropellerError: 404; 409, it does not run; 503, the broker is away. The task is then as it was.
        """
        async with self._tasks.locks.holding(task_id):
            task = await self._tasks.get(task_id)
            if not task.active or task.proplet_id is None:
                raise ConflictError(f"task {task_id} is not running (state {task.state.name.capitalize()})")
            proplet = self._fleet.get(task.proplet_id)
            await self._dispatcher.stop(
                task_id, task.proplet_id, directed=proplet is not None and proplet.directed
            )
            stopped = self._ended(task, EndedBy.STOP, error=error)
            await self._store.replace(replace(stopped, stopping_on=task.proplet_id), ACTIVE)
            if not round_is_over:
                self._report(stopped)
        log.info(
            "task stopped", task_id=task_id, proplet_id=task.proplet_id, round_id=task.round_id, reason=error
        )

    async def finish(self, message: TaskResult) -> None:
        """Take a result from the proplet that the task runs on; anything else is logged and changes nothing."""
        async with self._tasks.locks.holding(message.task_id):
            task = await self._store.get(message.task_id)
            line = log.bind(task_id=message.task_id, proplet_id=message.sender)
            if task is None:
                line.warning("result ignored: no such task")
            elif _confirms_stop(message, task):
                await self._store.replace(replace(task, stopping_on=None), State)
                line.info("proplet has stopped the task")
            elif message.sender is not None and message.sender != task.proplet_id:
                line.warning(
                    "result ignored: the task runs on another proplet", expected_proplet_id=task.proplet_id
                )
            elif not task.active and task.ended_by is not EndedBy.LOST:
                line.info("result ignored: the task has already ended", state=task.state.name.capitalize())
            elif self._may_go_again(task, message):
                await self._store.replace(self._scheduled(task, task.proplet_id), State)
                line.warning(
                    "task will be started again when its proplet is back",
                    round_id=task.round_id,
                    reason=str(message.error)[:500],
                )
            else:
                results = message.results if task.round_id is None else _without_update(message.results)
                ended = self._ended(task, EndedBy.RESULT, error=message.error, results=results)
                ended = replace(ended, usage=message.usage or None)
                await self._store.replace(ended, State)
                self._report(ended)
                if message.failed:
                    line.warning("task failed", round_id=task.round_id, error=str(message.error)[:500])
                else:
                    line.info("task completed", round_id=task.round_id)

    async def lose(self, task_id: str, error: str) -> None:
        """Give up a running task because of its proplet."""
        async with self._tasks.locks.holding(task_id):
            task = await self._store.get(task_id)
            if task is not None and task.active:
                await self._lose(task, error)

    async def resume(self, task_id: str, over_since: datetime | None) -> None:
        """Publish the start of a scheduled task that may not have gone out; a proplet drops one that it has, by its id.

        It waits while its proplet is not alive: that comes back, or its silence ends the task. ``over_since`` is
        the end of the task's round if that is over: then it is not started any more.
        """
        async with self._tasks.locks.holding(task_id):
            task = await self._store.get(task_id)
            if task is None or task.state is not State.SCHEDULED:
                return
            proplet = self._fleet.get(task.proplet_id or "")
            if over_since is not None:
                await self._lose(
                    task, f"not started before its round ended at {over_since}", round_is_over=True
                )
            elif proplet is None:
                await self._lose(task, f"its proplet {task.proplet_id} was deleted before it was started")
            elif self._fleet.is_alive(proplet.id) and await self.publish(task, proplet):
                await self._store.mark_running([task_id])

    async def publish(self, task: Task, proplet: Proplet) -> bool:
        """Publish the start of a scheduled task; whether the broker has it. If not, ``resume`` tries again."""
        line = log.bind(round_id=task.round_id, task_id=task.id, proplet_id=proplet.id)
        try:
            if not self._dispatcher.connected:
                line.warning("task will be started when the broker is back")
                return False
            file = await self._store.file(task.id) if task.file_preview else None
            await self._dispatcher.start(self._dispatcher.encode_start(task, proplet, file), proplet)
        except PropellerError as error:
            line.warning("task will be started later", reason=str(error))
            return False
        line.info("launched task for FL round participant" if task.round_id else "task started")
        return True

    async def _lose(self, task: Task, error: str, *, round_is_over: bool = False) -> None:
        lost = self._ended(task, EndedBy.LOST, error=error)
        await self._store.replace(lost, ACTIVE)
        if not round_is_over:
            self._report(lost)
        log.warning(
            "task failed", task_id=task.id, proplet_id=task.proplet_id, round_id=task.round_id, error=error
        )

    def _may_go_again(self, task: Task, message: TaskResult) -> bool:
        """Whether a round's task that ended because its proplet did is started once more."""
        if task.round_id is None or not (message.error or "").startswith(_INTERRUPTED):
            return False
        self._interrupted[task.id] += 1
        return self._interrupted[task.id] <= AGAIN

    def _scheduled(self, task: Task, proplet_id: str | None) -> Task:
        moment = self._fleet.clock()
        return replace(
            task,
            state=State.SCHEDULED,
            proplet_id=proplet_id,
            results=None,
            error=None,
            usage=None,
            ended_by=None,
            start_time=moment,
            finish_time=None,
            updated_at=moment,
        )

    def _report(self, ended: Task) -> None:
        """Tell the coordinator if a participant of a round has failed."""
        if ended.round_id and ended.proplet_id and ended.error:
            self._failures.report(ended.round_id, ended.proplet_id, ended.error)

    async def _choose(self, task: Task) -> Proplet:
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
        counts = await self._store.loads()
        chosen = choose(
            {proplet.id: counts.get(proplet.id, 0) for proplet in self._fleet.alive()}, self._last
        )
        proplet = self._fleet.get(chosen) if chosen else None
        if proplet is None:
            raise UnavailableError(
                "no proplet is alive: start one and see GET /proplets?status=active, then try again"
            )
        self._last = proplet.id
        return proplet

    def _ended(self, task: Task, by: EndedBy, *, error: str | None, results: Any = None) -> Task:
        moment = self._fleet.clock()
        self._interrupted.pop(task.id, None)
        return replace(
            task,
            state=State.FAILED if error else State.COMPLETED,
            results=results,
            error=error or None,
            ended_by=by,
            finish_time=moment,
            updated_at=moment,
        )


def _confirms_stop(message: TaskResult, task: Task) -> bool:
    """Whether this is the last word of a run that was stopped, which says nothing about a run started since."""
    return (
        task.stopping_on is not None
        and message.sender in {None, task.stopping_on}
        and "stopped before completion" in (message.error or "")
    )


def _without_update(results: Any) -> Any:
    """A round's result without the copy of the update in it: the coordinator has that, and here it would be kept for ever."""
    if isinstance(results, dict) and results.get("update_b64"):
        return {**results, "update_b64": ""}
    return results
