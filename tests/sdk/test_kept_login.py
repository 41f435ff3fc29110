"""A login that is kept: what several who find its token expired do, and what cannot be read."""

import asyncio
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from propeller.errors import PropellerError, StartError, UnauthenticatedError
from propeller.sdk.kept_login import KeptLogin
from propeller.sdk.transport import AsyncTransport

URLS = {"identity": "http://identity.test"}


class Identity:
    """Takes each refresh token once, slowly."""

    def __init__(self) -> None:
        self.good, self.asked = "r-0", list[str]()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def send(self, _method: str, url: str, *, headers: dict[str, str], auth: Any) -> httpx.Response:
        self.asked.append(f"{url} {headers['Authorization']}")
        await asyncio.sleep(0.05)
        if headers["Authorization"] != f"Bearer {self.good}":
            return httpx.Response(401, json={"error": "used"})
        number = len(self.asked)
        self.good = f"r-{number}"
        return httpx.Response(201, json={"access_token": f"a-{number}", "refresh_token": self.good})


@pytest.fixture
def kept(tmp_path: Path) -> KeptLogin:
    tokens = {"access_token": "a-0", "refresh_token": "r-0"}
    return KeptLogin.keep(URLS, "http://registry.test", "ann", tokens, None, tmp_path / "kept")


async def test_who_finds_it_expired_at_the_same_time_renews_it_once(kept: KeptLogin) -> None:
    """By one client and by two, in one event loop: neither waits for the other for ever."""
    identity, other = Identity(), KeptLogin.load(kept.folder)
    assert other is not None
    transport: AsyncTransport = identity  # type: ignore[assignment]
    async with asyncio.timeout(10):
        await asyncio.gather(kept.renew(transport), kept.renew(transport), other.renew(transport))
    assert identity.asked == ["http://identity.test/users/tokens/refresh Bearer r-0"]
    assert (kept.token, other.token) == ("a-1", "a-1")
    async with asyncio.timeout(10):
        await other.renew(transport)
    assert (other.token, other.refresh_token) == ("a-2", "r-2")


async def test_one_that_has_ended_says_so(kept: KeptLogin) -> None:
    identity = Identity()
    identity.good = "another"
    with pytest.raises(UnauthenticatedError, match=r"the login of ann .* has ended: log in again"):
        await kept.renew(identity)  # type: ignore[arg-type]


async def test_a_client_does_not_go_on_with_the_login_that_has_taken_the_place_of_its_own(
    kept: KeptLogin,
) -> None:
    """Its stack would be shown the other one's token; and what it did with it would be another user's."""
    identity, urls = Identity(), {"identity": "http://another.test"}
    tokens = {"access_token": "a-bob", "refresh_token": "r-bob"}
    bob = KeptLogin.keep(urls, "", "bob", tokens, None, kept.folder)
    with pytest.raises(UnauthenticatedError, match="another one has taken its place"):
        await kept.renew(identity)  # type: ignore[arg-type]
    assert (identity.asked, kept.token) == ([], "a-0")
    kept.remove()
    assert KeptLogin.load(kept.folder) == bob


async def test_a_client_does_not_keep_a_login_anew_that_was_ended(kept: KeptLogin) -> None:
    identity, other = Identity(), KeptLogin.load(kept.folder)
    assert other is not None
    other.remove()
    with pytest.raises(UnauthenticatedError, match=r"it was ended \(propeller logout\)"):
        await kept.renew(identity)  # type: ignore[arg-type]
    assert (identity.asked, KeptLogin.load(kept.folder)) == ([], None)


@pytest.mark.parametrize("told", ["", "[]", "{}", '{"access_token": 1, "refresh_token": "r"}', "[" * 100_000])
async def test_an_answer_without_tokens_leaves_what_is_kept(kept: KeptLogin, told: str) -> None:
    class NoIdentity(Identity):
        async def send(self, _method: str, url: str, *, headers: dict[str, str], auth: Any) -> httpx.Response:
            return httpx.Response(200, text=told)

    with pytest.raises(PropellerError, match=r"identity\.test answered no tokens"):
        await kept.renew(NoIdentity())  # type: ignore[arg-type]
    assert KeptLogin.load(kept.folder) == kept


@pytest.mark.parametrize(
    "content", ["", "[]", "3", '{"urls": {"identity": 3}}', '{"urls": ["identity"]}', "[" * 100_000]
)
def test_a_damaged_one_is_named(kept: KeptLogin, content: str) -> None:
    (kept.folder / "login.json").write_text(content)
    with pytest.raises(StartError, match=r"login\.json: the login that is kept cannot be read"):
        KeptLogin.load(kept.folder)


def test_one_that_cannot_be_read_is_replaced_by_logging_in_again(tmp_path: Path) -> None:
    (tmp_path / "login.json").write_text("{")
    with pytest.raises(StartError, match=r"log in again \(propeller login\), or remove the file"):
        KeptLogin.load(tmp_path)
    KeptLogin.keep(URLS, "", "ann", {"access_token": "a", "refresh_token": "r"}, None, tmp_path)
    found = KeptLogin.load(tmp_path)
    assert found is not None
    assert (found.user, found.token, found.ca_cert) == ("ann", "a", None)
    assert stat.S_IMODE((tmp_path / "login.json").stat().st_mode) == 0o600
    assert "'a'" not in repr(found)
    found.remove()
    assert KeptLogin.load(tmp_path) is None
