"""How the manager asks identity for names: seldom, when it must, and without waiting long."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from propeller.errors import UnavailableError
from propeller.manager import client_names
from propeller.manager.client_names import ClientNames
from propeller.manager.fleet import Fleet
from propeller.process.http import ServiceError
from propeller.protocol.proplet import HeartbeatMessage, PropletMetadata, Registration
from propeller.protocol.topics import Channel
from propeller.store.database import Database
from support.net import eventually


class FakeAnswer:
    def __init__(self, status_code: int, body: Any, etag: str) -> None:
        self.status_code, self.body, self.headers = status_code, body, {"etag": etag}

    def json(self) -> Any:
        return self.body


class FakeIdentity:
    """Names clients, or is away, or does not answer."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {"a": "ward-a"}
        self.asked = self.unchanged = 0
        self.away = self.hangs = False

    async def request(
        self, method: str, path: str, *, params: dict[str, str], headers: dict[str, str] | None
    ) -> FakeAnswer:
        assert (method, path, params) == ("GET", "/auth/names", {"domain_id": "d", "channel_id": "c"})
        self.asked += 1
        await asyncio.sleep(3600 if self.hangs else 0.01)
        if self.away:
            raise ServiceError("identity", None, "no route")
        etag, body = repr(self.names), {id_: {"name": name, "tags": []} for id_, name in self.names.items()}
        if headers is not None and headers["If-None-Match"] == etag:
            self.unchanged += 1
            return FakeAnswer(304, None, etag)
        return FakeAnswer(200, {"clients": body}, etag)


class Scene:
    def __init__(self, database: Database) -> None:
        self.identity = FakeIdentity()
        self.fleet = Fleet(database, named_by_identity=True)
        self.names = ClientNames(self.identity, Channel("d", "c"), self.fleet)  # type: ignore[arg-type]

    async def register(self, proplet_id: str, says: str) -> str | None:
        await self.names.ask_about(proplet_id)
        metadata = PropletMetadata(name=says)
        return await self.fleet.register(
            Registration(proplet_id=proplet_id, metadata=metadata), directed=True
        )

    def called(self, proplet_id: str) -> str:
        proplet = self.fleet.get(proplet_id)
        assert proplet is not None
        return proplet.name


@pytest.fixture
def scene(database: Database, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(client_names, "ASK_AGAIN_S", 0.02)
    monkeypatch.setattr(client_names, "RETRY_S", 0.05)
    return Scene(database)


async def test_who_registers_is_called_as_identity_has_it_from_the_first_moment(scene: Scene) -> None:
    assert await scene.register("a", says="ward-a") is None
    assert scene.called("a") == "ward-a"
    scene.identity.names["b"] = "ward-b"  # added a moment ago
    doubt = await scene.register("b", says="ward-a")
    assert doubt is not None
    assert "'ward-a' is a" in doubt
    assert scene.called("b") == "ward-b"
    assert scene.identity.asked == 2


async def test_those_that_are_named_cost_no_question_and_the_others_one_together(scene: Scene) -> None:
    scene.identity.names |= {f"p{number}": f"ward-{number}" for number in range(50)}
    await asyncio.gather(*(scene.register(f"p{number}", says="x") for number in range(50)))
    assert scene.identity.asked == 1
    for _ in range(50):
        await scene.register("p1", says="x")
        await scene.fleet.record_heartbeat(HeartbeatMessage(proplet_id="p1"), directed=True)
        await scene.fleet.record_heartbeat(HeartbeatMessage(proplet_id="new"), directed=True)
    assert scene.identity.asked == 1
    assert scene.called("p7") == "ward-7"


async def test_a_new_name_arrives_by_itself_and_what_has_not_changed_is_not_sent(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_names, "ASK_EVERY_S", 0.05)
    async with scene.names.running():
        await scene.register("a", says="ward-a")
        await eventually(lambda: scene.identity.unchanged >= 2)
        scene.identity.names["a"] = "ward-4"
        await eventually(lambda: scene.called("a") == "ward-4")
    assert await scene.register("a", says="ward-a") is None, "it said so before"
    assert scene.called("a") == "ward-4"


async def test_while_identity_is_away_it_is_waited_for_once(scene: Scene) -> None:
    await scene.register("a", says="ward-a")
    scene.identity.away = True
    with capture_logs() as logs:
        async with scene.names.running():
            await scene.register("b", says="ward-a")
            await scene.register("c", says="ward-a")
            assert scene.called("a") == "ward-a"
            assert "ward-a" not in {scene.called("b"), scene.called("c")}
            with pytest.raises(UnavailableError, match="no route"):
                await scene.names.ask()
            await eventually(lambda: scene.identity.asked > 4)
            scene.identity.names |= {"b": "ward-b", "c": "ward-c"}
            scene.identity.away = False
            await eventually(lambda: scene.called("b") == "ward-b")
    assert scene.called("c") == "ward-c"
    assert [one["log_level"] for one in logs if "identity" in one["event"] and "proplet_id" not in one] == [
        "warning",
        "info",
    ]


async def test_a_registration_waits_no_longer_than_is_fair(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_names, "PATIENCE_S", 0.05)
    scene.identity.hangs = True
    async with asyncio.timeout(2):
        for number in range(20):
            await scene.register(f"p{number}", says="ward-a")
    assert scene.identity.asked == 1
    assert len(scene.fleet.all()) == 20
