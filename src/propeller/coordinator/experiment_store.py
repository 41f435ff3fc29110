"""Experiments in SQL: with what an event changed go the events that are told of it and the round that it starts, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
import sqlalchemy.exc

from propeller.coordinator.experiment_records import ExperimentRecord
from propeller.coordinator.round_events import NewEvent
from propeller.coordinator.store import Also, StoreConflictError
from propeller.coordinator.tables import experiment_events as _events
from propeller.coordinator.tables import experiments as _experiments
from propeller.store.database import Database, DatabaseConnection

# Statements of every round are made once: to make one takes longer than SQLite takes to execute it.
_INSERT_EVENTS = _events.insert()
_CHANGE_EXPERIMENT = _experiments.update().where(
    _experiments.c.id == sa.bindparam("of_id"), _experiments.c.state == sa.bindparam("in_state")
)
_EVENTS_AFTER = (
    _events.select()
    .where(_events.c.experiment_id == sa.bindparam("of_id"), _events.c.seq > sa.bindparam("after"))
    .order_by(_events.c.seq)
    .limit(sa.bindparam("most"))
)


@dataclass(frozen=True)
class StoredEvent:
    """Something that happened in an experiment.

    Attributes:
        seq: its number in the experiment, from 1, without gaps but where old ones were removed.
        kind: what happened.
        at: when, in Unix seconds.
        data: about it.
    """

    seq: int
    kind: str
    at: float
    data: dict[str, Any]


class ExperimentStore:
    """The experiments and their events."""

    def __init__(self, database: Database) -> None:
        """Use ``database``, whose tables ``RoundStore.create`` makes."""
        self._database = database

    async def add(self, record: ExperimentRecord, events: Sequence[NewEvent]) -> ExperimentRecord | None:
        """Store a new experiment with its first events; ``None``, and nothing stored, if there is one of its id."""
        row = {
            "id": record.id,
            "spec": record.spec.to_json(),
            "strategy": dict(record.strategy),
            "created_at": record.created_at,
            **record.columns(),
        }
        try:
            async with self._database.transaction() as connection:
                await connection.execute(_experiments.insert(), row)
                await _insert_events(connection, record, events)
        except sa.exc.IntegrityError:
            return None
        return replace(record, last_seq=len(events))

    async def transact(self, also: Also) -> None:
        """Write in one transaction."""
        async with self._database.transaction() as connection:
            await also(connection)

    async def load(self, experiment_id: str) -> ExperimentRecord | None:
        """An experiment; ``None`` if there is none of this id."""
        found = await self._load(_experiments.select().where(_experiments.c.id == experiment_id))
        return found[0] if found else None

    async def load_open(self) -> list[ExperimentRecord]:
        """Every experiment that is not settled, the oldest first."""
        query = _experiments.select().where(_experiments.c.settled.is_(sa.false()))
        return await self._load(query.order_by(_experiments.c.created_at, _experiments.c.id))

    async def settle(self, experiment_id: str) -> None:
        """Remember that nothing is left to be done about an experiment that is over."""
        async with self._database.transaction() as connection:
            await connection.execute(
                _experiments.update().where(_experiments.c.id == experiment_id).values(settled=True)
            )

    async def page(
        self, offset: int, limit: int, *, state: str | None = None, name: str | None = None
    ) -> tuple[int, list[ExperimentRecord]]:
        """How many experiments there are, of a state or name if one is given, and some of them, the newest first."""
        matching = sa.and_(
            sa.true() if state is None else _experiments.c.state == state,
            sa.true() if name is None else _experiments.c.spec["name"].as_string() == name,
        )
        count = sa.select(sa.func.count()).select_from(_experiments).where(matching)
        query = _experiments.select().where(matching).offset(offset).limit(limit)
        async with self._database.read() as connection:
            total = (await connection.execute(count)).scalar_one()
        return total, await self._load(query.order_by(_experiments.c.created_at.desc(), _experiments.c.id))

    async def events(self, experiment_id: str, after: int, limit: int) -> list[StoredEvent]:
        """The events after number ``after``, the first ones if there are more than ``limit``."""
        which = {"of_id": experiment_id, "after": after, "most": limit}
        async with self._database.read() as connection:
            rows = (await connection.execute(_EVENTS_AFTER, which)).all()
        return [StoredEvent(row.seq, row.kind, row.at, row.data) for row in rows]

    async def remove_events_before(self, moment: float) -> int:
        """Remove the events of experiments that were over before a moment (Unix seconds), but the end of each.

        Returns:
            Of how many experiments.
        """
        first = _events.alias()
        has_all = sa.exists().where(first.c.experiment_id == _experiments.c.id, first.c.seq == 1)
        over = sa.select(_experiments.c.id).where(
            _experiments.c.settled.is_(sa.true()), _experiments.c.ended_at < moment, has_all
        )
        async with self._database.read() as connection:
            ids = (await connection.execute(over)).scalars().all()
        for experiment_id in ids:  # one by one: each may have very many
            mine = _events.c.experiment_id == experiment_id
            end = sa.select(sa.func.max(_events.c.seq)).where(mine, _events.c.kind == "state")
            async with self._database.transaction() as connection:
                last = (await connection.execute(end)).scalar_one()
                await connection.execute(_events.delete().where(mine, _events.c.seq < last))
        return len(ids)

    async def _load(self, query: "sa.Select[Any]") -> list[ExperimentRecord]:
        last = sa.select(_events.c.experiment_id, sa.func.max(_events.c.seq).label("seq")).group_by(
            _events.c.experiment_id
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
            ids = [row["id"] for row in rows]
            found = await connection.execute(last.where(_events.c.experiment_id.in_(ids)))
            numbers = {row.experiment_id: row.seq for row in found}
        return [ExperimentRecord.read(dict(row), numbers.get(row["id"], 0)) for row in rows]


async def write(
    connection: DatabaseConnection,
    before: ExperimentRecord,
    after: ExperimentRecord,
    events: Sequence[NewEvent],
) -> None:
    """Store what an event changed as part of a larger transaction.

    Raises:
        StoreConflictError: the experiment is not as this process left it.
    """
    columns = after.columns()
    if columns != before.columns():
        which = {"of_id": after.id, "in_state": before.state.value}
        changed = await connection.execute(_CHANGE_EXPERIMENT, {**which, **columns})
        if changed.rowcount != 1:
            raise StoreConflictError(
                f"experiment {after.id} is not {before.state} in the database any more: "
                "let only one coordinator use it"
            )
    await _insert_events(connection, before, events)


async def _insert_events(
    connection: DatabaseConnection, before: ExperimentRecord, events: Sequence[NewEvent]
) -> None:
    if events:
        rows = [{"experiment_id": before.id, **vars(event)} for event in number(before, events)]
        await connection.execute(_INSERT_EVENTS, rows)


def number(before: ExperimentRecord, events: Sequence[NewEvent]) -> list[StoredEvent]:
    """New events of an experiment as they are stored."""
    return [
        StoredEvent(seq, event.kind, event.at, dict(event.data))
        for seq, event in enumerate(events, before.last_seq + 1)
    ]
