"""Tasks in the database. Every change names the states it may start from, so that concurrent ones cannot undo each other."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Text, bindparam, cast, func, insert, or_, select, update

from propeller.errors import NotFoundError
from propeller.manager import tables
from propeller.manager.round_repository import is_open
from propeller.manager.task import ACTIVE_STATES, EndCause, Task, TaskSpec, TaskState
from propeller.store.database import Database, DatabaseConnection

_TASK = tables.tasks.c
# Statements of every round are made once: to make one takes longer than SQLite takes to execute it.
_INSERT = insert(tables.tasks)
_FIND = select(tables.tasks).where(_TASK.id == bindparam("of_id"))
_REPLACE = update(tables.tasks).where(
    _TASK.id == bindparam("of_id"), _TASK.state.in_(bindparam("in_states", expanding=True))
)
_MARK_RUNNING = (
    update(tables.tasks)
    .where(_TASK.id.in_(bindparam("ids", expanding=True)), _TASK.state == int(TaskState.SCHEDULED))
    .values(state=int(TaskState.RUNNING))
)

_PROGRAM = select(tables.task_files.c.content).where(
    tables.task_files.c.task_id
    == select(func.coalesce(_TASK.parent_id, _TASK.id))
    .where(_TASK.id == bindparam("of_id"))
    .scalar_subquery()
)
_NO_RESULTS = [column for column in _TASK if column.name != "results"]
_MAX_ERROR_CHARACTERS = 500

_MAX_COMPARED_AT_ONCE = 1000
_SOME_WITH_METADATA = (
    select(_TASK.seq, _TASK.id, _TASK.spec)
    .where(_TASK.seq > bindparam("after"), cast(_TASK.spec, Text).contains('"metadata"'))
    .order_by(_TASK.seq)
    .limit(bindparam("some"))
)
_MAX_DELETED_AT_ONCE = 500
"""In one transaction: others must not wait for long."""


class TaskRepository:
    """Reads and writes of tasks; each method is one transaction unless it takes a connection."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, task: Task, program: bytes | None = None) -> None:
        """Store a new task, and its program if it was uploaded."""
        async with self._database.transaction() as connection:
            await self.insert(connection, [task])
            if program is not None:
                await _write_program(connection, task.id, program)

    async def insert(self, connection: DatabaseConnection, tasks: Sequence[Task]) -> None:
        """Store new tasks as part of a larger transaction."""
        await connection.execute(_INSERT, [{"id": task.id, **_values(task)} for task in tasks])

    async def find(self, task_id: str) -> Task | None:
        """A task by its id; ``None`` if there is none."""
        async with self._database.read() as connection:
            row = (await connection.execute(_FIND, {"of_id": task_id})).first()
        return None if row is None else _task(row)

    async def get(self, task_id: str) -> Task:
        """A task by its id.

        Raises:
            NotFoundError: there is none.
        """
        task = await self.find(task_id)
        if task is None:
            raise NotFoundError(f"no task {task_id}")
        return task

    async def page(self, offset: int, limit: int) -> tuple[int, list[Task]]:
        """How many tasks there are that are no parts, and a page of them in the order of their creation."""
        whole = _TASK.parent_id.is_(None)
        async with self._database.read() as connection:
            total = await connection.scalar(select(func.count()).select_from(tables.tasks).where(whole))
            rows = await connection.execute(
                select(tables.tasks).where(whole).order_by(_TASK.seq).offset(offset).limit(limit)
            )
            return int(total or 0), [_task(row) for row in rows]

    async def page_with(self, metadata: Mapping[str, Any], offset: int, limit: int) -> tuple[int, list[Task]]:
        """As ``page``, of the tasks whose metadata has all of these fields with these values."""
        found: list[str] = []
        last = -1
        while True:
            # Some at a time: others have their turn between.
            async with self._database.read() as connection:
                rows = (
                    await connection.execute(
                        _SOME_WITH_METADATA, {"after": last, "some": _MAX_COMPARED_AT_ONCE}
                    )
                ).all()
            for row in rows:
                have = row.spec.get("metadata") or {}
                if all(name in have and have[name] == value for name, value in metadata.items()):
                    found.append(row.id)
            if len(rows) < _MAX_COMPARED_AT_ONCE:
                break
            last = rows[-1].seq
        wanted = found[offset : offset + limit]
        async with self._database.read() as connection:
            page = await connection.execute(
                select(tables.tasks).where(_TASK.id.in_(wanted)).order_by(_TASK.seq)
            )
            return len(found), [_task(row) for row in page]

    async def replace(self, task: Task, states: Iterable[TaskState], program: bytes | None = None) -> bool:
        """Write a task if it is still in one of ``states``; whether it was."""
        async with self._database.transaction() as connection:
            which = {"of_id": task.id, "in_states": [int(state) for state in states]}
            result = await connection.execute(_REPLACE, {**which, **_values(task)})
            if result.rowcount and program is not None:
                await _write_program(connection, task.id, program)
            if result.rowcount and task.parent_id is not None and task.ended:
                await _end_parent(connection, task.parent_id, _values(task)["updated_at"])
        return bool(result.rowcount)

    async def begin_parts(self, task: Task, parts: Sequence[Task]) -> bool:
        """Write a task that does not run, which begins, and its parts in the place of earlier ones; ``False`` if it is gone."""
        async with self._database.transaction() as connection:
            which = {"of_id": task.id, "in_states": [int(state) for state in TaskState]}
            if not (await connection.execute(_REPLACE, {**which, **_values(task)})).rowcount:
                return False
            await _delete_parts(connection, [task.id])
            await self.insert(connection, parts)
        return True

    async def parts(self, task_ids: Iterable[str], *, with_results: bool = False) -> list[Task]:
        """The parts of tasks, in the order in which they were begun; without their results unless these are asked for."""
        columns = list(_TASK) if with_results else _NO_RESULTS
        statement = select(*columns).where(_TASK.parent_id.in_(list(task_ids))).order_by(_TASK.seq)
        async with self._database.read() as connection:
            return [_task(row) for row in await connection.execute(statement)]

    async def end_if_parts_have(self, task_id: str, moment: datetime) -> None:
        """End a task of which no part runs any more; the end of the last part does so, if it was not deleted."""
        async with self._database.transaction() as connection:
            await _end_parent(connection, task_id, tables.to_micros(moment))

    async def mark_running(self, task_ids: Sequence[str]) -> None:
        """Mark tasks whose starts the broker has; one whose result came sooner stays ended."""
        # A start whose mark is lost with the power is published again; a proplet drops one that it has.
        async with self._database.transaction(durable=False) as connection:
            await connection.execute(_MARK_RUNNING, {"ids": task_ids})

    async def delete(self, task_id: str) -> None:
        """Delete a task with its program and its metrics."""
        async with self._database.transaction() as connection:
            await _delete(connection, [task_id])

    async def prune(self, keep: int, moment: datetime) -> int:
        """Delete all ended tasks but the ``keep`` newest and those of rounds that are open at ``moment``.

        Parts count as any other, and go with the task that they are of.

        Returns:
            How many were deleted.
        """
        open_rounds = select(tables.rounds.c.round_id).where(is_open(moment))
        ended = _TASK.state.in_([int(TaskState.COMPLETED), int(TaskState.FAILED)])
        newest_over = select(_TASK.seq).where(ended).order_by(_TASK.seq.desc()).offset(keep).limit(1)
        count = 0
        while True:
            async with self._database.transaction() as connection:
                last = await connection.scalar(newest_over)
                if last is None:
                    return count
                old = select(_TASK.id).where(
                    ended,
                    _TASK.seq <= last,
                    _TASK.parent_id.is_(None),
                    or_(_TASK.round_id.is_(None), _TASK.round_id.not_in(open_rounds)),
                )
                found = list(await connection.scalars(old.order_by(_TASK.seq).limit(_MAX_DELETED_AT_ONCE)))
                await _delete(connection, found)
            count += len(found)
            if len(found) < _MAX_DELETED_AT_ONCE:
                return count

    async def program(self, task_id: str) -> bytes | None:
        """A task's uploaded program; that of a part is its task's."""
        async with self._database.read() as connection:
            return await connection.scalar(_PROGRAM, {"of_id": task_id})

    async def in_state(self, *states: TaskState) -> list[Task]:
        """Every task in one of these states, the oldest first."""
        statement = select(tables.tasks).where(_TASK.state.in_([int(state) for state in states]))
        async with self._database.read() as connection:
            return [_task(row) for row in await connection.execute(statement.order_by(_TASK.seq))]

    async def active_of_round(self, round_id: str) -> list[Task]:
        """The tasks of a round that run or are about to, the oldest first."""
        active = _TASK.state.in_([int(state) for state in ACTIVE_STATES])
        statement = select(tables.tasks).where(_TASK.round_id == round_id, active).order_by(_TASK.seq)
        async with self._database.read() as connection:
            return [_task(row) for row in await connection.execute(statement)]

    async def count_active(self) -> dict[str, int]:
        """How many tasks run or are about to on each proplet; one without any is absent."""
        statement = (
            select(_TASK.proplet_id, func.count())
            .where(_TASK.state.in_([int(state) for state in ACTIVE_STATES]), _TASK.proplet_id.is_not(None))
            .group_by(_TASK.proplet_id)
        )
        async with self._database.read() as connection:
            return {row[0]: row[1] for row in await connection.execute(statement)}


