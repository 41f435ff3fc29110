"""Resource metrics of proplets and tasks in the database: written in batches, a bounded number kept of each."""

from collections import defaultdict
from typing import Any

from sqlalchemy import Table, delete, func, insert, select

from propeller.manager import tables
from propeller.protocol.proplet import PropletMetrics, TaskMetrics
from propeller.store.database import Database, DatabaseConnection

_MAX_UNWRITTEN = 10_000
"""Of each kind; when the database is away for long, the oldest are dropped."""


class MetricsRepository:
    """Collects metrics at any rate; ``write`` stores them, periodically and before they are read."""

    def __init__(self, database: Database, *, keep: int = 1000) -> None:
        """``keep`` is how many of the newest metrics of each proplet and each task stay."""
        self._database, self._keep = database, keep
        self._unwritten: dict[Table, list[dict[str, Any]]] = defaultdict(list)
        self._written_since_pruning: dict[Table, set[str]] = defaultdict(set)

    def add_proplet_metrics(self, metrics: PropletMetrics) -> None:
        """Add what a proplet used of its device."""
        fields = metrics.model_dump(mode="json", exclude_none=True)
        self._add(tables.proplet_metrics, metrics.proplet_id, fields)

    def add_task_metrics(self, metrics: TaskMetrics) -> None:
        """Add what a task used of its device."""
        self._add(tables.task_metrics, metrics.task_id, metrics.model_dump(mode="json", exclude_none=True))

    async def of_proplet(self, proplet_id: str, offset: int, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many metrics of a proplet there are, and a page of them, the oldest first."""
        return await self._page(tables.proplet_metrics, proplet_id, offset, limit)

    async def of_task(self, task_id: str, offset: int, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many metrics of a task there are, and a page of them, the oldest first."""
        return await self._page(tables.task_metrics, task_id, offset, limit)

    async def write(self) -> None:
        """Write new metrics to the database; those of unknown tasks, and of tasks of another proplet, are dropped."""
        unwritten, self._unwritten = self._unwritten, defaultdict(list)
        if not unwritten:
            return
        try:
            async with self._database.transaction() as connection:
                for table, rows in unwritten.items():
                    known = rows
                    if table is tables.task_metrics:
                        known = await _only_of_own_tasks(connection, rows)
                    if known:
                        await connection.execute(insert(table), known)
                        self._written_since_pruning[table].update(row["owner"] for row in known)
        except BaseException:
            for table, rows in unwritten.items():
                self._unwritten[table][:0] = rows
            raise

    async def prune(self) -> None:
        """Delete the oldest metrics over the limit, of those proplets and tasks that have new ones."""
        written, self._written_since_pruning = self._written_since_pruning, defaultdict(set)
        for table, owners in written.items():
            for owner in owners:
                newest_over = (
                    select(table.c.seq)
                    .where(table.c.owner == owner)
                    .order_by(table.c.seq.desc())
                    .offset(self._keep)
                    .limit(1)
                )
                async with self._database.transaction() as connection:
                    last = await connection.scalar(newest_over)
                    if last is not None:
                        await connection.execute(
                            delete(table).where(table.c.owner == owner, table.c.seq <= last)
                        )

    def _add(self, table: Table, owner: str, fields: dict[str, Any]) -> None:
        rows = self._unwritten[table]
        rows.append({"owner": owner, "sample": fields})
        if len(rows) > _MAX_UNWRITTEN:
            del rows[0]

    async def _page(
        self, table: Table, owner: str, offset: int, limit: int
    ) -> tuple[int, list[dict[str, Any]]]:
        await self.write()
        mine = table.c.owner == owner
        async with self._database.transaction() as connection:
            total = await connection.scalar(select(func.count()).select_from(table).where(mine))
            rows = await connection.execute(
                select(table.c.sample).where(mine).order_by(table.c.seq).offset(offset).limit(limit)
            )
            return int(total or 0), [row.sample for row in rows]


async def _only_of_own_tasks(
    connection: DatabaseConnection, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    owners = {row["owner"] for row in rows}
    found = await connection.execute(
        select(tables.tasks.c.id, tables.tasks.c.proplet_id).where(tables.tasks.c.id.in_(owners))
    )
    runs_on = {row.id: row.proplet_id for row in found}
    return [row for row in rows if runs_on.get(row["owner"]) == row["sample"]["proplet_id"]]
