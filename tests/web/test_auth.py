"""Who calls: credentials checked through a real identity, its verdicts kept for a while."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI

from propeller.errors import UnauthenticatedError
from propeller.process.http import ServiceClient
from propeller.process.settings import HttpSettings
from propeller.web import auth
from propeller.web.app import create_app
from propeller.web.auth import Admission, IdentityVerifier, Principal, admission, caller
from support.net import free_port

Serving = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]

GOOD = "Bearer good"
UNREADABLE: list[Any] = [{}, [], None, "x", {"kind": "user"}]

Caller = Annotated[Principal, Depends(caller)]


@dataclass
class Identity:
    app: FastAPI
    asked: int = 0
    says: Any = None


@pytest.fixture
def identity() -> Identity:
    made = Identity(create_app("identity"), says={"kind": "client", "id": "p-1", "role": "proplet"})

    @made.app.post("/auth/verify")
    async def verify(body: dict[str, str]) -> Any:
        made.asked += 1
        if body["authorization"] != GOOD:
            raise UnauthenticatedError("the token has expired")
        return made.says

    return made


@asynccontextmanager
async def guarded(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A service that asks the identity at ``url``."""
    verify = Admission(IdentityVerifier(ServiceClient("identity", url, timeout=2, retry_delays=())))
    app = create_app("demo", admission=verify)

    @app.get("/who")
    async def who(principal: Caller) -> dict[str, str]:
        return {"kind": principal.kind, "id": principal.id, "role": principal.role}

    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo") as client,
    ):
        yield client


async def test_off_lets_anyone_in() -> None:
    app = create_app("demo", admission=admission("demo", HttpSettings.load(auth="off")))

    @app.get("/who")
    async def who(principal: Caller) -> dict[str, Any]:
        return {"kind": principal.kind, "acts": principal.may_act_for("p-2")}

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo") as http:
        assert (await http.get("/who")).json() == {"kind": "anyone", "acts": True}


async def test_no_credentials_and_wrong_ones(identity: Identity, serving: Serving) -> None:
    async with serving(identity.app) as peer, guarded(str(peer.base_url)) as http:
        missing = await http.get("/who")
        assert missing.status_code == 401
        assert missing.json()["error"].startswith("credentials required: a user's bearer token, or")
        assert missing.headers["www-authenticate"] == 'Bearer, Basic realm="propeller"'
        assert identity.asked == 0
        for header in (b"Bearer bad", b"Basic x", b"\xe9", b"\x00"):
            wrong = await http.get("/who", headers={b"authorization": header})
            assert (wrong.status_code, wrong.json()) == (401, {"error": "the token has expired"})
            assert "www-authenticate" in wrong.headers
        for path in ("/metrics", "/docs", "/docs/swagger-ui.css", "/openapi.json", "/nowhere"):
            assert (await http.get(path)).status_code == 401
        assert (await http.get("/health")).status_code == 200


async def test_good_ones_name_the_caller_and_are_asked_about_once_in_a_while(
    identity: Identity, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(identity.app) as peer, guarded(str(peer.base_url)) as http:
        for _ in range(3):
            answer = await http.get("/who", headers={"authorization": GOOD})
            assert answer.json() == {"kind": "client", "id": "p-1", "role": "proplet"}
        assert identity.asked == 1
        monkeypatch.setattr(auth, "VERDICT_TTL_S", -1.0)
        for _ in range(2):
            await http.get("/who", headers={"authorization": GOOD})
        assert identity.asked == 1  # what was kept is still good
    async with serving(identity.app) as peer, guarded(str(peer.base_url)) as http:
        for _ in range(2):
            await http.get("/who", headers={"authorization": GOOD})
        assert identity.asked == 3  # nothing is kept past its time


async def test_identity_down_or_not_identity_at_all(identity: Identity, serving: Serving) -> None:
    async with guarded(f"http://127.0.0.1:{free_port()}") as http:
        answer = await http.get("/who", headers={"authorization": GOOD})
        assert answer.status_code == 503
        assert answer.json()["error"].startswith("cannot check credentials: identity cannot be reached")
        assert (await http.get("/health")).status_code == 200
    async with serving(identity.app) as peer, guarded(str(peer.base_url)) as http:
        for identity.says in UNREADABLE:
            answer = await http.get("/who", headers={"authorization": GOOD})
            assert answer.status_code == 503
            assert "identity's answer cannot be read" in answer.json()["error"]


def test_a_client_acts_for_itself_alone() -> None:
    assert Principal("client", "p-1").may_act_for("p-1")
    assert not Principal("client", "p-1").may_act_for("p-2")
    assert Principal("user", "u-1").may_act_for("p-2")
