"""Rounds in SQL: one transaction for each event, so that what was answered is there after a crash."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
import sqlalchemy.exc
from sqlalchemy.ext.asyncio import AsyncConnection

from propeller.coordinator.rounds import AcceptedUpdate, RoundRecord
from propeller.errors import UnavailableError
from propeller.fl.round import Round, RoundPlan, RoundState
from propeller.fl.tensors import TensorSpec
from propeller.protocol.rounds import Experiment
from propeller.store.database import Database
from propeller.store.migrations import Schema, migrate

tables = sa.MetaData()
_MAX_QUERY_VALUES = 500
"""Values of one query: older SQLite takes 999."""

SCHEMA = Schema("coordinator", tables, "propeller.coordinator.migrations")

_rounds = sa.Table(
    "rounds",
    tables,
    sa.Column("round_id", sa.String(128), primary_key=True),
    sa.Column("experiment", sa.JSON, nullable=False),
    sa.Column("shapes", sa.JSON, nullable=False),
    sa.Column("base_version", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("model_version", sa.BigInteger),
    sa.Column("reason", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False, index=True),
    sa.Column("deadline", sa.Double, nullable=False),
    sa.Column("closed_at", sa.Double),
    sa.Column("ended_at", sa.Double, index=True),
    sa.Column("timings", sa.JSON, nullable=False),
    sa.Column("announced", sa.Boolean, nullable=False),
)

_updates = sa.Table(
    "updates",
    tables,
    sa.Column("round_id", sa.String(128), sa.ForeignKey(_rounds.c.round_id), primary_key=True),
    sa.Column("proplet_id", sa.String(128), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, index=True),
    sa.Column("num_samples", sa.BigInteger, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("received_at", sa.Double, nullable=False),
)

_failures = sa.Table(
    "failures",
    tables,
    sa.Column("round_id", sa.String(128), sa.ForeignKey(_rounds.c.round_id), primary_key=True),
    sa.Column("proplet_id", sa.String(128), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
)


class StoreConflictError(UnavailableError):
    """A round is not in the database as this process left it: another coordinator uses the same database.

    The round is read back before its next event, so the same request again is answered by what is stored.
    """


class RoundStore:
    """The rounds and the headers of their updates. One coordinator process owns a database."""

    def __init__(self, database: Database) -> None:
        """Use ``database``; ``create`` makes its tables."""
        self._database = database

    async def create(self) -> None:
        """Make the tables, or bring them to the newest revision.

        Raises:
            StartError: the database cannot be used.
        """
        await migrate(self._database, SCHEMA)

    async def add(self, record: RoundRecord) -> bool:
        """Store a new round; ``False``, and nothing stored, if there is one of its id."""
        row = {
            "round_id": record.round_id,
            "experiment": record.experiment.model_dump(mode="json"),
            "shapes": [[name, list(shape), dtype] for name, (dtype, shape) in record.specs.items()],
            "base_version": record.round.plan.base_version,
            "created_at": record.created_at,
            "deadline": record.deadline,
            **_mutable_columns(record),
        }
        try:
            async with self._database.transaction() as connection:
                await connection.execute(_rounds.insert(), row)
        except sa.exc.IntegrityError:
            return False
        return True

    async def save(
        self, before: RoundRecord, after: RoundRecord, update: AcceptedUpdate | None = None
    ) -> None:
        """Store what an event changed, with the update that it accepted, in one transaction.

        Raises:
            StoreConflictError: the round is not in the state ``before``.
        """
        async with self._database.transaction() as connection:
            if update is not None:
                await connection.execute(
                    _updates.insert(),
                    {
                        "round_id": after.round_id,
                        "proplet_id": update.proplet_id,
                        "digest": update.digest,
                        "num_samples": update.num_samples,
                        "metrics": dict(update.metrics),
                        "size": update.size,
                        "received_at": update.received_at,
                    },
                )
            await _save_failures(connection, before, after)
            changed = await connection.execute(
                _rounds.update()
                .where(_rounds.c.round_id == after.round_id, _rounds.c.state == before.state.value)
                .values(**_mutable_columns(after))
            )
            if changed.rowcount != 1:
                raise StoreConflictError(
                    f"round {after.round_id} is not {before.state} in the database any more: "
                    "let only one coordinator use it"
                )

    async def mark_announced(self, round_id: str) -> None:
        """Remember that a completed round was announced."""
        async with self._database.transaction() as connection:
            await connection.execute(
                _rounds.update().where(_rounds.c.round_id == round_id).values(announced=True)
            )

    async def load(self, round_id: str) -> RoundRecord | None:
        """A round with its updates; ``None`` if there is none of this id."""
        found = await self._load(_rounds.select().where(_rounds.c.round_id == round_id))
        return found[0] if found else None

    async def load_open(self) -> list[RoundRecord]:
        """Every round that is not over, the oldest first."""
        states = [state.value for state in RoundState if not state.is_over]
        return await self._load(
            _rounds.select().where(_rounds.c.state.in_(states)).order_by(_rounds.c.created_at)
        )

    async def list_summaries(self, offset: int, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many rounds there are, and the summaries of some, the newest first."""
        newest = _rounds.select().order_by(_rounds.c.created_at.desc(), _rounds.c.round_id)
        async with self._database.read() as connection:
            total = (await connection.execute(sa.select(sa.func.count()).select_from(_rounds))).scalar_one()
            rows = (await connection.execute(newest.offset(offset).limit(limit))).all()
            # The updates are counted, not read: a page of large rounds must stay cheap.
            counts = await connection.execute(
                sa.select(_updates.c.round_id, sa.func.count())
                .where(_updates.c.round_id.in_([row.round_id for row in rows]))
                .group_by(_updates.c.round_id)
            )
            update_counts = {row[0]: row[1] for row in counts}
        return total, [
            {**_read_record(row, ()).summary(), "num_updates": update_counts.get(row.round_id, 0)}
            for row in rows
        ]

    async def last_completed(self) -> tuple[str, int] | None:
        """The id and the model version of the round that completed last."""
        query = (
            sa.select(_rounds.c.round_id, _rounds.c.model_version)
            .where(_rounds.c.state == RoundState.COMPLETED.value)
            .order_by(_rounds.c.ended_at.desc())
            .limit(1)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else (row[0], row[1])

    async def unannounced(self) -> list[tuple[str, int]]:
        """Ids and model versions of completed rounds that were not announced, in order of their end."""
        query = (
            sa.select(_rounds.c.round_id, _rounds.c.model_version)
            .where(_rounds.c.state == RoundState.COMPLETED.value, _rounds.c.announced.is_(sa.false()))
            .order_by(_rounds.c.ended_at)
        )
        async with self._database.read() as connection:
            return [(row[0], row[1]) for row in await connection.execute(query)]

    async def completed_among(self, digests: Sequence[str]) -> set[str]:
        """Which of these updates are of completed rounds, by their digests."""
        found: set[str] = set()
        async with self._database.read() as connection:
            for some in _batches(digests):
                query = (
                    sa.select(_updates.c.digest)
                    .join(_rounds, _rounds.c.round_id == _updates.c.round_id)
                    .where(_updates.c.digest.in_(some))
                    .where(_rounds.c.state == RoundState.COMPLETED.value)
                )
                found |= set((await connection.execute(query)).scalars())
        return found

    async def failed_before(self, moment: float, digests: Sequence[str]) -> list[str]:
        """The ids of the rounds that failed before a moment (Unix seconds) and have updates among these digests."""
        found: set[str] = set()
        async with self._database.read() as connection:
            for some in _batches(digests):
                query = (
                    sa.select(_rounds.c.round_id)
                    .join(_updates, _updates.c.round_id == _rounds.c.round_id)
                    .where(_updates.c.digest.in_(some))
                    .where(_rounds.c.state == RoundState.FAILED.value, _rounds.c.ended_at < moment)
                )
                found |= set((await connection.execute(query)).scalars())
        return sorted(found)

    async def _load(self, query: "sa.Select[Any]") -> list[RoundRecord]:
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
            return [
                _read_record(
                    row,
                    await _updates_of(connection, row.round_id),
                    await _failures_of(connection, row.round_id),
                )
                for row in rows
            ]


async def _save_failures(connection: AsyncConnection, before: RoundRecord, after: RoundRecord) -> None:
    old, new = before.round.failures, after.round.failures
    for name in old:
        if old[name] != new.get(name):
            await connection.execute(
                _failures.delete().where(
                    _failures.c.round_id == after.round_id, _failures.c.proplet_id == name
                )
            )
    added = [
        {"round_id": after.round_id, "proplet_id": name, "reason": reason}
        for name, reason in new.items()
        if old.get(name) != reason
    ]
    if added:
        await connection.execute(_failures.insert(), added)


async def _failures_of(connection: AsyncConnection, round_id: str) -> dict[str, str]:
    query = sa.select(_failures.c.proplet_id, _failures.c.reason).where(_failures.c.round_id == round_id)
    return {row[0]: row[1] for row in await connection.execute(query)}


async def _updates_of(connection: AsyncConnection, round_id: str) -> Iterable["sa.Row[Any]"]:
    query = _updates.select().where(_updates.c.round_id == round_id).order_by(_updates.c.received_at)
    return (await connection.execute(query)).all()


def _mutable_columns(record: RoundRecord) -> dict[str, Any]:
    return {
        "state": record.state.value,
        "model_version": record.round.model_version,
        "reason": record.round.reason,
        "closed_at": record.closed_at,
        "ended_at": record.ended_at,
        "timings": dict(record.timings),
        "announced": record.announced,
    }


def _read_record(
    row: "sa.Row[Any]", updates: Iterable["sa.Row[Any]"], failures: Mapping[str, str] | None = None
) -> RoundRecord:
    experiment = Experiment.model_validate(row.experiment)
    accepted = {
        one.proplet_id: AcceptedUpdate(
            one.proplet_id, one.digest, one.num_samples, one.metrics, one.size, one.received_at
        )
        for one in updates
    }
    plan = RoundPlan(
        row.round_id,
        tuple(experiment.participants),
        row.base_version,
        experiment.k_of_n,
        experiment.min_updates,
    )
    current = Round(
        plan,
        RoundState(row.state),
        {name: one.digest for name, one in accepted.items()},
        row.model_version,
        row.reason,
        failures or {},
    )
    return RoundRecord(
        current,
        experiment,
        # A round from before there were dtypes has none here; nothing is lost in F64.
        {name: TensorSpec((dtype or ["F64"])[0], tuple(shape)) for name, shape, *dtype in row.shapes},
        row.created_at,
        accepted,
        row.closed_at,
        row.ended_at,
        row.timings,
        row.announced,
    )


def _batches(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), _MAX_QUERY_VALUES):
        yield values[start : start + _MAX_QUERY_VALUES]