async def _end_parent(connection: DatabaseConnection, task_id: str, moment: int) -> None:
    """End a task if none of its parts runs."""
    # Written first, so that of two parts that end at the same time the second one sees the end of the first.
    begun = [int(state) for state in TaskState if state is not TaskState.PENDING]
    held = update(tables.tasks).where(_TASK.id == task_id, _TASK.state.in_(begun)).values(updated_at=moment)
    if not (await connection.execute(held)).rowcount:
        return
    parts = select(_TASK.state, _TASK.proplet_id, _TASK.error).where(_TASK.parent_id == task_id)
    rows = (await connection.execute(parts.order_by(_TASK.seq))).all()
    if any(TaskState(row.state) in ACTIVE_STATES for row in rows):
        return
    failed = [row for row in rows if TaskState(row.state) is TaskState.FAILED]
    error = None
    if failed:
        first = f"{failed[0].proplet_id}: {str(failed[0].error)[:_MAX_ERROR_CHARACTERS]}"
        error = f"{len(failed)} of {len(rows)} parts failed; {first}"
    await connection.execute(
        update(tables.tasks)
        .where(_TASK.id == task_id)
        .values(
            state=int(TaskState.FAILED if failed else TaskState.COMPLETED),
            error=error,
            ended_by=EndCause.RESULT.value,
            finish_time=moment,
        )
    )


