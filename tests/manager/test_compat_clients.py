"""Whom the manager believes on shared topics: whom identity names, asked seldom, and while it is away nobody new."""

import asyncio
from typing import Any

import pytest

from propeller.errors import UnavailableError
from propeller.manager.compat_clients import ASK_AGAIN_S, FRESH_S, KnownCompatClients
from propeller.process.http import ServiceError
from propeller.protocol.topics import Channel


class FakeAnswer:
    def __init__(self, body: Any) -> None:
        self.body = body

    def json(self) -> Any:
        return self.body


class FakeIdentity:
    """Names ``clients``, or is away."""

    def __init__(self, *clients: str) -> None:
        self.body: Any = {"clients": list(clients)}
        self.asked = 0
        self.away = False

    async def request(self, method: str, path: str, *, params: dict[str, str]) -> FakeAnswer:
        assert (method, path, params) == ("GET", "/auth/compat", {"domain_id": "d", "channel_id": "c"})
        self.asked += 1
        if self.away:
            raise ServiceError("identity", None, "no route")
        return FakeAnswer(self.body)


class Scene:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.identity = 100.0, FakeIdentity("a")
        self.known = KnownCompatClients(self.identity, Channel("d", "c"), clock=lambda: self.now)  # type: ignore[arg-type]

        async def sleep(seconds: float) -> None:
            self.now += seconds

        monkeypatch.setattr("propeller.manager.compat_clients.asyncio.sleep", sleep)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


async def test_an_answer_holds_for_a_while(scene: Scene) -> None:
    assert [await scene.known.includes("a") for _ in range(3)] == [True] * 3
    assert scene.identity.asked == 1
    scene.identity.body = {"clients": []}
    scene.now += FRESH_S
    assert not await scene.known.includes("a")
    assert scene.identity.asked == 2


async def test_a_new_one_is_known_at_once_and_invented_ones_cost_little(scene: Scene) -> None:
    assert await scene.known.includes("a")
    scene.identity.body = {"clients": ["a", "b"]}
    assert await scene.known.includes("b")
    before, asked = scene.now, scene.identity.asked
    for number in range(50):
        assert not await scene.known.includes(f"invented-{number}")
    assert scene.identity.asked - asked == 50
    assert scene.now - before == pytest.approx(50 * ASK_AGAIN_S)
    for number in range(50):
        assert not await scene.known.includes(f"more-{number}", patient=False)
    assert scene.identity.asked - asked == 50
    scene.now += ASK_AGAIN_S
    scene.identity.body = {"clients": ["a", "b", "c"]}
    assert await scene.known.includes("c", patient=False)


async def test_while_identity_is_away_nobody_new_is_believed(scene: Scene) -> None:
    assert await scene.known.includes("a")
    scene.identity.away, scene.now = True, scene.now + FRESH_S
    assert [await scene.known.includes("a") for _ in range(3)] == [True] * 3
    assert scene.identity.asked == 2, "it is not asked for each message"
    with pytest.raises(UnavailableError, match="identity does not say who is a compat proplet"):
        await scene.known.includes("b")
    scene.identity.away, scene.identity.body = False, {"clients": ["b"]}
    assert await scene.known.includes("b")
    assert not await scene.known.includes("a")


@pytest.mark.parametrize("body", [[], {}, {"clients": None}, "x"])
async def test_an_answer_that_cannot_be_read_is_none(scene: Scene, body: Any) -> None:
    scene.identity.body = body
    with pytest.raises(UnavailableError):
        await scene.known.includes("a")


async def test_the_impatient_take_the_answer_that_is_on_its_way(scene: Scene) -> None:
    asked = [scene.known.includes("a"), *(scene.known.includes("a", patient=False) for _ in range(3))]
    assert await asyncio.gather(*asked) == [True] * 4
    assert scene.identity.asked == 1


async def test_many_ask_once(scene: Scene) -> None:
    assert await asyncio.gather(*(scene.known.includes("a") for _ in range(20))) == [True] * 20
    assert scene.identity.asked == 1
