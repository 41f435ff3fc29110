"""What devices do to the broker, looked at each second: one that does too much is muted for a while.

nats-server's MQTT keeps to none of the limits that a user's claims can have (``subs``, ``data``, ``payload``; 2.15.1). It does count: each
connection's messages, bytes and subscriptions, also of connections that have ended. From that each device pays out of a budget that fills up
again steadily. Whoever overdraws it, or has too many
connections or subscriptions, is cut off, refused for a minute, for twice as long the next time, and loses its sessions with all that is kept
for them. Sessions beyond those that it may have are ended.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from cachetools import TTLCache
from nats.aio.client import Client

from propeller.identity.access import AccessDirectory
from propeller.identity.broker_api import ServerConnection, close_connection, closed_connections, connections
from propeller.process.allowance import Allowance
from propeller.process.audit import AuditLog
from propeller.process.logs import get_logger
from propeller.protocol.roles import Role

log = get_logger("client_watch")

SHORTEST_INTERVAL_S = 1.0
_CONNECTIONS_PER_S = 1000
"""That are looked at: with more of them the looks are further apart."""

BURST_S = 10.0
"""A full budget is what a device may do in so many seconds, and of bytes ``_BYTES_BURST`` times that."""

_BYTES_BURST = 6

CONNECT_MESSAGES = 10
"""What a connection costs, in messages."""

FIRST_MUTE_S, LONGEST_MUTE_S = 60.0, 3600.0

_REMEMBERED_LOOKS = 60
"""For so long the counts of a connection are remembered that is not listed, as its server may just not have answered in time."""

_DUPLICATES, _DUPLICATES_WITHIN_S, _MAX_COUNTED = 3, 60.0, 1000
"""So many connections of a client that another one with its MQTT client id ended, each within that of the one before, are two processes."""

_LIMITED = frozenset(Role) - {Role.MANAGER, Role.COORDINATOR, Role.PROXY}

EndSessions = Callable[[Client, list[str]], Awaitable[None]]
"""Ends the sessions of MQTT client ids."""


@dataclass(frozen=True)
class ClientLimits:
    """What a device may do.

    Attributes:
        messages: a second that it publishes, for longer than a burst.
        bytes: a second likewise.
        connections: at a time; of MQTT client ids with a session as many.
        subscriptions: at a time, on all its connections.
    """

    messages: float = 500.0
    bytes: float = 2.0 * 1024 * 1024
    connections: int = 4
    subscriptions: int = 64


class Budget:
    """How much a device may publish now."""

    def __init__(self, limits: ClientLimits, now: float) -> None:
        """One that nothing was taken from; ``now`` in seconds."""
        self._limits = limits
        burst_bytes = limits.bytes * BURST_S * _BYTES_BURST
        self._messages = Allowance.full(limits.messages, limits.messages * BURST_S, now)
        self._bytes = Allowance.full(limits.bytes, burst_bytes, now)

    def take(self, messages: int, size: int, now: float) -> str | None:
        """Take what was published; why that was too much, or ``None``."""
        allowed = self._messages.charge(messages, now), self._bytes.charge(size, now)
        if not allowed[0]:
            return (
                f"it publishes more than {self._limits.messages:g} messages a second (BROKER_CLIENT_MESSAGES)"
            )
        if not allowed[1]:
            return f"it publishes more than {self._limits.bytes:g} bytes a second (BROKER_CLIENT_BYTES)"
        return None


class _Count(NamedTuple):
    """What a connection had published at a look."""

    messages: int
    bytes: int
    look: int


@dataclass
class _Mute:
    until: float
    lasts_s: float


@dataclass
class _Use:
    """What a device did since the last look, and has now."""

    messages: int = 0
    bytes: int = 0
    subscriptions: int = 0
    open: list[ServerConnection] = field(default_factory=list)


class ClientWatch:
    """Who is muted, and what the others have left."""

    def __init__(
        self,
        directory: AccessDirectory,
        limits: ClientLimits,
        audit: AuditLog | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory, self._limits, self._audit, self._clock = directory, limits, audit, clock
        self._budgets: dict[str, Budget] = {}
        self._mutes: dict[str, _Mute] = {}
        self._counted: dict[tuple[str, int], _Count] = {}
        self._ended_by_others: TTLCache[str, int] = TTLCache(_MAX_COUNTED, _DUPLICATES_WITHIN_S, clock)
        self._look = 0
        self._is_first = True
        self._last_stop = ""
        self.interval_s = SHORTEST_INTERVAL_S
        """When to look again, in seconds."""

    def refusal(self, client_id: str) -> str | None:
        """Why a client may not connect now, or ``None``."""
        mute = self._mutes.get(client_id)
        left_s = mute.until - self._clock() if mute else 0.0
        return f"muted for another {left_s:.0f} s: it did too much on the broker" if left_s > 0 else None

    def duplicates(self) -> list[str]:
        """The ids of clients as which two processes are connected, as it seems, each ending the other's connection."""
        counted = self._ended_by_others
        return sorted(one for one in counted if counted.get(one, 0) >= _DUPLICATES)

    def forget(self) -> None:
        """Another connection to the broker begins: what was published before it is not charged."""
        self._counted, self._is_first = {}, True

    async def mute(
        self, link: Client, client_id: str, reason: str, mqtt_ids: list[str], end_sessions: EndSessions
    ) -> None:
        """Mute a device, if it is one: cut its connections and end these sessions of it.

        Raises:
            NatsError: the broker does not answer.
        """
        if not self._is_limited(client_id):
            return
        use = _Use(open=[one async for one in connections(link, user=client_id)])
        await self._mute(link, client_id, reason, use)
        await end_sessions(link, mqtt_ids)

    async def check(self, link: Client, sessions: dict[str, list[str]], end_sessions: EndSessions) -> None:
        """Look at all connections; ``sessions`` are the MQTT client ids that have one, by client.

        Raises:
            NatsError: the broker does not answer.
        """
        uses = await self._read(link)
        # All are charged before the broker is asked for anything more: it may not answer.
        reasons = {name: self._excess(name, use) for name, use in uses.items() if self.refusal(name) is None}
        for client_id, use in uses.items():
            if client_id not in reasons:  # let in just before it was muted, after the others were listed
                for connection in use.open:
                    await close_connection(link, connection)
            elif (reason := reasons[client_id]) is not None:
                await self._mute(link, client_id, reason, use)
                await end_sessions(link, sessions.get(client_id, []))
        for client_id, mqtt_ids in sessions.items():
            if len(mqtt_ids) <= self._limits.connections or not self._is_limited(client_id):
                continue
            # No mute: a broker that was killed has sessions again that had ended.
            connected = {one.info.get("mqtt_client") for one in uses[client_id].open} | {client_id}
            surplus = [mqtt_id for mqtt_id in mqtt_ids if mqtt_id not in connected]
            log.warning(
                "client has too many sessions, absent ones are ended", client_id=client_id, count=len(surplus)
            )
            await end_sessions(link, surplus)

    async def _read(self, link: Client) -> defaultdict[str, _Use]:
        """What each device did since the last look."""
        uses: defaultdict[str, _Use] = defaultdict(_Use)
        counted = self._counted.copy()  # kept once all are read: what is read is then charged
        looked_at = 0
        async for one in connections(link):
            looked_at += 1
            client_id = self._count(one, counted, uses)
            if client_id is not None:
                uses[client_id].open.append(one)
                uses[client_id].subscriptions += int(one.info.get("subscriptions") or 0)
        newest = self._last_stop
        async with contextlib.aclosing(closed_connections(link)) as ended:
            async for one in ended:
                stop = str(one.info.get("stop", ""))
                if stop <= self._last_stop:
                    break
                newest = max(newest, stop)
                self._note_duplicate(one)
                self._count(one, counted, uses)
        self._look, self._last_stop, self._is_first = self._look + 1, newest, False
        oldest = self._look - _REMEMBERED_LOOKS
        self._counted = {key: count for key, count in counted.items() if count.look > oldest}
        self.interval_s = max(SHORTEST_INTERVAL_S, looked_at / _CONNECTIONS_PER_S)
        return uses

    def _note_duplicate(self, ended: ServerConnection) -> None:
        """Tell of a client whose connections others with the same MQTT client id end again and again."""
        if "Duplicate Client ID" not in str(ended.info.get("reason", "")):
            return
        client_id = str(ended.info.get("authorized_user") or "")
        access = self._directory.get(client_id)
        if access is None:
            return
        self._ended_by_others[client_id] = often = self._ended_by_others.get(client_id, 0) + 1
        if often != _DUPLICATES:  # one may be a connection that was cut, and is not known to be gone
            return
        log.warning(
            "two connections have one client's id: each ends the other's",
            client_id=client_id,
            name=access.name,
            address=ended.info.get("ip"),
            remedy="stop one of the two processes, or give it a client of its own",
        )

    def _count(
        self, one: ServerConnection, counted: dict[tuple[str, int], _Count], uses: dict[str, _Use]
    ) -> str | None:
        """Charge a connection to its client, if that is a device, and give its id."""
        client_id = str(one.info.get("authorized_user") or "")
        if not self._is_limited(client_id):
            return None
        key = (one.server, int(one.info["cid"]))
        now = _Count(int(one.info.get("in_msgs") or 0), int(one.info.get("in_bytes") or 0), self._look)
        before = counted.get(key, _Count(-CONNECT_MESSAGES, 0, 0))
        counted[key] = now
        if not self._is_first:  # nothing is known of the time before a first look
            uses[client_id].messages += now.messages - before.messages
            uses[client_id].bytes += now.bytes - before.bytes
        return client_id

    def _is_limited(self, client_id: str) -> bool:
        access = self._directory.get(client_id)
        return access is not None and access.role in _LIMITED

    def _excess(self, client_id: str, use: _Use) -> str | None:
        """Why what a device does is too much, or ``None``."""
        now = self._clock()
        budget = self._budgets.setdefault(client_id, Budget(self._limits, now))
        if reason := budget.take(use.messages, use.bytes, now):
            return reason
        if len(use.open) > self._limits.connections:
            return f"it has more than {self._limits.connections} connections (BROKER_CLIENT_CONNECTIONS)"
        if use.subscriptions > self._limits.subscriptions:
            return (
                f"it has more than {self._limits.subscriptions} subscriptions (BROKER_CLIENT_SUBSCRIPTIONS)"
            )
        return None

    async def _mute(self, link: Client, client_id: str, reason: str, use: _Use) -> None:
        now, before = self._clock(), self._mutes.get(client_id)
        lasts_s = FIRST_MUTE_S
        if before is not None and now < before.until + LONGEST_MUTE_S:
            lasts_s = min(2 * before.lasts_s, LONGEST_MUTE_S)
        self._mutes[client_id] = _Mute(now + lasts_s, lasts_s)
        self._budgets.pop(client_id, None)
        access = self._directory.get(client_id)
        log.warning(
            "client muted",
            client_id=client_id,
            name=access.name if access else None,
            reason=reason,
            seconds=lasts_s,
            messages=use.messages,
            bytes=use.bytes,
            connections=len(use.open),
            subscriptions=use.subscriptions,
        )
        if self._audit is not None:
            facts = {"client": client_id, "reason": reason, "seconds": int(lasts_s)}
            self._audit.record("mute a client", about=facts)
        for connection in use.open:
            await close_connection(link, connection)