async def _delete(connection: DatabaseConnection, task_ids: Sequence[str]) -> None:
    await _delete_parts(connection, task_ids)
    await _delete_all(connection, _TASK.id.in_(task_ids))


async def _delete_parts(connection: DatabaseConnection, task_ids: Sequence[str]) -> None:
    await _delete_all(connection, _TASK.parent_id.in_(task_ids))


async def _delete_all(connection: DatabaseConnection, which: ColumnElement[bool]) -> None:
    found = select(_TASK.id).where(which)
    for statement in (
        tables.task_files.delete().where(tables.task_files.c.task_id.in_(found)),
        tables.task_metrics.delete().where(tables.task_metrics.c.owner.in_(found)),
        tables.tasks.delete().where(which),
    ):
        await connection.execute(statement)


async def _write_program(connection: DatabaseConnection, task_id: str, program: bytes) -> None:
    await connection.execute(tables.task_files.delete().where(tables.task_files.c.task_id == task_id))
    await connection.execute(insert(tables.task_files).values(task_id=task_id, content=program))


def _values(task: Task) -> dict[str, Any]:
    return {
        # Where there is no metadata, its name is not there: few tasks need to be looked at for it.
        "spec": task.spec.model_dump(mode="json", exclude=None if task.spec.metadata else {"metadata"}),
        "file_preview": task.file_preview,
        "state": int(task.state),
        "proplet_id": task.proplet_id,
        "round_id": task.round_id,
        "results": task.results,
        # PostgreSQL cannot hold NUL in a text.
        "error": task.error.replace("\0", "\ufffd") if task.error else None,
        "usage": dict(task.usage) if task.usage else None,
        "ended_by": task.ended_by,
        "stopping_on": task.stopping_on,
        "start_time": tables.to_micros(task.start_time) if task.start_time else None,
        "finish_time": tables.to_micros(task.finish_time) if task.finish_time else None,
        "created_at": tables.to_micros(task.created_at),
        "updated_at": tables.to_micros(task.updated_at) if task.updated_at else None,
        "parent_id": task.parent_id,
    }


def _task(row: Row[Any]) -> Task:
    times = {
        name: tables.from_micros(value) if (value := getattr(row, name)) is not None else None
        for name in ("start_time", "finish_time", "updated_at")
    }
    return Task(
        id=row.id,
        spec=TaskSpec.model_validate(row.spec),
        state=TaskState(row.state),
        created_at=tables.from_micros(row.created_at),
        file_preview=row.file_preview,
        proplet_id=row.proplet_id,
        round_id=row.round_id,
        results=getattr(row, "results", None),
        error=row.error,
        usage=row.usage,
        ended_by=EndCause(row.ended_by) if row.ended_by else None,
        stopping_on=row.stopping_on,
        parent_id=row.parent_id,
        **times,
    )
