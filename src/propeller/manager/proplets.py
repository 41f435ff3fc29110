"""The fleet: which proplets there are and which of them live.

The fleet is held in memory, as every decision asks for it and heartbeats come at a high rate. A proplet is in the
database before its registration is acknowledged; heartbeats are written there a moment later, in one transaction.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, insert, select, update

from propeller.manager import tables
from propeller.manager.names import name_of
from propeller.process.logs import get_logger
from propeller.protocol.proplet import HeartbeatMessage, Registration
from propeller.protocol.wire import now
from propeller.store.database import Database

log = get_logger("manager")

MISSED = 3
"""Heartbeats that may be missed before a proplet counts as gone (one interval, as in S, makes it flap)."""

HISTORY = 10
LONGEST_INTERVAL_S = 3600.0


@dataclass
class Proplet:
    """A device.

    Attributes:
        id: its client id, which it registered with.
        name: a readable one, made from the id.
        namespace: as it says.
        metadata: what it told of itself (H form), ``None`` from S proplets.
        created_at: when it was first heard of.
        interval_s: between its heartbeats.
        heartbeats: the last ten.
        offline: its last word was that it goes, or its last will.
    """

    id: str
    name: str
    namespace: str
    metadata: dict[str, Any] | None
    created_at: datetime
    interval_s: float
    heartbeats: deque[datetime] = field(default_factory=lambda: deque(maxlen=HISTORY))
    offline: bool = False

    @property
    def directed(self) -> bool:
        """Whether it listens on topics of its own."""
        return bool(self.metadata and self.metadata.get("directed"))

    @property
    def reads_text_inputs(self) -> bool:
        """Whether it takes task inputs as strings: H proplets and ours do, which send metadata."""
        return self.metadata is not None

    @property
    def last_alive_at(self) -> datetime | None:
        """Its last heartbeat."""
        return self.heartbeats[-1] if self.heartbeats else None

    @property
    def window(self) -> timedelta:
        """How long it counts as alive after a heartbeat."""
        return timedelta(seconds=MISSED * self.interval_s)

    def is_alive(self, moment: datetime) -> bool:
        """Whether it lives, as far as its heartbeats tell."""
        last = self.last_alive_at
        return not self.offline and last is not None and moment - last <= self.window


class Fleet:
    """Every proplet that ever registered and was not deleted, in order of registration."""

    def __init__(
        self, database: Database, *, interval_s: float = 10.0, clock: Callable[[], datetime] = now
    ) -> None:
        """``interval_s`` is taken for proplets that do not say how often their heart beats."""
        self._database, self._interval_s, self.clock = database, interval_s, clock
        self._proplets: dict[str, Proplet] = {}
        self._unwritten: set[str] = set()
        self._registering = asyncio.Lock()
        self.returned = asyncio.Event()
        """A proplet lives that did not live before; cleared by whoever waits for it."""

    async def load(self) -> None:
        """Read the fleet as it was."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(select(tables.proplets).order_by(tables.proplets.c.seq))
            for row in rows:
                proplet = self._new(row.id, row.namespace, row.metadata, tables.from_micros(row.created_at))
                proplet.heartbeats.extend(tables.from_micros(beat) for beat in row.heartbeats)
                proplet.offline = row.offline
                self._proplets[row.id] = proplet

    def get(self, proplet_id: str) -> Proplet | None:
        """A proplet by its id."""
        return self._proplets.get(proplet_id)

    def all(self) -> list[Proplet]:
        """Every proplet, the oldest registration first."""
        return list(self._proplets.values())

    def alive(self) -> list[Proplet]:
        """Every proplet that lives now."""
        moment = self.clock()
        return [proplet for proplet in self._proplets.values() if proplet.is_alive(moment)]

    def is_alive(self, proplet_id: str) -> bool:
        """Whether there is such a proplet and it lives."""
        proplet = self.get(proplet_id)
        return proplet is not None and proplet.is_alive(self.clock())

    async def register(self, message: Registration) -> None:
        """A proplet says that it exists; what it says of itself replaces what was known."""
        told = message.metadata.model_dump(mode="json", exclude_none=True) if message.metadata else None
        namespace = _clean(message.namespace)
        proplet, is_new = await self._get_or_add(message.proplet_id, namespace, told)
        if is_new:
            return
        async with self._database.transaction() as connection:
            await connection.execute(
                update(tables.proplets)
                .where(tables.proplets.c.id == proplet.id)
                .values(namespace=namespace, metadata=told)
            )
        proplet.namespace, proplet.metadata = namespace, told
        proplet.interval_s = self._interval_of(told)
        log.info("proplet registered again", proplet_id=proplet.id)

    async def heartbeat(self, message: HeartbeatMessage) -> None:
        """A proplet lives or, by its last will, does not. Only a live one is made known by this."""
        proplet = self._proplets.get(message.proplet_id)
        if not message.is_alive:
            if proplet is not None and not proplet.offline:
                proplet.offline = True
                self._unwritten.add(proplet.id)
                log.warning("proplet is offline", proplet_id=proplet.id, status=message.status[:32])
            return
        if proplet is None:
            proplet, _ = await self._get_or_add(message.proplet_id, _clean(message.namespace), None)
        returned = not proplet.is_alive(self.clock())
        proplet.offline = False
        proplet.heartbeats.append(self.clock())
        if returned:
            log.info("proplet is alive", proplet_id=proplet.id)
            self.returned.set()
        self._unwritten.add(proplet.id)

    async def remove(self, proplet_id: str) -> None:
        """Forget a proplet; its next heartbeat makes it known again."""
        async with self._database.transaction() as connection:
            await connection.execute(tables.proplets.delete().where(tables.proplets.c.id == proplet_id))
            await connection.execute(
                tables.proplet_metrics.delete().where(tables.proplet_metrics.c.owner == proplet_id)
            )
        self._proplets.pop(proplet_id, None)
        self._unwritten.discard(proplet_id)

    async def write_heartbeats(self) -> None:
        """Write what changed since the last time."""
        changed = [self._proplets[proplet_id] for proplet_id in self._unwritten]
        if not changed:
            return
        self._unwritten = set()
        statement = (
            update(tables.proplets)
            .where(tables.proplets.c.id == bindparam("of"))
            .values(heartbeats=bindparam("beats"), offline=bindparam("gone"))
        )
        values = [
            {
                "of": proplet.id,
                "beats": [tables.to_micros(beat) for beat in proplet.heartbeats],
                "gone": proplet.offline,
            }
            for proplet in changed
        ]
        try:
            async with self._database.transaction() as connection:
                await connection.execute(statement, values)
        except BaseException:
            self._unwritten.update(proplet.id for proplet in changed if proplet.id in self._proplets)
            raise

    async def _get_or_add(
        self, proplet_id: str, namespace: str, told: dict[str, Any] | None
    ) -> tuple[Proplet, bool]:
        """The proplet and whether it is new; its first ``create`` and heartbeat come side by side."""
        async with self._registering:
            known = self._proplets.get(proplet_id)
            if known is not None:
                return known, False
            proplet = self._new(proplet_id, namespace, told, self.clock())
            values: dict[str, Any] = {
                "id": proplet.id,
                "name": proplet.name,
                "namespace": namespace,
                "metadata": told,
                "created_at": tables.to_micros(proplet.created_at),
                "heartbeats": [],
                "offline": False,
            }
            async with self._database.transaction() as connection:
                await connection.execute(insert(tables.proplets), values)
            self._proplets[proplet_id] = proplet
        log.info("proplet registered", proplet_id=proplet_id, name=proplet.name)
        return proplet, True

    def _new(
        self, proplet_id: str, namespace: str, told: dict[str, Any] | None, created_at: datetime
    ) -> Proplet:
        return Proplet(proplet_id, name_of(proplet_id), namespace, told, created_at, self._interval_of(told))

    def _interval_of(self, told: dict[str, Any] | None) -> float:
        interval = (told or {}).get("liveliness_interval")
        if isinstance(interval, int | float) and 0 < interval <= LONGEST_INTERVAL_S:
            return float(interval)
        return self._interval_s


def _clean(namespace: str) -> str:
    return namespace.replace("\0", "")[:256]  # PostgreSQL cannot hold NUL in a text
