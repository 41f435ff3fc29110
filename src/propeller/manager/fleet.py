"""The fleet: which proplets there are and which of them are alive.

The fleet is held in memory, as every decision asks for it and heartbeats come at a high rate. A proplet is in the
database before its registration is acknowledged; heartbeats are written there a moment later, in one transaction.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update

from propeller.manager import tables
from propeller.manager.names import GIVEN_NAME, NamedClients, Naming, own_naming, says_the_same
from propeller.process.clock import steady_now
from propeller.process.logs import get_logger
from propeller.protocol.proplet import HeartbeatMessage, Registration
from propeller.store.database import Database

log = get_logger("manager")

MAX_MISSED_HEARTBEATS = 3
"""Heartbeats that may be missed before a proplet counts as lost (with one, as in absmach/propeller, proplets flap)."""

KEPT_HEARTBEATS = 10
MAX_INTERVAL_S = 3600.0
"""Longest interval between heartbeats that a proplet may ask for; one that asks for more gets the default."""

_MAX_NAMESPACE_CHARACTERS = 256


@dataclass
class PropletRecord:
    """What the manager knows of a proplet.

    Attributes:
        id: its client id, which it registered with.
        name: by which people and experiments mean it. Only where identity names no proplets two may have the same.
        tags: by which experiments choose it.
        namespace: as it reported.
        metadata: what it reported of itself; ``None`` from proplets of absmach/propeller's guide (S), which send none.
        created_at: of its registration or first heartbeat.
        interval_s: between its heartbeats.
        heartbeats: the last ten.
        offline: its last message was a goodbye or its last will.
    """

    id: str
    name: str
    tags: tuple[str, ...]
    namespace: str
    metadata: dict[str, Any] | None
    created_at: datetime
    interval_s: float
    heartbeats: deque[datetime] = field(default_factory=lambda: deque(maxlen=KEPT_HEARTBEATS))
    offline: bool = False

    @property
    def directed(self) -> bool:
        """Whether it speaks and listens on topics of its own. Only ``Fleet`` writes this, from where it was heard."""
        return bool(self.metadata and self.metadata.get("directed"))

    @property
    def reads_text_inputs(self) -> bool:
        """Whether it takes task inputs as texts: ours and those of later absmach/propeller (H) do, which send metadata."""
        return self.metadata is not None

    @property
    def last_alive_at(self) -> datetime | None:
        """Its last heartbeat."""
        return self.heartbeats[-1] if self.heartbeats else None

    @property
    def window(self) -> timedelta:
        """How long it counts as alive after a heartbeat."""
        return timedelta(seconds=MAX_MISSED_HEARTBEATS * self.interval_s)

    def is_alive(self, moment: datetime) -> bool:
        """Whether it is alive, as far as its heartbeats tell."""
        last = self.last_alive_at
        return not self.offline and last is not None and moment - last <= self.window


class Fleet:
    """Every proplet that ever registered and was not deleted, in order of registration."""

    def __init__(
        self,
        database: Database,
        *,
        interval_s: float = 10.0,
        named_by_identity: bool = False,
        clock: Callable[[], datetime] = steady_now,
    ) -> None:
        """``interval_s`` holds for proplets that do not report the interval between their heartbeats.

        ``named_by_identity``: proplets are called as ``know`` says, and not as they say themselves.
        """
        self._database, self._interval_s, self.clock = database, interval_s, clock
        self._named = NamedClients({}) if named_by_identity else None
        self.waits_for_names = named_by_identity
        """Whether identity is to name the proplets, and never has."""
        self._proplets: dict[str, PropletRecord] = {}
        self._unwritten: set[str] = set()
        self._registering = asyncio.Lock()
        self._returned = asyncio.Event()

    async def load(self) -> None:
        """Read the fleet from the database, and what identity called it last."""
        async with self._database.transaction() as connection:
            if self._named is not None:
                named = await connection.execute(select(tables.named_clients))
                self._named = NamedClients({row.id: Naming(row.name, tuple(row.tags)) for row in named})
                self.waits_for_names = not self._named.clients
            rows = await connection.execute(select(tables.proplets).order_by(tables.proplets.c.seq))
            for row in rows:
                proplet = self._new_record(
                    row.id, row.namespace, row.metadata, tables.from_micros(row.created_at)
                )
                proplet.heartbeats.extend(tables.from_micros(beat) for beat in row.heartbeats)
                proplet.offline = row.offline
                self._proplets[row.id] = proplet

    def get(self, proplet_id: str) -> PropletRecord | None:
        """A proplet by its id."""
        return self._proplets.get(proplet_id)

    def all(self) -> list[PropletRecord]:
        """Every proplet, the oldest registration first."""
        return list(self._proplets.values())

    def alive(self) -> list[PropletRecord]:
        """Every proplet that is alive now."""
        moment = self.clock()
        return [proplet for proplet in self._proplets.values() if proplet.is_alive(moment)]

    def is_alive(self, proplet_id: str) -> bool:
        """Whether there is such a proplet and it is alive."""
        proplet = self.get(proplet_id)
        return proplet is not None and proplet.is_alive(self.clock())

    def is_named(self, proplet_id: str) -> bool:
        """Whether it is known what a proplet is called, before it registers."""
        return self._named is None or proplet_id in self._named.clients

    async def know(self, named: NamedClients) -> None:
        """Call proplets from now on, also after a restart, as identity has it now."""
        async with self._registering:
            if self._named == named and not self.waits_for_names:
                return
            called = {
                proplet.id: naming
                for proplet in self._proplets.values()
                if (naming := named.naming(proplet.id, proplet.metadata))
                != Naming(proplet.name, proplet.tags)
            }
            await self._write_named(named, called)
            self._named, self.waits_for_names = named, False
            for id_, naming in called.items():
                proplet = self._proplets.get(id_)
                if proplet is None:  # removed meanwhile
                    continue
                before, proplet.name, proplet.tags = proplet.name, naming.name, naming.tags
                log.info(
                    "proplet is called as identity has it",
                    proplet_id=id_,
                    name=naming.name,
                    before=before,
                    tags=list(naming.tags),
                )

    async def _write_named(self, named: NamedClients, called: dict[str, Naming]) -> None:
        before = self._named.clients if self._named is not None else {}
        changed = {id_: one for id_, one in named.clients.items() if before.get(id_) != one}
        old = changed.keys() | (before.keys() - named.clients.keys())
        if not old and not called:
            return
        async with self._database.transaction() as connection:
            if old:
                statement = delete(tables.named_clients).where(tables.named_clients.c.id == bindparam("of"))
                await connection.execute(statement, [{"of": id_} for id_ in old])
            if changed:
                rows = [{"id": id_, "name": one.name, "tags": list(one.tags)} for id_, one in changed.items()]
                await connection.execute(insert(tables.named_clients), rows)
            if called:
                await connection.execute(
                    update(tables.proplets)
                    .where(tables.proplets.c.id == bindparam("of"))
                    .values(name=bindparam("called")),
                    [{"of": id_, "called": naming.name} for id_, naming in called.items()],
                )

    async def register(self, message: Registration, *, directed: bool) -> str | None:
        """Add a proplet; what it reports of itself replaces what was known.

        ``directed``: it spoke on its own topic, which says that it listens on its own ones whatever its message says. What is
        said elsewhere never changes a directed proplet.

        Returns:
            What it says of its name and tags that is not taken, unless it said the same before.
        """
        reported = message.metadata.model_dump(mode="json", exclude_none=True) if message.metadata else None
        metadata = _with_directed(reported, directed)
        namespace = _storable(message.namespace)
        proplet, is_new = await self._get_or_add(message.proplet_id, namespace, metadata)
        if is_new:
            return self._explain_doubts(proplet, None)
        async with self._registering:
            if proplet.directed and not directed:
                return None
            before = proplet.metadata
            if self._named is None:
                metadata = _with_given_name(metadata, before)
            await self._write(proplet, namespace, metadata)
            proplet.interval_s = self._interval_of(metadata)
        log.info("proplet registered again", proplet_id=proplet.id)
        return self._explain_doubts(proplet, before)

    def _explain_doubts(self, proplet: PropletRecord, before: dict[str, Any] | None) -> str | None:
        if self._named is None or says_the_same(proplet.metadata, before):
            return None
        return self._named.explain_doubts(proplet.id, proplet.metadata)

    async def rename(self, proplet: PropletRecord, name: str) -> None:
        """Call a proplet something else from now on, and when it registers again by the name that it had; not where identity names it.

        It calls itself by the new one when it is started with it.
        """
        async with self._registering:
            await self._write(proplet, proplet.namespace, {**(proplet.metadata or {}), GIVEN_NAME: name})
        log.info("proplet renamed", proplet_id=proplet.id, name=name)

    async def _write(self, proplet: PropletRecord, namespace: str, metadata: dict[str, Any] | None) -> None:
        naming = self._naming(proplet.id, metadata)
        async with self._database.transaction() as connection:
            await connection.execute(
                update(tables.proplets)
                .where(tables.proplets.c.id == proplet.id)
                .values(name=naming.name, namespace=namespace, metadata=metadata)
            )
        proplet.name, proplet.tags = naming.name, naming.tags
        proplet.namespace, proplet.metadata = namespace, metadata

    def _naming(self, proplet_id: str, metadata: dict[str, Any] | None) -> Naming:
        if self._named is None:
            return own_naming(proplet_id, metadata)
        return self._named.naming(proplet_id, metadata)

    async def record_heartbeat(self, message: HeartbeatMessage, *, directed: bool) -> None:
        """Record that a proplet is alive or, by its last will, is not. Only a heartbeat adds an unknown proplet.

        ``directed``: it spoke on its own topic.
        """
        proplet = self._proplets.get(message.proplet_id)
        if not message.is_alive:
            if proplet is not None and not proplet.offline and (directed or not proplet.directed):
                proplet.offline = True
                self._unwritten.add(proplet.id)
                log.warning("proplet is offline", proplet_id=proplet.id, status=message.status[:32])
            return
        if proplet is None:
            proplet, _ = await self._get_or_add(
                message.proplet_id, _storable(message.namespace), _with_directed(None, directed)
            )
        if proplet.directed and not directed:
            return
        has_returned = not proplet.is_alive(self.clock())
        proplet.offline = False
        proplet.heartbeats.append(self.clock())
        if has_returned:
            log.info("proplet is alive", proplet_id=proplet.id)
            self._returned.set()
        self._unwritten.add(proplet.id)

    async def wait_for_return(self, timeout_s: float) -> None:
        """Wait until a proplet that was not alive is alive, at most ``timeout_s`` seconds; one caller at a time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._returned.wait(), timeout_s)
        self._returned.clear()

    async def remove(self, proplet_id: str) -> None:
        """Delete a proplet; its next heartbeat adds it again."""
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
        self, proplet_id: str, namespace: str, metadata: dict[str, Any] | None
    ) -> tuple[PropletRecord, bool]:
        """The proplet and whether it is new; its registration and first heartbeat come at the same time."""
        async with self._registering:
            known = self._proplets.get(proplet_id)
            if known is not None:
                return known, False
            proplet = self._new_record(proplet_id, namespace, metadata, self.clock())
            values: dict[str, Any] = {
                "id": proplet.id,
                "name": proplet.name,
                "namespace": namespace,
                "metadata": metadata,
                "created_at": tables.to_micros(proplet.created_at),
                "heartbeats": [],
                "offline": False,
            }
            async with self._database.transaction() as connection:
                await connection.execute(insert(tables.proplets), values)
            self._proplets[proplet_id] = proplet
        log.info("proplet registered", proplet_id=proplet_id, name=proplet.name)
        return proplet, True

    def _new_record(
        self, proplet_id: str, namespace: str, metadata: dict[str, Any] | None, created_at: datetime
    ) -> PropletRecord:
        naming, interval_s = self._naming(proplet_id, metadata), self._interval_of(metadata)
        return PropletRecord(
            proplet_id, naming.name, naming.tags, namespace, metadata, created_at, interval_s
        )

    def _interval_of(self, metadata: dict[str, Any] | None) -> float:
        interval = (metadata or {}).get("liveliness_interval")
        if isinstance(interval, int | float) and 0 < interval <= MAX_INTERVAL_S:
            return float(interval)
        return self._interval_s


def _with_directed(metadata: dict[str, Any] | None, directed: bool) -> dict[str, Any] | None:
    """What is kept of a proplet's metadata: how it speaks, not what it says about that."""
    if directed:
        return {**(metadata or {}), "directed": True}
    return None if metadata is None else {**metadata, "directed": False}


def _with_given_name(metadata: dict[str, Any] | None, before: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a proplet reports now, with the name that it was given since it reported the one that it still has."""
    given = (before or {}).get(GIVEN_NAME)
    if given is None or metadata is None or metadata.get("name") != (before or {}).get("name"):
        return metadata
    return {**metadata, GIVEN_NAME: given}


def _storable(namespace: str) -> str:
    return namespace.replace("\0", "")[:_MAX_NAMESPACE_CHARACTERS]  # PostgreSQL cannot hold NUL in a text
