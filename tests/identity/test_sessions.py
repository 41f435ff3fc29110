"""Whose an MQTT session is, how many subscriptions the broker keeps, and the end of sessions nobody comes back to."""

import asyncio
import os
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, select
from structlog.testing import capture_logs

from propeller.identity import sessions
from propeller.identity.absences import read_absences
from propeller.identity.access import AccessDirectory, ClientAccess
from propeller.identity.service import Identity
from propeller.identity.sessions import MqttIdRefusedError, MqttIds
from propeller.identity.tables import SCHEMA, clients, domains
from propeller.identity.tables import mqtt_ids as table
from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.session import Credentials, Session, SubscriptionLimitError, SubscriptionRefusedError
from propeller.protocol.roles import Role
from propeller.store.database import Database
from propeller.store.migrations import migrate
from support.certificates import make_certificates
from support.identity import Site, first
from support.net import eventually
from support.provisioned import Provisioned

SESSIONS, SUBSCRIPTIONS = 600, 4
AT_ONCE = 20


def topic(made: Provisioned, end: str) -> str:
    """A topic of the guide's channel."""
    return f"m/{made.domain_id}/c/{made.channel_id}/{end}"


async def handle(_topic: str, _payload: bytes) -> None: ...


def session(site: Site, made: Provisioned, name: str) -> Session:
    """A session of one of the guide's clients."""
    client = made.clients[name]
    return Session(
        BrokerAddress("127.0.0.1", site.broker.port), Credentials(client.id, client.id, client.key)
    )


def expiring(site: Site, expiry_s: float) -> Site:
    """The site with sessions that end soon."""
    return replace(site, identity=site.identity.model_copy(update={"session_expiry_s": expiry_s}))


def subscriptions(identity: Identity) -> int:
    """How many the broker has, as identity counted them last."""
    return identity.sessions.usage.subscriptions if identity.sessions.usage else -1


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is such a file system: nats-server writes each subscription through to the disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="propeller-", dir=memory) as folder:
        yield Path(folder)


async def test_600_sessions_of_4_subscriptions_are_granted(fast_folder: Path) -> None:
    site = Site.at(fast_folder)
    async with site.running() as (_identity, made):
        manager = made.clients["manager"]
        slots = asyncio.Semaphore(AT_ONCE)

        async def subscribe(number: int) -> list[int]:
            async with (
                slots,
                site.client(
                    manager.id, manager.key, f"{manager.id}-{number}", clean_session=False, timeout=60
                ) as client,
            ):
                topics = [topic(made, f"t/{number}/{each}") for each in range(SUBSCRIPTIONS)]
                codes = await client.subscribe([(each, 1) for each in topics])
            return [code if isinstance(code, int) else code.value for code in codes]

        begun = time.monotonic()
        granted = await asyncio.gather(*map(subscribe, range(SESSIONS)))
        assert granted == [[1] * SUBSCRIPTIONS] * SESSIONS
        assert time.monotonic() - begun < 120  # 5 s on two cores


async def test_the_limit_is_told_apart_from_a_missing_right_and_can_be_raised(tmp_path: Path) -> None:
    site = Site.at(tmp_path)
    full = replace(site, broker=site.broker.model_copy(update={"max_subscriptions": 2}))
    with capture_logs() as logs:
        async with full.running() as (_identity, made), session(full, made, "manager").running() as manager:
            assert await manager.wait_connected(10)
            for number in range(2):
                await manager.subscribe(topic(made, f"t/{number}"), handle)
            with pytest.raises(SubscriptionLimitError, match="raise BROKER_MAX_SUBSCRIPTIONS"):
                await manager.subscribe(topic(made, "t/2"), handle)
            with pytest.raises(SubscriptionRefusedError, match="check the domain and the channel") as refused:
                await manager.subscribe("m/another/c/channel/t", handle)
            assert not isinstance(refused.value, SubscriptionLimitError)
            await manager.subscribe(topic(made, "t/3"), handle, qos=0)
    (line,) = [line for line in logs if "BROKER_MAX_SUBSCRIPTIONS" in line["event"]]  # once, for all of them
    assert line["limit"] == 2

    # The streams that were made under the lower limit take more under the higher one.
    async with site.running_again() as identity, session(site, made, "manager").running() as manager:
        assert await manager.wait_connected(10)
        for number in range(4):
            await manager.subscribe(topic(made, f"t/{number}"), handle)
        assert identity.link.connected


async def test_a_refusal_after_a_reconnect_names_the_limit(tmp_path: Path) -> None:
    site = Site.at(tmp_path)
    full = replace(site, broker=site.broker.model_copy(update={"max_subscriptions": 1}))
    async with full.running() as (_identity, made):
        manager = session(full, made, "manager")
        for number in range(3):
            await manager.subscribe(topic(made, f"t/{number}"), handle)
        with capture_logs() as logs:
            async with manager.running():
                assert await manager.wait_connected(10)
        (line,) = [line for line in logs if line["event"] == "MQTT subscription refused"]
        assert line["topics"] == [topic(made, "t/1"), topic(made, "t/2")]
        assert "raise BROKER_MAX_SUBSCRIPTIONS" in line["reason"]


