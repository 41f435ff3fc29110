"""MQTT sessions on the broker: which client owns one, and when it ends.

The broker keeps a session, with its queued messages, for each MQTT client id, and gives it to whoever connects with it. So an
id belongs to the client that first used it, and ``ID`` and ``ID-…`` always to the client ``ID``.

nats-server keeps a session until its client asks for a clean one. Its ``consumer_inactive_threshold`` is no way out: it
removes a session's consumers and leaves the session, and a client that comes back to it receives nothing, not even after
it subscribes again (2.15.1). So identity does what the client would do: it connects under the client's MQTT id and asks
for a clean session. A client that comes back in that moment is disconnected, connects again and subscribes.
"""

import asyncio
import base64
import json
import secrets
import ssl
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import aiomqtt
from nats.aio.client import Client
from sqlalchemy import delete, select, update
from sqlalchemy.exc import SQLAlchemyError

from propeller.errors import RefusedError, UnavailableError
from propeller.identity.absences import Absences, Moment, read_absences, write_absences
from propeller.identity.access import AccessDirectory
from propeller.identity.broker_api import connections, jetstream, max_consumers, mqtt_listener
from propeller.identity.broker_storage import purge_half_sent
from propeller.identity.tables import mqtt_ids
from propeller.mqtt.address import BrokerAddress, Credentials
from propeller.mqtt.connection import Connection
from propeller.process.logs import get_logger
from propeller.store.database import Database

MAX_ID_CHARACTERS = 256
"""The longest MQTT client id that is accepted, in characters."""

MAX_IDS_PER_CLIENT = 256
"""Some tools make a new id for each connection: of one client this many are remembered, those used last."""

RENEW_INTERVAL_S = 3600.0
"""How often the time of an id's last use is written down."""


class MqttIdRefusedError(RefusedError):
    """The identifier is another client's, or not one."""


class MqttIds:
    """The identifiers that were used, in memory and in the database."""

    def __init__(self, database: Database, directory: AccessDirectory) -> None:
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
        if not mqtt_id or len(mqtt_id) > MAX_ID_CHARACTERS or not mqtt_id.isprintable():
            raise MqttIdRefusedError(f"an MQTT client id is 1 to {MAX_ID_CHARACTERS} printable characters")
        named = self._named_after(mqtt_id)
        if named == client_id:
            return
        owner, used_at = self._owners.get(mqtt_id, (client_id, 0.0))
        if named is not None or owner != client_id:
            raise MqttIdRefusedError("the MQTT client id belongs to another client")
        now = time.time()
        if now - used_at > RENEW_INTERVAL_S:
            try:
                await self._record(mqtt_id, client_id, now, new=used_at == 0.0)
            except BaseException:
                self._forget(mqtt_id)
                if used_at:
                    self._remember(mqtt_id, client_id, used_at)
                raise

    def owner(self, mqtt_id: str) -> str | None:
        """The client whose identifier it is, as far as that is remembered."""
        owner = self._owners.get(mqtt_id)
        return self._named_after(mqtt_id) or (owner[0] if owner else None)

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
        if len(known) <= MAX_IDS_PER_CLIENT:
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


log = get_logger("sessions")

RECORDS, MESSAGES = "$MQTT_sess", "$MQTT_msgs"
"""The streams in which nats-server keeps a record of each session, and the messages that wait for one."""

LONGEST_INTERVAL_S = 60.0
"""The sessions are looked at this often, or four times in the time after which they end, in seconds."""

_RETRY_INTERVALS = 10
"""After a failure the next sessions are ended this many looks later: a broker that asks for a certificate always refuses."""

_KEEPALIVE_S = 30


@dataclass(frozen=True)
class Usage:
    """The subscriptions of QoS 1 and 2 of all sessions, and how many there may be (``None``: without limit)."""

    subscriptions: int
    limit: int | None


