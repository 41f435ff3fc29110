"""Tasks for every proplet that is alive: a task for each, its parts, which run as any other.

absmach/propeller's manager publishes one start for everybody, and keeps the result that came last. Here each proplet has a
part of its own, whose end, results and loss are known as those of other tasks; they end the task that they are parts of.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from propeller.errors import ConflictError, NotFoundError, UnavailableError
from propeller.manager.dispatcher import Dispatcher
from propeller.manager.fleet import Fleet, PropletRecord
from propeller.manager.task import Task, TaskState
from propeller.manager.task_repository import TaskRepository
from propeller.manager.task_runner import TaskRunner, no_program
from propeller.process.background import gather_or_cancel
from propeller.process.keyed_locks import KeyedLocks
from propeller.process.logs import get_logger

log = get_logger("manager")

_AT_ONCE = 10
"""Parts that are started or stopped at the same time: each start may carry a program."""


class Broadcasts:
    """Starts and stops tasks of clients: those for every proplet, and others."""

    def __init__(
        self,
        repository: TaskRepository,
        locks: KeyedLocks,
        fleet: Fleet,
        dispatcher: Dispatcher,
        runner: TaskRunner,
    ) -> None:
        """``locks`` are those of the tasks, held by whoever changes one; ``runner`` runs each part."""
        self._repository, self._locks, self._fleet = repository, locks, fleet
        self._dispatcher, self._runner = dispatcher, runner

    async def start(self, task_id: str) -> None:
        """Run a task that does not run: on every proplet that is alive now, if it is for all.

        Raises:
            PropellerError: as ``TaskRunner.start``.
        """
        if not (await self._repository.get(task_id)).spec.broadcast:
            await self._runner.start(task_id)
            return
        async with self._locks.holding(task_id):
            task = await self._repository.get(task_id)
            if task.active:
                raise ConflictError(f"task {task_id} is already running: GET /tasks/{task_id} has its parts")
            program = await self._repository.program(task_id) if task.file_preview else None
            if program is None and not task.spec.image_url:
                raise no_program(task_id)
            proplets = self._proplets(task)
            for proplet in proplets[:1]:
                self._dispatcher.encode_start(task, proplet, program)  # it fits in a message
            await self._dispatcher.require_connection()
            moment = self._fleet.clock()
            begun = replace(
                task,
                state=TaskState.RUNNING,
                error=None,
                ended_by=None,
                start_time=moment,
                finish_time=None,
                updated_at=moment,
            )
            parts = [_part(begun, proplet) for proplet in proplets]
            if not await self._repository.begin_parts(begun, parts):
                raise NotFoundError(f"no task {task_id}: it was deleted just now")
            # What does not go out now goes out later, as after a crash.
            await _some_at_once(
                lambda part_id: self._runner.resume(part_id, None), [part.id for part in parts]
            )
        log.info("task started on every proplet", task_id=task_id, parts=len(parts), name=task.spec.name)

    async def stop(self, task_id: str, error: str = "stopped by request") -> None:
        """End a running task and all of its parts; one that has ended stays as it is.

        Raises:
            PropellerError: as ``TaskRunner.stop``.
        """
        if not (await self._repository.get(task_id)).spec.broadcast:
            await self._runner.stop(task_id, error)
            return
        async with self._locks.holding(task_id):
            task = await self._repository.get(task_id)
            if task.state is TaskState.PENDING:
                raise ConflictError(f"task {task_id} is not running (state Pending)")
            active = [part.id for part in await self._repository.parts([task_id]) if part.active]
            await _some_at_once(lambda part_id: self._runner.stop(part_id, error), active)
            await self._repository.end_if_parts_have(task_id, self._fleet.clock())

    def _proplets(self, task: Task) -> list[PropletRecord]:
        """Those that have a part of a task."""
        alive = self._fleet.alive()
        if not alive:
            raise UnavailableError(
                "no proplet is alive: start one and see GET /proplets?status=active, then try again"
            )
        # Others would run what is only to be fetched.
        able = [proplet for proplet in alive if proplet.directed or task.spec.kind != "prefetch"]
        if not able:
            raise ConflictError(
                f"task {task.id} is to be fetched and not run, which proplets of absmach/propeller do not know"
            )
        return able


def _part(task: Task, proplet: PropletRecord) -> Task:
    return Task(
        id=str(uuid.uuid4()),
        spec=task.spec.model_copy(update={"broadcast": False, "proplet_id": proplet.id, "metadata": None}),
        state=TaskState.SCHEDULED,
        created_at=task.start_time or task.created_at,
        file_preview=task.file_preview,
        proplet_id=proplet.id,
        parent_id=task.id,
        start_time=task.start_time,
        updated_at=task.start_time,
    )


async def _some_at_once(work: Callable[[str], Awaitable[None]], task_ids: Sequence[str]) -> None:
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(task_id: str) -> None:
        async with slots:
            await work(task_id)

    await gather_or_cancel(*(one(task_id) for task_id in task_ids))
