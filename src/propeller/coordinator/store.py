"""Rounds in SQL: one transaction for each event, so that what was answered is there after a crash."""

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
import sqlalchemy.exc
from pydantic import ValidationError

from propeller.coordinator.rounds import AcceptedUpdate, RoundChange, RoundRecord, RoundRequest
from propeller.coordinator.tables import SCHEMA
from propeller.coordinator.tables import experiments as _experiments
from propeller.coordinator.tables import failures as _failures
from propeller.coordinator.tables import rounds as _rounds
from propeller.coordinator.tables import updates as _updates
from propeller.coordinator.transfer import Transfer
from propeller.errors import UnavailableError
from propeller.fl.round import Round, RoundPlan, RoundState
from propeller.fl.tensors import TensorSpec
from propeller.protocol.rounds import Experiment, RoundStart, model_uri
from propeller.store.database import Database, DatabaseConnection
from propeller.store.migrations import migrate

_WAVE = "wave"
"""In the column ``kind``: a round of training that makes no version."""

# Statements of every round are made once: to make one takes longer than SQLite takes to execute it.
_INSERT_ROUND, _INSERT_UPDATE = _rounds.insert(), _updates.insert()
_OF_ID = _rounds.select().where(_rounds.c.round_id == sa.bindparam("of_round"))
_CHANGE_ROUND = _rounds.update().where(
    _rounds.c.round_id == sa.bindparam("of_round"), _rounds.c.state == sa.bindparam("in_state")
)

_MAX_QUERY_VALUES = 500
"""Values of one query: older SQLite takes 999."""

ROUNDS_AT_ONCE = 50
"""Rounds of an experiment that are in memory at a time, each with the updates of all its participants."""

Also = Callable[[DatabaseConnection], Awaitable[None]]
"""What else a transaction writes."""


