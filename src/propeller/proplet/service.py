"""What a proplet does with the manager's messages: starts and stops tasks, and reports how each ended.

A start is for this proplet if it came on its own topic or names it, or is for everyone. A start whose task is waiting
or running is ignored; once the task has ended the same start runs it again, as absmach/propeller does. A broker keeps no
order between topics, so that a stop may come before the start that it is meant for.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from cachetools import TTLCache

from propeller.process.background import BackgroundTasks
from propeller.process.logs import get_logger
from propeller.proplet.errors import TaskError
from propeller.proplet.outbox import Outbox, task_metrics
from propeller.proplet.round_results import RoundResults
from propeller.proplet.runner import ProgramRunner
from propeller.proplet.stages import told_stages
from propeller.proplet.task_slots import TaskSlots
from propeller.protocol import topics
from propeller.protocol.ids import InvalidIdError, check_id
from propeller.protocol.proplet import TaskMetrics
from propeller.protocol.task import Stage, TaskResult, TaskStage, TaskStart, TaskStop
from propeller.protocol.wire import MalformedMessageError, decode_object

log = get_logger("proplet")

MAX_WAITING_TASKS = 1000
"""Tasks that may wait for a free slot; a start beyond them is refused."""

EARLY_STOP_LIFETIME_S = 1.0
"""A stop that found no task holds for a start that comes within this time."""

MAX_REMEMBERED_IDS = 1000
"""Ids of tasks of which something was said before their start came; the oldest are forgotten."""

_ENCRYPTED_LIFETIME_S = 60.0
_CLOSE_GRACE_S = 1.5

SendMetrics = Callable[[TaskMetrics], Coroutine[Any, Any, None]]
SendStage = Callable[[TaskStage], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class _Request:
    """A start message for this proplet.

    Attributes:
        directed: it came on the proplet's own topic, which only this project's managers know.
    """

    start: TaskStart
    directed: bool


@dataclass
class _Task:
    """A task that was accepted and has not ended.

    Attributes:
        file: its place in the outbox.
        work: what runs it.
        stop_reason: why it was stopped, if it was.
        reported: a daemon's result is sent when it has started.
        pending_restart: a start that came while the task was being stopped.
    """

    request: _Request
    file: Path
    work: asyncio.Task[TaskResult | None]
    stop_reason: str | None = None
    reported: bool = False
    pending_restart: _Request | None = None

    def stop(self, reason: str) -> None:
        """Cancel what runs it; the first reason counts."""
        if self.stop_reason is None:
            self.stop_reason = reason
            self.work.cancel()  # the sandbox kills the program


class TaskExecutor:
    """The tasks of one proplet."""

    def __init__(
        self,
        proplet_id: str,
        runner: ProgramRunner,
        outbox: Outbox,
        send_metrics: SendMetrics,
        send_stage: SendStage,
        max_tasks: int,
        round_results: RoundResults,
    ) -> None:
        """``max_tasks`` run at the same time, the others wait in order; as many daemons may run beside them."""
        self._proplet_id, self._runner, self._outbox = proplet_id, runner, outbox
        self._send_metrics, self._send_stage, self._max_tasks = send_metrics, send_stage, max_tasks
        self._slots, self._round_results = TaskSlots(max_tasks), round_results
        self._tasks: dict[str, _Task] = {}
        self._background = BackgroundTasks("proplet")
        self._encrypted_ids: TTLCache[str, bool] = TTLCache(MAX_REMEMBERED_IDS, _ENCRYPTED_LIFETIME_S)
        self._stopped_ids: TTLCache[str, bool] = TTLCache(MAX_REMEMBERED_IDS, EARLY_STOP_LIFETIME_S)
        self._closing = False

    async def handle_start(self, topic: str, payload: bytes) -> None:
        """Accept a start message, refuse it with a result that says why, or ignore it."""
        try:
            fields = decode_object(payload)
        except MalformedMessageError as error:
            log.warning("start dropped", topic=topic, reason=str(error))
            return
        parsed = topics.parse_topic(topic)
        directed = parsed is not None and parsed.target == self._proplet_id
        if not self._is_recipient(fields, directed=directed):
            # absmach/propeller says only in its first start message, which names no proplet, that a program is encrypted.
            if fields.get("encrypted") and isinstance(fields.get("id"), str):
                self._encrypted_ids[fields["id"]] = True
            return
        try:
            start = TaskStart.decode(fields)
        except MalformedMessageError as error:
            self._refuse(fields.get("id"), f"the start message cannot be read: {error}")
        else:
            self._accept(_Request(start, directed))

    async def handle_stop(self, topic: str, payload: bytes) -> None:
        """Stop a task; it is reported as stopped."""
        try:
            stop = TaskStop.decode(payload)
        except MalformedMessageError as error:
            log.warning("stop dropped", topic=topic, reason=str(error))
            return
        if stop.proplet_id not in {None, self._proplet_id} and not stop.broadcast:
            return
        task = self._tasks.get(stop.id)
        if task is None:
            log.info("stop of a task that is not here", task_id=stop.id)
            self._stopped_ids[stop.id] = True
        else:
            task.pending_restart = None
            task.stop(_stopped_text(stop.id))

    def send_left_over(self) -> None:
        """Begin to send the results that an earlier process left."""
        self._background.spawn(self._outbox.send_left_over())

    async def close(self) -> None:
        """Stop every task, and give their results a moment to leave; those that do not are sent by the next start."""
        self._closing = True
        for task in list(self._tasks.values()):
            task.stop("interrupted: the proplet was stopped")
        await self._background.close(_CLOSE_GRACE_S)

    def _is_recipient(self, fields: Mapping[str, Any], *, directed: bool) -> bool:
        if fields.get("broadcast") is True:
            return True
        named = fields.get("proplet_id")
        return named == self._proplet_id if named else directed

    def _accept(self, request: _Request) -> None:
        start = request.start
        if (task := self._tasks.get(start.id)) is not None:
            if task.stop_reason is not None:
                task.pending_restart = request
            else:
                log.info("start ignored: the task is waiting or running", task_id=start.id)
            return
        if self._encrypted_ids.pop(start.id, False):
            start = start.model_copy(update={"encrypted": True})
            request = _Request(start, request.directed)
        stopped = self._stopped_ids.pop(start.id, False)
        reason = _stopped_text(start.id) if stopped else self._refusal(start)
        if reason is not None:
            self._refuse(start.id, reason)
            return
        file = self._outbox.add(self._failed(start.id, "interrupted: the proplet ended while the task ran"))
        context = contextvars.copy_context()
        about = {"task_id": start.id, "round_id": start.env.get("ROUND_ID")}
        context.run(
            structlog.contextvars.bind_contextvars, **{key: value for key, value in about.items() if value}
        )
        work = asyncio.create_task(self._run(request), context=context)
        task = self._tasks[start.id] = _Task(request, file, work)
        self._background.spawn(self._report_end(task), context=context)

    def _refusal(self, start: TaskStart) -> str | None:
        """Why a task cannot be accepted now, or ``None``."""
        daemons = sum(task.request.start.daemon for task in self._tasks.values())
        if self._closing:
            return "interrupted: the proplet was stopped"
        if start.daemon and daemons >= self._max_tasks:
            return (
                f"{daemons} daemons run here, the most this proplet takes (PROPLET_MAX_TASKS); stop one first"
            )
        if len(self._tasks) - daemons >= self._max_tasks + MAX_WAITING_TASKS:
            return f"{MAX_WAITING_TASKS} tasks wait here already, the most this proplet takes"
        return None

    def _refuse(self, task_id: Any, reason: str) -> None:
        """Report a task that is not even tried, if there is an id to report."""
        log.warning("start refused", task_id=task_id, reason=reason)
        try:
            result = self._failed(check_id(task_id), reason)
        except (InvalidIdError, TypeError):
            return
        self._background.spawn(self._outbox.deliver(self._outbox.add(result), result))

    async def _report_end(self, task: _Task) -> None:
        """Wait for a task's end, whichever it is, and report it."""
        task_id = task.request.start.id
        try:
            result = await task.work
        except asyncio.CancelledError:
            if task.stop_reason is None:
                raise
            result = self._failed(task_id, task.stop_reason)
        except TaskError as error:
            result = self._failed(task_id, str(error))
            result.usage = dict(error.usage)
        except Exception as error:
            log.exception("a fault of the proplet ended a task")
            result = self._failed(task_id, f"a fault of the proplet: {type(error).__name__}: {error}")
        finally:
            del self._tasks[task_id]
        if result is not None and result.error is not None:
            log.warning("Task %s failed", task_id, error=result.error)
        else:
            log.info("Task %s completed successfully", task_id)
        if result is not None and not task.reported:
            await self._outbox.deliver(task.file, result)
        if task.pending_restart is not None:
            self._accept(task.pending_restart)

    async def _run(self, request: _Request) -> TaskResult | None:
        """Run a task; its result, unless it is a daemon's, which is sent already."""
        start = request.start
        if start.prefetch:
            with told_stages(lambda stage: self._tell_stage(start.id, stage)):
                return await self._runner.prefetch(start)
        if start.daemon:
            await self._run_daemon(start)
            return None
        # A manager of this project has one task a round and participant.
        if start.env.get("ROUND_ID") and not request.directed:
            return await self._round_results.once(start, lambda: self._run_program(request))
        return await self._run_program(request)

    async def _run_program(self, request: _Request) -> TaskResult:
        start = request.start
        usage: Mapping[str, float] = {}
        try:
            async with self._runner.task_folder() as folder:
                with told_stages(lambda stage: self._tell_stage(start.id, stage)):
                    async with self._slots.taken(start.priority):
                        run = await self._runner.run(start, folder)
                    # This project's managers drop the copy: the coordinator has the update.
                    result = await self._runner.report(run, copy_update=not request.directed)
            usage = result.usage
        except TaskError as error:
            usage = error.usage
            raise
        finally:
            if usage and _exports_metrics(start):
                metrics = task_metrics(start.id, self._proplet_id, usage)
                self._background.spawn(self._send_metrics(metrics))
        return result

    def _tell_stage(self, task_id: str, stage: Stage) -> None:
        told = TaskStage(task_id=task_id, proplet_id=self._proplet_id, stage=stage)
        self._background.spawn(self._send_stage(told))

    async def _run_daemon(self, start: TaskStart) -> None:
        """Run until stopped; the result is sent when it has started, as absmach/propeller does."""
        async with self._runner.task_folder() as folder:
            run = await self._runner.prepare(start, folder)
            async with self._runner.room(run, daemon=True):
                task = self._tasks[start.id]
                task.reported = True
                result = TaskResult(task_id=start.id, proplet_id=self._proplet_id)
                self._background.spawn(self._outbox.deliver(task.file, result))
                await self._runner.execute(run)

    def _failed(self, task_id: str, reason: str) -> TaskResult:
        return TaskResult(task_id=task_id, proplet_id=self._proplet_id, results="", error=reason)


def _stopped_text(task_id: str) -> str:
    return f"Task {task_id} was stopped before completion"


def _exports_metrics(start: TaskStart) -> bool:
    """Whether the task's monitoring profile, if it has one, wants its metrics sent."""
    profile = start.monitoring_profile
    return profile is None or (profile.get("enabled") is True and profile.get("export_to_mqtt") is True)
