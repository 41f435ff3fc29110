"""Started rounds in the database. Each is remembered for good, so that a request or message that comes again starts nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, bindparam, delete, insert, select

from propeller.manager import tables
from propeller.manager.task import TaskState
from propeller.protocol.rounds import SKIPPED, Experiment, RoundStart
from propeller.store.database import Database, DatabaseConnection

_ROUND, _TASK, _WAITING = tables.rounds.c, tables.tasks.c, tables.waiting_rounds.c

# Statements of every round are made once: to make one takes longer than SQLite takes to execute it.
_FIND = select(tables.rounds).where(_ROUND.round_id == bindparam("of_id"))
_INSERT = insert(tables.rounds)
_FORGET = delete(tables.waiting_rounds).where(_WAITING.round_id == bindparam("of_id"))


@dataclass(frozen=True)
class SkippedParticipant:
    """A participant that gets no task, and why."""

    proplet_id: str
    reason: str

    @property
    def failure(self) -> str:
        """The reason as the coordinator is told it."""
        return f"{SKIPPED}{self.reason}"


@dataclass(frozen=True)
class StartedRound:
    """A round whose tasks were created."""

    experiment: Experiment
    started_at: datetime
    skipped: Sequence[SkippedParticipant] = ()

    @property
    def deadline(self) -> datetime:
        """When it ends at the latest: its tasks are started no more after it, and stopped a little later."""
        return self.started_at + timedelta(seconds=self.experiment.timeout_s)

    def to_json(self) -> dict[str, Any]:
        """The answer of ``POST /fl/experiments``."""
        answer: dict[str, Any] = {
            "experiment_id": self.experiment.experiment_id,
            "round_id": self.experiment.round_id,
            "status": "configured",
        }
        if self.skipped:
            answer["skipped"] = [vars(one) for one in self.skipped]
        return answer


def is_open(moment: datetime) -> ColumnElement[bool]:
    """The condition on rounds that their deadline is after ``moment``."""
    return _ROUND.deadline > tables.to_micros(moment)


class RoundRepository:
    """Reads and writes of rounds; each method is one transaction unless it takes a connection."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, connection: DatabaseConnection, started: StartedRound) -> None:
        """Store a new round as part of a larger transaction."""
        values = {
            "round_id": started.experiment.round_id,
            "experiment": started.experiment.to_json(),
            "skipped": [vars(one) for one in started.skipped],
            "deadline": tables.to_micros(started.deadline),
            "created_at": tables.to_micros(started.started_at),
        }
        await connection.execute(_INSERT, values)
        await connection.execute(_FORGET, {"of_id": values["round_id"]})

    async def add_waiting(self, start: RoundStart, moment: datetime) -> datetime:
        """Remember a round that waits for its participants; since when it waits."""
        known = select(_WAITING.since).where(_WAITING.round_id == start.round_id)
        values = {
            "round_id": start.round_id,
            "start": start.model_dump(mode="json", exclude_none=True),
            "since": tables.to_micros(moment),
        }
        async with self._database.transaction() as connection:
            since = await connection.scalar(known)
            if since is not None:
                return tables.from_micros(since)
            await connection.execute(insert(tables.waiting_rounds), values)
        return moment

    async def waiting(self) -> list[RoundStart]:
        """Every round that waits for its participants, the oldest first."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(_WAITING.start).order_by(_WAITING.since))
            return [RoundStart.decode(row.start) for row in rows]

    async def remove_waiting(self, round_id: str) -> None:
        """Forget a round that waits no more."""
        async with self._database.transaction() as connection:
            await connection.execute(_FORGET, {"of_id": round_id})

    async def find(self, round_id: str) -> StartedRound | None:
        """A round by its id; ``None`` if it was never started."""
        async with self._database.read() as connection:  # the start of a round waits for no writer
            row = (await connection.execute(_FIND, {"of_id": round_id})).first()
        if row is None:
            return None
        skipped = [SkippedParticipant(**one) for one in row.skipped]
        return StartedRound(Experiment.decode(row.experiment), tables.from_micros(row.created_at), skipped)

    async def overdue(self, moment: datetime, state: TaskState) -> dict[str, datetime]:
        """The deadlines, by round id, of rounds that ended before ``moment`` and still have tasks in a state."""
        statement = (
            select(_ROUND.round_id, _ROUND.deadline)
            .join(tables.tasks, _TASK.round_id == _ROUND.round_id)
            .where(_TASK.state == int(state), _ROUND.deadline < tables.to_micros(moment))
            .distinct()
        )
        async with self._database.read() as connection:
            rows = await connection.execute(statement)
            return {row.round_id: tables.from_micros(row.deadline) for row in rows}

    async def failures(self, moment: datetime) -> list[tuple[str, str, str]]:
        """Failed and skipped participants of rounds that are open at ``moment``: round id, proplet id, reason."""
        failed = (
            select(_TASK.round_id, _TASK.proplet_id, _TASK.error)
            .join(tables.rounds, _ROUND.round_id == _TASK.round_id)
            .where(_TASK.state == int(TaskState.FAILED), is_open(moment))
        )
        skipped = select(_ROUND.round_id, _ROUND.skipped).where(is_open(moment))
        async with self._database.read() as connection:
            found = [(row[0], row[1], row[2]) for row in await connection.execute(failed)]
            for row in await connection.execute(skipped):
                skipped_here = [SkippedParticipant(**one) for one in row.skipped]
                found += [(row.round_id, one.proplet_id, one.failure) for one in skipped_here]
        return found