_EXPERIMENT_IS_SETTLED = (
    sa.exists()
    .where(_experiments.c.id == _rounds.c.experiment_id)
    .where(_experiments.c.settled.is_(sa.true()))
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
        try:
            async with self._database.transaction() as connection:
                await insert_round(connection, record)
        except sa.exc.IntegrityError:
            return False
        return True

    async def save(self, changes: Sequence[RoundChange], *also: Also) -> None:
        """Store what events changed one after the other, with the updates that they accepted and what else follows, in one transaction.

        Raises:
            StoreConflictError: the round is not in the state before the first change.
        """
        before, after = changes[0].before, changes[-1].after
        updates = [_update_row(after, change.update) for change in changes if change.update is not None]
        async with self._database.transaction() as connection:
            if updates:
                await connection.execute(_INSERT_UPDATE, updates)
            left_out = before.updates.keys() - after.updates.keys()
            if left_out:
                of_them = _updates.c.proplet_id.in_(left_out)
                await connection.execute(
                    _updates.delete().where(_updates.c.round_id == after.round_id, of_them)
                )
            await _save_failures(connection, before, after)
            which = {"of_round": after.round_id, "in_state": before.state.value}
            changed = await connection.execute(_CHANGE_ROUND, {**which, **_changed_columns(before, after)})
            if changed.rowcount != 1:
                raise StoreConflictError(
                    f"round {after.round_id} is not {before.state} in the database any more: "
                    "let only one coordinator use it"
                )
            for write in also:
                await write(connection)

    async def mark_announced(self, round_id: str) -> None:
        """Remember that a completed round was announced."""
        # If that is lost with the power, the round is announced again: it is announced at least once anyway.
        async with self._database.transaction(durable=False) as connection:
            await connection.execute(
                _rounds.update().where(_rounds.c.round_id == round_id).values(announced=True)
            )

    async def load(self, round_id: str) -> RoundRecord | None:
        """A round with its updates; ``None`` if there is none of this id."""
        found = await self._load(_OF_ID, {"of_round": round_id})
        return found[0] if found else None

    async def load_open(self) -> list[RoundRecord]:
        """Every round that is not over, the oldest first."""
        states = [state.value for state in RoundState if not state.is_over]
        return await self._load(
            _rounds.select().where(_rounds.c.state.in_(states)).order_by(_rounds.c.created_at)
        )

    async def rounds_of(self, experiment_id: str) -> AsyncIterator[list[RoundRecord]]:
        """The rounds of an experiment in the order in which they were created, some at a time: there may be very many."""
        mine = _rounds.select().where(_rounds.c.experiment_id == experiment_id)
        ordered = mine.order_by(_rounds.c.created_at, _rounds.c.round_id).limit(ROUNDS_AT_ONCE)
        found = await self._load(ordered)
        while found:
            yield found
            moment, last = _rounds.c.created_at, found[-1]
            later = sa.or_(
                moment > last.created_at,
                sa.and_(moment == last.created_at, _rounds.c.round_id > last.round_id),
            )
            found = await self._load(ordered.where(later))

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
        """The id and the model version of the round that completed last, of those that made a version."""
        query = (
            sa.select(_rounds.c.round_id, _rounds.c.model_version)
            .where(_rounds.c.state == RoundState.COMPLETED.value, _rounds.c.model_version.is_not(None))
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
            for some in batches(digests):
                query = (
                    sa.select(_updates.c.digest)
                    .join(_rounds, _rounds.c.round_id == _updates.c.round_id)
                    .where(_updates.c.digest.in_(some))
                    .where(_rounds.c.state == RoundState.COMPLETED.value)
                    # Those of waves are merged later, in another round.
                    .where(sa.or_(_rounds.c.kind.is_(None), _rounds.c.kind != _WAVE, _EXPERIMENT_IS_SETTLED))
                )
                found |= set((await connection.execute(query)).scalars())
        return found

    async def failed_before(self, moment: float, digests: Sequence[str]) -> list[str]:
        """The ids of the rounds that failed before a moment (Unix seconds) and have updates among these digests."""
        found: set[str] = set()
        async with self._database.read() as connection:
            for some in batches(digests):
                query = (
                    sa.select(_rounds.c.round_id)
                    .join(_updates, _updates.c.round_id == _rounds.c.round_id)
                    .where(_updates.c.digest.in_(some))
                    .where(_rounds.c.state == RoundState.FAILED.value, _rounds.c.ended_at < moment)
                    .where(sa.or_(_rounds.c.experiment_id.is_(None), _EXPERIMENT_IS_SETTLED))
                )
                found |= set((await connection.execute(query)).scalars())
        return sorted(found)

    async def failed_because(self, reason: str, moment: float) -> list[str]:
        """The ids of rounds by themselves that failed after a moment (Unix seconds), with this in their reason."""
        query = sa.select(_rounds.c.round_id).where(
            _rounds.c.state == RoundState.FAILED.value,
            _rounds.c.experiment_id.is_(None),
            _rounds.c.ended_at > moment,
            _rounds.c.reason.contains(reason, autoescape=True),
        )
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def _load(
        self, query: "sa.Select[Any]", values: Mapping[str, Any] | None = None
    ) -> list[RoundRecord]:
        updates: defaultdict[str, list[sa.Row[Any]]] = defaultdict(list)
        failures: defaultdict[str, dict[str, str]] = defaultdict(dict)
        async with self._database.read() as connection:
            rows = (await connection.execute(query, values)).all()
            for some in batches([row.round_id for row in rows]):
                of_some = _updates.select().where(_updates.c.round_id.in_(some))
                for row in await connection.execute(of_some.order_by(_updates.c.received_at)):
                    updates[row.round_id].append(row)
                for row in await connection.execute(_failures.select().where(_failures.c.round_id.in_(some))):
                    failures[row.round_id][row.proplet_id] = row.reason
        return [_read_record(row, updates[row.round_id], failures[row.round_id]) for row in rows]


async def insert_round(connection: DatabaseConnection, record: RoundRecord) -> None:
    """Store a new round as part of a larger transaction."""
    request, plan = record.request, record.round.plan
    row: dict[str, Any] = {
        "round_id": record.round_id,
        "experiment": request.model_dump(mode="json"),
        "shapes": [[name, list(shape), dtype] for name, (dtype, shape) in record.specs.items()],
        "base_version": plan.base_version,
        "created_at": record.created_at,
        "kind": _WAVE if plan.is_wave else plan.kind,
        **_mutable_columns(record),
    }
    if isinstance(request, RoundStart):
        row |= {
            "experiment_id": request.experiment_id,
            "number": request.number,
            "attempt": request.attempt,
            "strategy": record.strategy,
        }
    await connection.execute(_INSERT_ROUND, row)
    if record.updates:
        await connection.execute(
            _INSERT_UPDATE, [_update_row(record, update) for update in record.updates.values()]
        )


def _update_row(record: RoundRecord, update: AcceptedUpdate) -> dict[str, Any]:
    return {
        "round_id": record.round_id,
        "proplet_id": update.proplet_id,
        "digest": update.digest,
        "num_samples": update.num_samples,
        "metrics": dict(update.metrics),
        "size": update.size,
        "received_at": update.received_at,
        "steps": update.steps,
        "kind": update.kind,
        "corrected": update.corrected,
        "metrics_left_out": update.metrics_left_out and dict(update.metrics_left_out),
        **_transfer_columns(update.transfer),
    }


def _transfer_columns(transfer: Transfer | None) -> dict[str, Any]:
    if transfer is None:
        return dict.fromkeys(("received_bytes", "uncompressed_bytes", "compression", "compression_error"))
    return {
        "received_bytes": transfer.bytes,
        "uncompressed_bytes": transfer.uncompressed_bytes,
        "compression": transfer.compression,
        "compression_error": transfer.error,
    }


def _read_transfer(row: "sa.Row[Any]") -> Transfer | None:
    if row.received_bytes is None:
        return None
    return Transfer(row.received_bytes, row.uncompressed_bytes, row.compression, row.compression_error)


async def _save_failures(connection: DatabaseConnection, before: RoundRecord, after: RoundRecord) -> None:
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


def _changed_columns(before: RoundRecord, after: RoundRecord) -> dict[str, Any]:
    """What an event changed, and the state in any case."""
    old, new = _mutable_columns(before), _mutable_columns(after)
    changed = {name: value for name, value in new.items() if name == "state" or old[name] != value}
    if after.request is not before.request:
        changed["experiment"] = after.request.model_dump(mode="json")  # with the program by digest
    return changed


def _mutable_columns(record: RoundRecord) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "state": record.state.value,
        "model_version": record.round.model_version,
        "reason": record.round.reason,
        "closed_at": record.closed_at,
        "ended_at": record.ended_at,
        "timings": dict(record.timings),
        "announced": record.announced,
        "deadline": record.deadline,
        "started_at": record.started_at,
        "report": dict(record.report),
    }
    if isinstance(record.request, RoundStart):
        plan = record.round.plan
        columns |= {
            "participants": list(plan.participants),
            "k_of_n": plan.k_of_n,
        }
    return columns


def _read_record(
    row: "sa.Row[Any]", updates: Iterable["sa.Row[Any]"], failures: Mapping[str, str] | None = None
) -> RoundRecord:
    accepted = {
        one.proplet_id: AcceptedUpdate(
            one.proplet_id,
            one.digest,
            one.num_samples,
            one.metrics,
            one.size,
            one.received_at,
            one.steps,
            one.kind or "weights",
            _read_transfer(one),
            one.corrected,
            one.metrics_left_out,
        )
        for one in updates
    }
    request, refusal = _read_request(row)
    if isinstance(request, Experiment):
        participants, k_of_n = tuple(request.participants), request.k_of_n
    else:
        participants, k_of_n = tuple(row.participants), row.k_of_n
    is_wave = row.kind == _WAVE
    plan = RoundPlan(
        row.round_id,
        participants,
        row.base_version,
        k_of_n,
        request.min_updates,
        "train" if is_wave else row.kind or "train",
        is_wave,
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
        request,
        # A round from before there were dtypes has none here; nothing is lost in F64.
        {name: TensorSpec((dtype or ["F64"])[0], tuple(shape)) for name, shape, *dtype in row.shapes},
        row.created_at,
        row.created_at if row.number is None else row.started_at,
        accepted,
        row.closed_at,
        row.ended_at,
        row.timings,
        row.announced,
        row.strategy or "fedavg",
        row.report or {},
        refusal,
    )


def _read_request(row: "sa.Row[Any]") -> tuple[RoundRequest, str | None]:
    """What a round was asked to be; or a substitute, and why this version refuses what another one has stored."""
    stored, kind = row.experiment, Experiment if row.number is None else RoundStart
    try:
        return kind.model_validate(stored), None
    except ValidationError as error:
        fields = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        refusal = f"this version of the coordinator refuses what the round was asked to be: {fields}"
    program = str(stored.get("task_wasm_image", ""))
    if row.number is None:
        participants = [name for name in stored.get("participants", ()) if isinstance(name, str)]
        return Experiment.model_construct(
            round_id=row.round_id,
            model_ref=model_uri(row.base_version),
            participants=participants or ["unknown"],
            k_of_n=len(participants) or 1,
            task_wasm_image=program,
        ), refusal
    return RoundStart.model_construct(
        round_id=row.round_id,
        model_uri=model_uri(row.base_version),
        task_wasm_image=program,
        participants=row.participants,
        k_of_n=row.k_of_n,
        experiment_id=row.experiment_id,
        number=row.number,
        attempt=row.attempt,
        merged=stored.get("merged"),  # that there are some keeps their updates
    ), refusal


def batches(values: Sequence[str], size: int = _MAX_QUERY_VALUES) -> Iterator[Sequence[str]]:
    """Values, so many at a time as one query takes, or fewer."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
