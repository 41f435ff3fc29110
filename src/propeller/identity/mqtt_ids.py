"""Who an MQTT client identifier belongs to.

The broker keeps a session, with its queued messages, for each identifier, and gives it to whoever connects with it. So an
identifier belongs to the client that first used it, and ``ID`` and ``ID-…`` always to the client ``ID``.
"""

import time

from sqlalchemy import delete, select, update

from propeller.identity.directory import Directory
from propeller.identity.tables import mqtt_ids
from propeller.store.database import Database

LONGEST = 256
"""The longest identifier that is taken, in characters."""

MOST_PER_CLIENT = 256
"""Tools make a new identifier for each connection; of one client so many are kept, those used last."""

_TOUCH_S = 3600.0


class MqttIdRefusedError(Exception):
    """The identifier is another client's, or not one."""


class MqttIds:
    """The identifiers that were used, in memory and in the database."""

    def __init__(self, database: Database, directory: Directory) -> None:
        self._database, self._directory = database, directory
        self._owners: dict[str, tuple[str, float]] = {}
        self._of_client: dict[str, set[str]] = {}

    async def load(self) -> None:
        """Read what was used before."""
        async with self._database.read() as connection:
            for row in await connection.execute(select(mqtt_ids)):
                self._remember(row.mqtt_id, row.client_id, row.used_at)

    async def claim(self, mqtt_id: str, client_id: str) -> None:
        """Let a client use an identifier; the first to use it keeps it.

        Raises:
            MqttIdRefusedError: it belongs to another client.
        """
        if not mqtt_id or len(mqtt_id) > LONGEST or not mqtt_id.isprintable():
            raise MqttIdRefusedError(f"an MQTT client id is 1 to {LONGEST} printable characters")
        named = self._named_after(mqtt_id)
        if named == client_id:
            return
        owner, used_at = self._owners.get(mqtt_id, (client_id, 0.0))
        if named is not None or owner != client_id:
            raise MqttIdRefusedError("the MQTT client id belongs to another client")
        now = time.time()
        if now - used_at > _TOUCH_S:
            try:
                await self._record(mqtt_id, client_id, now, new=used_at == 0.0)
            except BaseException:
                self._forget(mqtt_id)
                if used_at:
                    self._remember(mqtt_id, client_id, used_at)
                raise

    def _named_after(self, mqtt_id: str) -> str | None:
        """The client whose id it is, or begins with before a ``-``; the longest such id."""
        if mqtt_id in self._directory:
            return mqtt_id
        end = mqtt_id.rfind("-")
        while end > 0:
            if mqtt_id[:end] in self._directory:
                return mqtt_id[:end]
            end = mqtt_id.rfind("-", 0, end)
        return None

    async def _record(self, mqtt_id: str, client_id: str, now: float, *, new: bool) -> None:
        # Memory first: a second client that asks while this one is written must already be refused.
        self._remember(mqtt_id, client_id, now)
        evicted = self._evicted(client_id)
        async with self._database.transaction() as connection:
            if evicted is not None:
                await connection.execute(delete(mqtt_ids).where(mqtt_ids.c.mqtt_id == evicted))
            if new:
                row = {"mqtt_id": mqtt_id, "client_id": client_id, "used_at": now}
                await connection.execute(mqtt_ids.insert().values(row))
            else:
                await connection.execute(
                    update(mqtt_ids).where(mqtt_ids.c.mqtt_id == mqtt_id).values(used_at=now)
                )

    def _evicted(self, client_id: str) -> str | None:
        known = self._of_client[client_id]
        if len(known) <= MOST_PER_CLIENT:
            return None
        oldest = min(known, key=lambda mqtt_id: self._owners[mqtt_id][1])
        self._forget(oldest)
        return oldest

    def _remember(self, mqtt_id: str, client_id: str, used_at: float) -> None:
        self._owners[mqtt_id] = (client_id, used_at)
        self._of_client.setdefault(client_id, set()).add(mqtt_id)

    def _forget(self, mqtt_id: str) -> None:
        client_id, _ = self._owners.pop(mqtt_id)
        self._of_client[client_id].discard(mqtt_id)