async def stored_absences(site: Site) -> dict[str, float]:
    """Since when clients are away, as identity's database has it."""
    database = Database(site.identity.database)
    try:
        return await read_absences(database)
    finally:
        await database.close()


async def test_how_long_a_client_is_away_is_counted_over_restarts(tmp_path: Path) -> None:
    site = Site.at(tmp_path)
    async with site.running() as (_identity, made):
        away, back = made.clients["proplet-1"], made.clients["proplet-2"]
        for proplet in (away, back):
            async with site.client(proplet.id, proplet.key, clean_session=False) as client:
                await client.subscribe(topic(made, f"control/manager/start/{proplet.id}"), qos=1)
    started = time.time()
    async with site.running_again():

        async def both_are_stored() -> bool:
            return (await stored_absences(site)).keys() == {away.id, back.id}

        await eventually(both_are_stored)
    first_absences = await stored_absences(site)
    assert min(first_absences.values()) >= started  # it was not known before that they were away
    async with site.running_again() as identity:
        await eventually(lambda: subscriptions(identity) == 2)
        async with site.client(back.id, back.key, clean_session=False):
            assert await stored_absences(site) == {away.id: first_absences[away.id]}
    # Long enough for the one that stayed away; identity looks at once, and then each quarter of the expiry.
    await asyncio.sleep(max(0.0, first_absences[away.id] + 3.0 - time.time()))
    with capture_logs() as logs:
        async with expiring(site, 3.0).running_again() as identity:
            await eventually(lambda: subscriptions(identity) >= 0)
            ended = "MQTT session ended, its client was away for too long"
            await eventually(lambda: any(line["event"] == ended for line in logs))
            assert {line["mqtt_id"] for line in logs if line["event"] == ended} == {away.id}


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_session_ends_when_its_client_is_away_for_long_and_begins_anew(
    tmp_path: Path, qos: int
) -> None:
    site = expiring(Site.at(tmp_path), 1.0)
    async with site.running() as (identity, made), session(site, made, "proplet-2").running() as stays:
        assert await stays.wait_connected(10)
        heard: list[bytes] = []

        async def hear(_topic: str, payload: bytes) -> None:
            heard.append(payload)

        proplet, other, manager = (made.clients[name] for name in ("proplet-1", "proplet-2", "manager"))
        await stays.subscribe(topic(made, f"control/manager/start/{other.id}"), hear)
        start = topic(made, f"control/manager/start/{proplet.id}")
        async with site.client(proplet.id, proplet.key, clean_session=False) as client:
            await client.subscribe(start, qos=qos)
        await eventually(lambda: subscriptions(identity) == 2)
        async with site.client(manager.id, manager.key) as client:
            await client.publish(start, b"too old when it is back", qos=qos)
            await eventually(lambda: subscriptions(identity) == 1)  # that of the client that stays
            await asyncio.sleep(1.5)  # for longer than the expiry of who stays
            await client.publish(topic(made, f"control/manager/start/{other.id}"), b"kept", qos=1)
            await eventually(lambda: heard == [b"kept"])
            async with site.client(proplet.id, proplet.key, clean_session=False) as back:
                await back.subscribe(start, qos=qos)
                await client.publish(start, b"new", qos=qos)
                assert await first(back) == b"new"


