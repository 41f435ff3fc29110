"""Since when the clients of MQTT sessions are away, over restarts of this service and of the broker.

No client gets in without identity, so one that was away when identity stopped, and that it has not let in since, was away all the
time: of each client that is away the database has since when, written when it is found away and deleted when it is let in.

Within a process absences are counted by the steady clock. The database has times of the wall clock, which may be set: those are
written anew when it was, and one that lies in the future counts from now.
"""

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import bindparam, delete, insert, select

from propeller.identity.tables import mqtt_absences
from propeller.store.database import Database

CLOCK_STEP_S = 60.0
"""The wall clock was set if it differs by more than this from what the steady clock says, in seconds."""


class Moment(NamedTuple):
    """A time by both clocks, in seconds: ``steady`` is never set, ``wall`` counts from 1970."""

    steady: float
    wall: float

    @classmethod
    def now(cls) -> "Moment":
        """This moment."""
        return cls(time.monotonic(), time.time())


@dataclass(frozen=True)
class AbsenceChanges:
    """What the database lacks.

    Attributes:
        away: MQTT client ids and since when they are away, in seconds since 1970; they may have a row with another time.
        ended: MQTT client ids that are not away any more.
    """

    away: dict[str, float] = field(default_factory=dict)
    ended: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.away or self.ended)


class Absences:
    """The MQTT client ids of sessions whose clients are away."""

    def __init__(self, stored: Mapping[str, float], now: Moment) -> None:
        """Begin with what the database has (since when, in seconds since 1970)."""
        self._stored = dict(stored)
        self._since = {
            mqtt_id: now.steady - max(0.0, now.wall - since) for mqtt_id, since in self._stored.items()
        }

    def __contains__(self, mqtt_id: str) -> bool:
        return mqtt_id in self._since

    def update(self, sessions: Collection[str], connected: Collection[str], now: Moment) -> None:
        """Compare with the sessions that there are now, and the clients that are connected, by their MQTT client ids."""
        away = set(sessions) - set(connected)
        self._since = {mqtt_id: self._since.get(mqtt_id, now.steady) for mqtt_id in away}

    def end(self, mqtt_id: str) -> None:
        """The client is back, or its session is gone."""
        self._since.pop(mqtt_id, None)

    def overdue(self, expiry_s: float, now: Moment) -> list[str]:
        """Those who have been away for ``expiry_s`` seconds."""
        return [mqtt_id for mqtt_id, since in self._since.items() if now.steady - since >= expiry_s]

    def is_stored(self, mqtt_id: str) -> bool:
        """Whether the database may say that the client is away."""
        return mqtt_id in self._stored

    def unstored(self, now: Moment) -> AbsenceChanges:
        """What is to be written: nothing as long as the same clients are away and the clock was not set."""
        since = {mqtt_id: now.wall - (now.steady - steady) for mqtt_id, steady in self._since.items()}
        away = {
            mqtt_id: wall
            for mqtt_id, wall in since.items()
            if mqtt_id not in self._stored or abs(wall - self._stored[mqtt_id]) > CLOCK_STEP_S
        }
        return AbsenceChanges(away, frozenset(self._stored.keys() - since.keys()))

    def note_storing(self, changes: AbsenceChanges) -> None:
        """Note that changes are about to be written: until ``note_stored`` it is unknown whether they were."""
        self._stored.update(dict.fromkeys(changes.away, -math.inf))

    def note_stored(self, changes: AbsenceChanges) -> None:
        """Note that changes were written."""
        self._stored.update(changes.away)
        for mqtt_id in changes.ended:
            self._stored.pop(mqtt_id, None)


async def read_absences(database: Database) -> dict[str, float]:
    """Since when clients are away, in seconds since 1970, by MQTT client id."""
    async with database.read() as connection:
        rows = await connection.execute(select(mqtt_absences))
        return {row.mqtt_id: row.since for row in rows}


async def write_absences(database: Database, changes: AbsenceChanges) -> None:
    """Write changes in one transaction."""
    replaced = [{"replaced": mqtt_id} for mqtt_id in (*changes.away, *changes.ended)]
    added = [{"mqtt_id": mqtt_id, "since": since} for mqtt_id, since in changes.away.items()]
    async with database.transaction() as connection:
        if replaced:
            where = mqtt_absences.c.mqtt_id == bindparam("replaced")
            await connection.execute(delete(mqtt_absences).where(where), replaced)
        if added:
            await connection.execute(insert(mqtt_absences), added)
