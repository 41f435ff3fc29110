"""Tasks as clients create, change and delete them."""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from propeller.errors import ConflictError, InvalidError, TooLargeError
from propeller.manager.fleet import Fleet
from propeller.manager.task import (
    Task,
    TaskChange,
    TaskSpec,
    TaskState,
    check_program,
    decode_program,
    program_preview,
)
from propeller.manager.task_repository import TaskRepository
from propeller.process.keyed_locks import KeyedLocks
from propeller.process.logs import get_logger

log = get_logger("manager")


class TaskService:
    """What clients do with tasks, but for running them."""

    def __init__(
        self, repository: TaskRepository, locks: KeyedLocks, fleet: Fleet, *, max_program_bytes: int
    ) -> None:
        """``locks`` are those of the tasks, held by whoever changes one; ``max_program_bytes`` bounds an upload."""
        self._repository, self._locks, self._fleet = repository, locks, fleet
        self._max_program_bytes = max_program_bytes

    async def create(self, fields: dict[str, Any]) -> Task:
        """Create a task from the object that a client sent.

        Raises:
            InvalidError: a field is wrong.
            TooLargeError: the program does not fit in a message.
        """
        spec = TaskSpec.decode(fields)
        program = self._check_size(decode_program(fields["file"])) if fields.get("file") else None
        _check_encryption(spec, uploaded=program is not None)
        _check_receiver(spec)
        task = Task(
            id=str(uuid.uuid4()),
            spec=spec,
            state=TaskState.PENDING,
            created_at=self._fleet.clock(),
            file_preview=program_preview(program) if program else None,
            proplet_id=spec.proplet_id,
        )
        await self._repository.add(task, program)
        log.info("task created", task_id=task.id, name=spec.name)
        return task

    async def get(self, task_id: str) -> Task:
        """A task.

        Raises:
            NotFoundError: there is none with this id.
        """
        return await self._repository.get(task_id)

    async def page(
        self, offset: int, limit: int, metadata: Mapping[str, Any] | None = None
    ) -> tuple[int, list[Task]]:
        """How many tasks there are, and a page of them in the order of their creation; with ``metadata`` of those that have these fields."""
        if not metadata:
            return await self._repository.page(offset, limit)
        return await self._repository.page_with(metadata, offset, limit)

    async def parts(self, tasks: Iterable[Task], *, with_results: bool = False) -> dict[str, list[Task]]:
        """The parts of those tasks that are for every proplet, by their ids; without results unless these are asked for."""
        found: dict[str, list[Task]] = {task.id: [] for task in tasks if task.spec.broadcast}
        for part in await self._repository.parts(found, with_results=with_results) if found else ():
            found[part.parent_id or ""].append(part)
        return found

    async def count_active(self) -> dict[str, int]:
        """How many tasks run or are about to on each proplet; one without any is absent."""
        return await self._repository.count_active()

    async def change(self, task_id: str, fields: dict[str, Any]) -> Task:
        """Change the fields that are given and neither ``null`` nor an empty name.

        A program without its middle, as answers show it, means no new one.

        Raises:
            InvalidError: a field is wrong.
            TooLargeError: the program does not fit in a message.
            NotFoundError: there is no such task.
            ConflictError: it runs and would get another proplet.
        """
        fields = {name: value for name, value in fields.items() if value is not None}
        if fields.get("name") == "":
            del fields["name"]
        change = TaskChange.decode(fields)
        given = {name: getattr(change, name) for name in change.model_fields_set}
        async with self._locks.holding(task_id):
            task = await self.get(task_id)
            text = fields.get("file")
            has_new_program = bool(text) and text != task.file_preview
            program = self._check_size(decode_program(text)) if has_new_program else None
            spec = task.spec.model_copy(update=given)
            _check_encryption(spec, uploaded=program is not None or task.file_preview is not None)
            _check_receiver(spec)
            return await self._save_change(task, spec, program)

    async def upload(self, task_id: str, content: bytes) -> Task:
        """Set the program of a task.

        Raises:
            InvalidError: it is not Wasm, or the task's program is encrypted.
            TooLargeError: it does not fit in a message.
            NotFoundError: there is no such task.
        """
        program = self._check_size(check_program(content))
        async with self._locks.holding(task_id):
            task = await self.get(task_id)
            _check_encryption(task.spec, uploaded=True)
            return await self._save_change(task, task.spec, program)

    async def delete(self, task_id: str) -> None:
        """Delete a task.

        Raises:
            NotFoundError: there is no such task.
            ConflictError: it runs.
        """
        async with self._locks.holding(task_id):
            task = await self.get(task_id)
            if task.active:
                raise ConflictError(f"task {task_id} is running: stop it first (POST /tasks/{task_id}/stop)")
            await self._repository.delete(task_id)
        log.info("task deleted", task_id=task_id)

    async def _save_change(self, task: Task, spec: TaskSpec, program: bytes | None) -> Task:
        moved = spec.proplet_id != task.spec.proplet_id
        if task.active and (moved or spec.broadcast != task.spec.broadcast):
            raise ConflictError(
                f"task {task.id} is running: stop it before it gets another proplet_id or broadcast"
            )
        changed = replace(
            task,
            spec=spec,
            proplet_id=spec.proplet_id if moved else task.proplet_id,
            file_preview=program_preview(program) if program else task.file_preview,
            updated_at=self._fleet.clock(),
        )
        await self._repository.replace(changed, TaskState, program)
        return changed

    def _check_size(self, program: bytes) -> bytes:
        limit = self._max_program_bytes
        if len(program) > limit:
            raise TooLargeError(
                f"file: {len(program)} bytes do not fit in one MQTT message (limit {limit}): "
                "push the program to an OCI registry and set image_url",
            )
        return program


def _check_receiver(spec: TaskSpec) -> None:
    if spec.broadcast and spec.proplet_id is not None:
        raise InvalidError("broadcast: a task for every proplet has no proplet_id: leave one out")


def _check_encryption(spec: TaskSpec, *, uploaded: bool) -> None:
    if spec.encrypted and uploaded:
        raise InvalidError("encrypted: an encrypted program comes from image_url, not from file")
