"""Who owns an MQTT client identifier, also when two ask at once, writing fails, or a tool makes one a connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import func, select

from propeller.identity import mqtt_ids
from propeller.identity.directory import Access, Directory
from propeller.identity.mqtt_ids import MqttIdRefusedError, MqttIds
from propeller.identity.roles import Role
from propeller.identity.tables import SCHEMA, clients, domains
from propeller.identity.tables import mqtt_ids as table
from propeller.store.database import Database
from propeller.store.migrations import migrate

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
def directory() -> Directory:
    directory = Directory()
    directory.put(Access(name, Role.DEVICE, "", True, {}, {}, 0.0) for name in NAMES)
    return directory


async def test_the_first_to_use_an_id_keeps_it(database: Database, directory: Directory) -> None:
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


async def test_ids_after_a_clients_own_belong_to_it(database: Database, directory: Directory) -> None:
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
async def test_what_is_no_id(database: Database, directory: Directory, mqtt_id: str) -> None:
    with pytest.raises(MqttIdRefusedError, match="printable"):
        await MqttIds(database, directory).claim(mqtt_id, "one")


async def test_what_could_not_be_written_is_not_owned(
    database: Database, directory: Directory, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr(mqtt_ids, "_TOUCH_S", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(database, "transaction", fails)
        with pytest.raises(OSError, match="disk full"):
            await ids.claim("x", "two")
    with pytest.raises(MqttIdRefusedError):
        await ids.claim("x", "one")
    await ids.claim("x", "two")


async def test_of_many_ids_the_last_used_are_kept(
    database: Database, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_ids, "MOST_PER_CLIENT", 3)
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