async def test_sessions_end_at_a_broker_with_tls_too(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    site = expiring(Site.at(tmp_path), 0.4)
    site = replace(site, broker=site.broker.model_copy(update={"tls_cert": files.cert, "tls_key": files.key}))
    async with site.running() as (identity, made):
        proplet = made.clients["proplet-1"]
        tls = ssl.create_default_context(cafile=files.ca)
        async with site.client(proplet.id, proplet.key, clean_session=False, tls_context=tls) as client:
            await client.subscribe(topic(made, f"control/manager/start/{proplet.id}"), qos=1)
            await eventually(lambda: subscriptions(identity) == 1)
        await eventually(lambda: subscriptions(identity) == 0)


async def test_sessions_that_cannot_be_ended_are_counted_all_the_same(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    site = expiring(Site.at(tmp_path), 0.4)
    tls_files = {"tls_cert": files.cert, "tls_key": files.key, "tls_client_ca": files.ca}
    site = replace(site, broker=site.broker.model_copy(update=tls_files))
    with capture_logs() as logs:
        async with site.running() as (identity, made):
            proplet = made.clients["proplet-1"]
            tls = ssl.create_default_context(cafile=files.ca)
            tls.load_cert_chain(files.client_cert, files.client_key)
            async with site.client(proplet.id, proplet.key, clean_session=False, tls_context=tls) as client:
                await client.subscribe(topic(made, f"control/manager/start/{proplet.id}"), qos=1)
            cannot = "sessions of absent clients cannot be ended"
            await eventually(lambda: any(line["event"] == cannot for line in logs))
            await eventually(lambda: subscriptions(identity) == 1)


async def test_a_client_that_comes_back_while_its_session_ends_hears(tmp_path: Path) -> None:
    site = expiring(Site.at(tmp_path), 0.2)
    async with site.running() as (_identity, made), session(site, made, "manager").running() as manager:
        start = topic(made, f"control/manager/start/{made.clients['proplet-1'].id}")
        heard: set[bytes] = set()

        async def hear(_topic: str, payload: bytes) -> None:
            heard.add(payload)

        for number in range(20):
            proplet, sent = session(site, made, "proplet-1"), str(number).encode()
            await proplet.subscribe(start, hear)

            async def is_heard(sent: bytes = sent) -> bool:
                await manager.publish(start, sent)
                return sent in heard

            async with proplet.running():
                await eventually(is_heard)
            await asyncio.sleep(0.2 + 0.02 * number)  # how long it is away is what is tested


NAMES = ("one", "two", "one-b")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(str(tmp_path / "x.db"))
    await migrate(database, SCHEMA)
    async with database.transaction() as connection:
        domain = {
            "id": "d",
            "name": "d",
            "route": "d",
            "status": "enabled",
            "created_by": "",
            "created_at": 0.0,
        }
        await connection.execute(domains.insert().values(domain))
        for name in NAMES:
            row = {
                "id": name,
                "domain_id": "d",
                "name": name,
                "key_hash": "",
                "role": "device",
                "tags": [],
                "metadata": {},
                "status": "enabled",
                "created_at": 0.0,
                "access_changed_at": 0.0,
            }
            await connection.execute(clients.insert().values(row))
    yield database
    await database.close()


@pytest.fixture
def directory() -> AccessDirectory:
    directory = AccessDirectory()
    directory.update(ClientAccess(name, "", Role.DEVICE, "", True, {}, {}, 0.0) for name in NAMES)
    return directory


async def test_the_first_to_use_an_id_keeps_it(database: Database, directory: AccessDirectory) -> None:
    ids = MqttIds(database, directory)
    results = await asyncio.gather(
        *(ids.claim("x", name) for name in ("one", "two", "one", "two")), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), MqttIdRefusedError] * 2
    again = MqttIds(database, directory)
    await again.load()
    await again.claim("x", "one")
    with pytest.raises(MqttIdRefusedError):
        await again.claim("x", "two")


async def test_ids_after_a_clients_own_belong_to_it(database: Database, directory: AccessDirectory) -> None:
    ids = MqttIds(database, directory)
    for good, client in (
        ("one", "one"),
        ("one-a", "one"),
        ("one-b", "one-b"),
        ("one-b-c", "one-b"),
        ("one-", "one"),
    ):
        await ids.claim(good, client)
    for foreign, client in (
        ("one", "two"),
        ("one-a", "two"),
        ("one-b", "one"),
        ("one-b-c", "one"),
        ("two", "one"),
    ):
        with pytest.raises(MqttIdRefusedError):
            await ids.claim(foreign, client)


@pytest.mark.parametrize("mqtt_id", ["", "a" * 257, "a\nb", "a\x00"])
async def test_what_is_no_id(database: Database, directory: AccessDirectory, mqtt_id: str) -> None:
    with pytest.raises(MqttIdRefusedError, match="printable"):
        await MqttIds(database, directory).claim(mqtt_id, "one")


async def test_what_could_not_be_written_is_not_owned(
    database: Database, directory: AccessDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = MqttIds(database, directory)

    @asynccontextmanager
    async def fails() -> AsyncIterator[None]:
        raise OSError("disk full")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(database, "transaction", fails)
        with pytest.raises(OSError, match="disk full"):
            await ids.claim("x", "one")
    await ids.claim("x", "two")
    monkeypatch.setattr(sessions, "RENEW_INTERVAL_S", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(database, "transaction", fails)
        with pytest.raises(OSError, match="disk full"):
            await ids.claim("x", "two")
    with pytest.raises(MqttIdRefusedError):
        await ids.claim("x", "one")
    await ids.claim("x", "two")


async def test_of_many_ids_the_last_used_are_kept(
    database: Database, directory: AccessDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_IDS_PER_CLIENT", 3)
    ids = MqttIds(database, directory)
    await ids.claim("other", "two")
    for number in range(6):
        await ids.claim(f"x{number}", "one")
    async with database.read() as connection:
        kept = await connection.execute(select(func.count()).select_from(table))
        assert kept.scalar_one() == 4
    await ids.claim("x0", "two")
    for held in ("x5", "other"):
        with pytest.raises(MqttIdRefusedError):
            await ids.claim(held, "two" if held == "x5" else "one")
