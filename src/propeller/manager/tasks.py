"""Tasks: made, read, changed, deleted."""

import uuid
from dataclasses import replace
from typing import Any

from propeller.errors import ConflictError, InvalidError, NotFoundError, TooLargeError
from propeller.manager.dispatch import Dispatcher
from propeller.manager.proplets import Fleet
from propeller.manager.task import State, Task, TaskChange, TaskSpec, check_program, preview, read_program
from propeller.manager.task_store import TaskStore
from propeller.process.keyed_locks import KeyedLocks
from propeller.process.logs import get_logger

log = get_logger("manager")


class Tasks:
    """What can be done with tasks that need not run for it."""

    def __init__(self, store: TaskStore, fleet: Fleet, dispatcher: Dispatcher) -> None:
        self.store, self._fleet, self._dispatcher = store, fleet, dispatcher
        self.locks = KeyedLocks()
        """Held by whoever changes a task."""

    async def create(self, fields: dict[str, Any]) -> Task:
        """Make a task from the object that a client sent.

        Raises:
            PropellerError: a field is wrong, or the program is too large for a message.
        """
        spec = TaskSpec.decode(fields)
        file = self._fits(read_program(fields["file"])) if fields.get("file") else None
        _check_encryption(spec, uploaded=file is not None)
        task = Task(
            id=str(uuid.uuid4()),
            spec=spec,
            state=State.PENDING,
            created_at=self._fleet.clock(),
            file_preview=preview(file) if file else None,
            proplet_id=spec.proplet_id,
        )
        await self.store.add(task, file)
        log.info("task created", task_id=task.id, name=spec.name)
        return task

    async def get(self, task_id: str) -> Task:
        """A task.

        Raises:
            NotFoundError: there is none with this id.
        """
        task = await self.store.get(task_id)
        if task is None:
            raise NotFoundError(f"no task {task_id}")
        return task

    async def change(self, task_id: str, fields: dict[str, Any]) -> Task:
        """Change what is given and neither ``null`` nor an empty name.

        A program that is shown with its middle left out, as in answers, means no new one.

        Raises:
            PropellerError: a field is wrong; 404; 409, the task would move while it runs.
        """
        fields = {name: value for name, value in fields.items() if value is not None}
        if fields.get("name") == "":
            del fields["name"]
        change = TaskChange.decode(fields)
        given = {name: getattr(change, name) for name in change.model_fields_set}
        async with self.locks.holding(task_id):
            task = await self.get(task_id)
            text = fields.get("file")
            new_program = bool(text) and text != task.file_preview
            file = self._fits(read_program(text)) if new_program else None
            spec = task.spec.model_copy(update=given)
            _check_encryption(spec, uploaded=file is not None or task.file_preview is not None)
            return await self._save_change(task, spec, file)

    async def upload(self, task_id: str, content: bytes) -> Task:
        """Give a task its program.

        Raises:
            PropellerError: it is not Wasm or too large; 404.
        """
        file = self._fits(check_program(content))
        async with self.locks.holding(task_id):
            task = await self.get(task_id)
            _check_encryption(task.spec, uploaded=True)
            return await self._save_change(task, task.spec, file)

    async def delete(self, task_id: str) -> None:
        """Delete a task.

        Raises:
            PropellerError: 404; 409, it runs.
        """
        async with self.locks.holding(task_id):
            task = await self.get(task_id)
            if task.active:
                raise ConflictError(f"task {task_id} is running: stop it first (POST /tasks/{task_id}/stop)")
            await self.store.remove(task_id)
        log.info("task deleted", task_id=task_id)

    async def _save_change(self, task: Task, spec: TaskSpec, file: bytes | None) -> Task:
        moved = spec.proplet_id != task.spec.proplet_id
        if moved and task.active:
            raise ConflictError(f"task {task.id} is running: stop it before it gets another proplet_id")
        changed = replace(
            task,
            spec=spec,
            proplet_id=spec.proplet_id if moved else task.proplet_id,
            file_preview=preview(file) if file else task.file_preview,
            updated_at=self._fleet.clock(),
        )
        await self.store.replace(changed, State, file)
        return changed

    def _fits(self, content: bytes) -> bytes:
        limit = self._dispatcher.max_program_bytes
        if len(content) > limit:
            raise TooLargeError(
                f"file: {len(content)} bytes do not fit in one MQTT message (limit {limit}): "
                "push the program to an OCI registry and set image_url",
            )
        return content


def _check_encryption(spec: TaskSpec, *, uploaded: bool) -> None:
    if spec.encrypted and uploaded:
        raise InvalidError("encrypted: an encrypted program comes from image_url, not from file")
