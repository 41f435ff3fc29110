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

from propeller.process.logs import get_logger
from propeller.proplet.outbox import Outbox
from propeller.proplet.recent import Recent
from propeller.proplet.reports import sample
from propeller.proplet.runner import Runner
from propeller.proplet.work import TaskError
from propeller.protocol import topics
from propeller.protocol.ids import InvalidIdError, check_id
from propeller.protocol.proplet import TaskMetrics
from propeller.protocol.task import TaskResult, TaskStart, TaskStop
from propeller.protocol.wire import MalformedMessageError, decode_object

log = get_logger("proplet")

MAX_WAITING = 1000
"""Tasks that may wait for a place; a start beyond them is refused."""

OVERTAKING_S = 1.0
"""A stop that found no task holds for a start that comes within this time."""

_ENCRYPTED_S = 60.0
_GOODBYE_S = 1.5

SendMetrics = Callable[[TaskMetrics], Coroutine[Any, Any, None]]


@dataclass
class _Task:
    """A task that was accepted and has not ended.

    Attributes:
        held: its place in the outbox.
        work: what runs it.
        stopped: why it was stopped, if it was.
        reported: a daemon's result is sent when it has started.
        again: a start that came while the task was being stopped.
    """

    start: TaskStart
    held: Path
    work: asyncio.Task[TaskResult | None]
    stopped: str | None = None
    reported: bool = False
    again: TaskStart | None = None