class SessionExpiry:
    """Ends sessions whose client has been away for ``expiry_s`` seconds."""

    def __init__(self, database: Database, expiry_s: float) -> None:
        self._database, self._expiry_s = database, expiry_s
        self._mqtt_ids: dict[str, str] = {}
        self._absences = Absences({}, Moment.now())
        self._let_in: set[str] = set()
        self._store_lock = asyncio.Lock()
        self._ending = asyncio.Lock()
        self._own_login: Credentials | None = None
        self._tls = False
        self._retry_at = 0.0
        self.usage: Usage | None = None
        """As last counted; ``None`` before that."""

    async def load(self) -> None:
        """Read who was away when this service stopped."""
        self._absences = Absences(await read_absences(self._database), Moment.now())

    @property
    def interval_s(self) -> float:
        """How often to look at the sessions, in seconds."""
        return min(self._expiry_s / 4, LONGEST_INTERVAL_S)

    async def note_connect(self, mqtt_id: str) -> None:
        """Note that a client is let in with an MQTT client id: it is not away."""
        self._let_in.add(mqtt_id)
        self._absences.end(mqtt_id)
        if self._absences.is_stored(mqtt_id):
            await self._store()

    def is_own_login(self, login: Credentials) -> bool:
        """Whether this is identity itself, which is just connecting to end a session."""
        own = self._own_login
        return (
            own is not None
            and own.mqtt_id == login.mqtt_id
            and own.username == login.username
            and secrets.compare_digest(own.password.encode(), login.password.encode())
        )

    async def check(self, link: Client) -> None:
        """Count the subscriptions, and end the sessions whose time is over.

        Raises:
            NatsError: the broker does not answer, or not as it should.
        """
        limit = await max_consumers(link)
        try:
            stream = await jetstream(link, f"STREAM.INFO.{MESSAGES}")
            await self._read_records(link)
        except LookupError:  # nobody has ever connected
            self.usage = Usage(0, limit)
            return
        self.usage = Usage(stream["state"]["consumer_count"], limit)
        connected = {one.info.get("mqtt_client", "") async for one in connections(link)}
        # Whoever was let in after the last look may have come too late for the list.
        connected |= self._let_in
        self._let_in = set()
        now = Moment.now()
        self._absences.update(self._mqtt_ids.values(), connected, now)
        await self._store()
        overdue = self._absences.overdue(self._expiry_s, now)
        if overdue and now.steady >= self._retry_at:
            await self._end_all(link, overdue)

    async def read(self, link: Client) -> Collection[str]:
        """The MQTT client ids that have a session now.

        Raises:
            LookupError: nobody has ever connected.
            NatsError: the broker does not answer.
        """
        await self._read_records(link)
        return self._mqtt_ids.values()

    async def end_now(self, link: Client, mqtt_ids: Iterable[str]) -> None:
        """End sessions, whoever is connected, and forget what they had half sent."""
        for mqtt_id in mqtt_ids:
            if time.monotonic() < self._retry_at:
                return
            self._absences.end(mqtt_id)
            await self._end_all(link, [mqtt_id], forced=True)
            await purge_half_sent(link, mqtt_id)

    async def _store(self) -> None:
        """Write down who is away and who is back; what cannot be written is tried again at the next look."""
        # When many come back together, the second to get the lock writes for all who wait.
        async with self._store_lock:
            changes = self._absences.unstored(Moment.now())
            if not changes:
                return
            self._absences.note_storing(changes)
            try:
                await write_absences(self._database, changes)
            except (SQLAlchemyError, UnavailableError, OSError) as error:
                log.warning("absent clients could not be written down", reason=str(error))
            else:
                self._absences.note_stored(changes)

    async def _end_all(self, link: Client, overdue: list[str], *, forced: bool = False) -> None:
        try:
            host, port = await mqtt_listener(link)
            if host in {"0.0.0.0", "::"}:
                host = (link.connected_url.hostname if link.connected_url else None) or "127.0.0.1"
            for mqtt_id in overdue:
                async with self._ending:  # one login at a time
                    await self._end(host, port, mqtt_id, forced=forced)
        except (aiomqtt.MqttError, LookupError) as error:
            self._retry_at = time.monotonic() + _RETRY_INTERVALS * self.interval_s
            of_whom = "a client that did too much" if forced else "absent clients"
            log.warning("sessions of %s cannot be ended", of_whom, count=len(overdue), reason=str(error))

    async def _read_records(self, link: Client) -> None:
        """Learn whose sessions there are."""
        subjects = await _record_subjects(link)
        for subject in self._mqtt_ids.keys() - subjects:
            self._absences.end(self._mqtt_ids.pop(subject))
        for subject in subjects - self._mqtt_ids.keys():
            try:
                answer = await jetstream(link, f"STREAM.MSG.GET.{RECORDS}", last_by_subj=subject)
            except LookupError:  # it ended meanwhile
                continue
            self._mqtt_ids[subject] = json.loads(base64.b64decode(answer["message"]["data"]))["id"]

    async def _end(self, host: str, port: int, mqtt_id: str, *, forced: bool) -> None:
        """End a session, unless its client was let in meanwhile and it is not ``forced``."""
        if not forced and mqtt_id not in self._absences:
            return
        self._own_login = Credentials(mqtt_id, "identity", secrets.token_hex(32))
        try:
            try:
                await _clear_session(BrokerAddress(host, port, self._tls), self._own_login)
            except aiomqtt.MqttError:  # whether this port is for TLS is only known by trying
                await _clear_session(BrokerAddress(host, port, not self._tls), self._own_login)
                self._tls = not self._tls
        finally:
            self._own_login = None
        self._absences.end(mqtt_id)
        log.info(
            "MQTT session ended, its client did too much"
            if forced
            else "MQTT session ended, its client was away for too long",
            mqtt_id=mqtt_id,
        )


async def _clear_session(address: BrokerAddress, login: Credentials) -> None:
    """Connect with a clean session: the broker drops the one that there was."""
    # No certificate is asked for: the password is good for this connection alone, which may do nothing else.
    tls = ssl.create_default_context()
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    connection = Connection.create(address, login, will=None, clean=True, keepalive=_KEEPALIVE_S, tls=tls)
    try:
        async with connection:
            pass
    finally:
        connection.close_socket()


async def _record_subjects(link: Client) -> set[str]:
    subjects: set[str] = set()
    while True:
        answer = await jetstream(link, f"STREAM.INFO.{RECORDS}", subjects_filter=">", offset=len(subjects))
        page = answer["state"].get("subjects") or {}
        subjects |= page.keys()
        if not page or len(subjects) >= answer.get("total", 0):
            return subjects