class Proplet:
    """The tasks of one proplet."""

    def __init__(
        self, proplet_id: str, runner: Runner, outbox: Outbox, send_metrics: SendMetrics, max_tasks: int
    ) -> None:
        """``max_tasks`` run at the same time, the others wait in order; as many daemons may run beside them."""
        self._proplet_id, self._runner, self._outbox = proplet_id, runner, outbox
        self._send_metrics, self._max_tasks = send_metrics, max_tasks
        self._places = asyncio.Semaphore(max_tasks)
        self._tasks: dict[str, _Task] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._encrypted, self._stopped = Recent(_ENCRYPTED_S), Recent(OVERTAKING_S)
        self._closing = False

    async def take_start(self, topic: str, payload: bytes) -> None:
        """Accept a start message, refuse it with a result that says why, or ignore it."""
        try:
            fields = decode_object(payload)
        except MalformedMessageError as error:
            log.warning("start dropped", topic=topic, reason=str(error))
            return
        if not self._is_for_me(topic, fields):
            # S says only in its first start message, which names no proplet, that a program is encrypted.
            if fields.get("encrypted") and isinstance(fields.get("id"), str):
                self._encrypted.add(fields["id"])
            return
        try:
            start = TaskStart.decode(fields)
        except MalformedMessageError as error:
            self._refuse(fields.get("id"), f"the start message cannot be read: {error}")
        else:
            self._accept(start)

    async def take_stop(self, topic: str, payload: bytes) -> None:
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
            self._stopped.add(stop.id)
        else:
            task.again = None
            _stop(task, _stopped(stop.id))

    def send_left(self) -> None:
        """Begin to send the results that an earlier process left."""
        self._spawn(self._outbox.send_left())

    async def close(self) -> None:
        """Stop every task, and give their results a moment to leave; those that do not are sent by the next start."""
        self._closing = True
        for task in list(self._tasks.values()):
            _stop(task, "interrupted: the proplet was stopped")
        if self._background:
            await asyncio.wait(self._background, timeout=_GOODBYE_S)
        for left in list(self._background):
            left.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _is_for_me(self, topic: str, fields: Mapping[str, Any]) -> bool:
        named, parsed = fields.get("proplet_id"), topics.parse_topic(topic)
        if named:
            return named == self._proplet_id or fields.get("broadcast") is True
        return fields.get("broadcast") is True or (parsed is not None and parsed.target == self._proplet_id)

    def _accept(self, start: TaskStart) -> None:
        if (task := self._tasks.get(start.id)) is not None:
            if task.stopped is not None:
                task.again = start
            else:
                log.info("start ignored: the task is waiting or running", task_id=start.id)
            return
        if self._encrypted.take(start.id):
            start = start.model_copy(update={"encrypted": True})
        reason = _stopped(start.id) if self._stopped.take(start.id) else self._no_place(start)
        if reason is not None:
            self._refuse(start.id, reason)
            return
        held = self._outbox.hold(self._failed(start.id, "interrupted: the proplet ended while the task ran"))
        context = contextvars.copy_context()
        about = {"task_id": start.id, "round_id": start.env.get("ROUND_ID")}
        context.run(
            structlog.contextvars.bind_contextvars, **{key: value for key, value in about.items() if value}
        )
        work = asyncio.create_task(self._work(start), context=context)
        task = self._tasks[start.id] = _Task(start, held, work)
        self._spawn(self._until_reported(task), context)

    def _no_place(self, start: TaskStart) -> str | None:
        daemons = sum(task.start.daemon for task in self._tasks.values())
        if self._closing:
            return "interrupted: the proplet was stopped"
        if start.daemon and daemons >= self._max_tasks:
            return (
                f"{daemons} daemons run here, the most this proplet takes (PROPLET_MAX_TASKS); stop one first"
            )
        if len(self._tasks) - daemons >= self._max_tasks + MAX_WAITING:
            return f"{MAX_WAITING} tasks wait here already, the most this proplet takes"
        return None

    def _refuse(self, task_id: Any, reason: str) -> None:
        """Report a task that is not even tried, if there is an id to report."""
        log.warning("start refused", task_id=task_id, reason=reason)
        try:
            result = self._failed(check_id(task_id), reason)
        except (InvalidIdError, TypeError):
            return
        self._spawn(self._outbox.deliver(self._outbox.hold(result), result))

    async def _until_reported(self, task: _Task) -> None:
        """Wait for a task's end, whichever it is, and report it."""
        task_id = task.start.id
        try:
            result = await task.work
        except asyncio.CancelledError:
            if task.stopped is None:
                raise
            result = self._failed(task_id, task.stopped)
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
            await self._outbox.deliver(task.held, result)
        if task.again is not None:
            self._accept(task.again)

    async def _work(self, start: TaskStart) -> TaskResult | None:
        if start.daemon:
            await self._run_daemon(start)
            return None
        usage: Mapping[str, float] = {}
        try:
            async with self._places:
                ran = await self._runner.run(start)
            result = await self._runner.report(ran)
            usage = result.usage
        except TaskError as error:
            usage = error.usage
            raise
        finally:
            if usage and _exports_metrics(start):
                self._spawn(self._send_metrics(sample(start.id, self._proplet_id, usage)))
        return result

    async def _run_daemon(self, start: TaskStart) -> None:
        """Run until stopped; the result is sent when it has started, as absmach/propeller does."""
        job = await self._runner.prepare(start)
        task = self._tasks[start.id]
        task.reported = True
        result = TaskResult(task_id=start.id, proplet_id=self._proplet_id)
        self._spawn(self._outbox.deliver(task.held, result))
        await self._runner.execute(job)

    def _failed(self, task_id: str, reason: str) -> TaskResult:
        return TaskResult(task_id=task_id, proplet_id=self._proplet_id, results="", error=reason)

    def _spawn(self, work: Coroutine[Any, Any, None], context: contextvars.Context | None = None) -> None:
        task = asyncio.create_task(work, context=context)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(_log_fault)


def _stopped(task_id: str) -> str:
    return f"Task {task_id} was stopped before completion"


def _stop(task: _Task, reason: str) -> None:
    if task.stopped is None:
        task.stopped = reason
        task.work.cancel()  # the sandbox kills what runs


def _log_fault(ended: asyncio.Task[None]) -> None:
    if not ended.cancelled() and (error := ended.exception()) is not None:
        log.error("a fault of the proplet", reason=f"{type(error).__name__}: {error}", exc_info=error)


def _exports_metrics(start: TaskStart) -> bool:
    """Whether the task's monitoring profile, if it has one, wants its metrics sent."""
    profile = start.monitoring_profile
    return profile is None or (profile.get("enabled") is True and profile.get("export_to_mqtt") is True)
