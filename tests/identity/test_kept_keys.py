"""Keys that admins may read again: who sees them, what the database holds, another secret, and the setting switched off."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import select, update
from structlog.testing import capture_logs

from propeller.errors import StartError
from propeller.identity.settings import IdentitySettings
from propeller.identity.tables import kept_keys
from propeller.process.audit import read_log
from propeller.process.http import basic_authorization
from propeller.process.settings import SettingsError
from propeller.store.database import Database
from support.identity import PASSWORD, Site, served

SECRET = "a secret for keys"


def readable(settings: IdentitySettings, secret: str = SECRET, **more: Any) -> IdentitySettings:
    return settings.model_copy(update={"keys_readable": True, "keys_secret": SecretStr(secret), **more})


class Api:
    """Identity as a user sees it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.headers: dict[str, str] = {}

    async def login(self, username: str = "admin") -> None:
        body = {"username": username, "password": PASSWORD}
        token = (await self.http.post("/users/tokens/issue", json=body)).json()["access_token"]
        self.headers = {"Authorization": f"Bearer {token}"}

    async def __call__(self, method: str, path: str, json: Any = None) -> httpx.Response:
        return await self.http.request(method, path, json=json, headers=self.headers)

    async def domain(self) -> str:
        made = await self("POST", "/domains", {"name": "d", "route": "d"})
        return str(made.json()["id"])

    async def client(self, domain: str, name: str) -> dict[str, Any]:
        made = await self("POST", f"/{domain}/clients", {"name": name})
        assert made.status_code == 201, made.text
        found: dict[str, Any] = made.json()
        return found

    async def shown(self, domain: str, client_id: str) -> dict[str, Any]:
        """Its ``credentials``, which are the same by its id and by its name."""
        one = (await self("GET", f"/{domain}/clients/{client_id}")).json()
        [listed] = (await self("GET", f"/{domain}/clients?name={one['name']}")).json()["clients"]
        assert listed == one
        found: dict[str, Any] = one["credentials"]
        return found

    async def accepts(self, client_id: str, key: str) -> bool:
        body = {"authorization": basic_authorization(client_id, key)}
        return (await self.http.post("/auth/verify", json=body)).is_success


def everything_on_disk(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


async def test_admins_read_keys_again_and_the_database_holds_none_in_plain(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    audit = tmp_path / "audit.jsonl"
    async with served(readable(Site.at(tmp_path).identity, audit_log=audit)) as http:
        api = Api(http)
        await api.login()
        domain = await api.domain()
        made = await api.client(domain, "proplet-1")
        key = made["credentials"]["secret"]
        assert (await api.shown(domain, made["id"]))["secret"] == key
        assert await api.accepts(made["id"], key)
        every = (await api("GET", f"/{domain}/clients")).json()["clients"]
        assert [one["credentials"] for one in every] == [{"identity": made["id"]}]  # nobody asked for it

        again = await api("POST", f"/{domain}/clients", {"name": "proplet-1"})
        assert again.status_code == 409
        assert "shows its key" in again.json()["error"]

        newer = (await api("POST", f"/{domain}/clients/{made['id']}/secret")).json()["credentials"]["secret"]
        assert (await api.shown(domain, made["id"]))["secret"] == newer != key
        assert b"Bearer" not in everything_on_disk(tmp_path)
        said = "".join(capfd.readouterr())
        for one in (key, newer):
            assert one.encode() not in everything_on_disk(tmp_path)
            assert one not in said
        read = [entry for line in read_log(audit) if (entry := json.loads(line))["action"].startswith("GET")]
        assert [(entry["about"]["keys_of"], entry["who"]["name"]) for entry in read] == [
            ("proplet-1", "admin")
        ] * 4
        await api("DELETE", f"/{domain}/clients/{made['id']}")
        assert (await api("GET", f"/{domain}/clients?name=proplet-1")).json()["clients"] == []


async def test_only_who_manages_the_domain_reads_keys(tmp_path: Path) -> None:
    async with served(readable(Site.at(tmp_path).identity)) as http:
        api = Api(http)
        await api.login()
        domain = await api.domain()
        device = await api.client(domain, "proplet-1")
        manager = await api.client(domain, "manager")
        users = {}
        for role in ("viewer", "operator"):
            made = await api("POST", "/users", {"username": role, "password": PASSWORD})
            users[role] = made.json()["id"]
            await api("PUT", f"/domains/{domain}/members/{users[role]}", {"role": role})
        paths = [
            f"/{domain}/clients/{device['id']}",
            f"/{domain}/clients?name=proplet-1",
            f"/{domain}/devices",
        ]
        for role in ("viewer", "operator"):
            await api.login(role)
            answers = [await api("GET", path) for path in paths]
            assert [answer.status_code for answer in answers[:2]] == [403, 403]
            assert not [answer for answer in answers if device["credentials"]["secret"] in answer.text]
        for client in (device, manager):
            api.headers = {
                "Authorization": basic_authorization(client["id"], client["credentials"]["secret"])
            }
            assert [(await api("GET", path)).status_code for path in paths] == [403, 403, 403]
        await api.login("admin")
        assert (await api.shown(domain, device["id"]))["secret"] == device["credentials"]["secret"]


async def test_keys_of_before_are_not_known_and_the_answer_says_what_to_do(tmp_path: Path) -> None:
    settings = Site.at(tmp_path).identity
    async with served(settings) as http:
        api = Api(http)
        await api.login()
        domain = await api.domain()
        made = await api.client(domain, "proplet-1")
        assert await api.shown(domain, made["id"]) == {"identity": made["id"]}
    async with served(readable(settings)) as http:
        api = Api(http)
        await api.login()
        shown = await api.shown(domain, made["id"])
        assert set(shown) == {"identity", "note"}
        assert "POST /{domain_id}/clients/{id}/secret" in shown["note"]
        assert await api.accepts(made["id"], made["credentials"]["secret"])
        newer = (await api("POST", f"/{domain}/clients/{made['id']}/secret")).json()["credentials"]["secret"]
        assert (await api.shown(domain, made["id"]))["secret"] == newer


async def test_switched_off_they_are_forgotten_and_clients_go_on(tmp_path: Path) -> None:
    settings = Site.at(tmp_path).identity
    async with served(readable(settings)) as http:
        api = Api(http)
        await api.login()
        domain = await api.domain()
        made = await api.client(domain, "proplet-1")
    with capture_logs() as logs:
        async with served(settings):
            pass
    assert any("forgotten" in line["event"] for line in logs)
    async with served(readable(settings, "another secret for keys")) as http:  # nothing is kept by the first
        api = Api(http)
        await api.login()
        assert "note" in await api.shown(domain, made["id"])
        assert await api.accepts(made["id"], made["credentials"]["secret"])


async def test_another_secret_is_refused_at_the_start_with_the_remedy(tmp_path: Path) -> None:
    settings = Site.at(tmp_path).identity
    async with served(readable(settings)) as http:
        api = Api(http)
        await api.login()
        domain = await api.domain()
        made = await api.client(domain, "proplet-1")
    with pytest.raises(StartError, match="IDENTITY_KEYS_READABLE=false, which forgets them"):
        async with served(readable(settings, "another secret for keys")):
            pass
    async with served(readable(settings)) as http:  # nothing was lost by that
        api = Api(http)
        await api.login()
        assert (await api.shown(domain, made["id"]))["secret"] == made["credentials"]["secret"]


async def test_a_damaged_one_and_one_of_another_client_are_not_shown(tmp_path: Path) -> None:
    settings = Site.at(tmp_path).identity
    async with served(readable(settings)) as http:
        api = Api(http)
        await api.login()
        domain = await api.domain()
        first, second, third = [await api.client(domain, f"proplet-{number}") for number in (1, 2, 3)]
    database = Database(settings.database)
    async with database.transaction() as connection:
        rows = await connection.execute(select(kept_keys))
        sealed = {row.client_id: row.sealed for row in rows}
        for client, value in ((first, sealed[second["id"]]), (second, "no base64")):
            await connection.execute(
                update(kept_keys).where(kept_keys.c.client_id == client["id"]).values(sealed=value)
            )
    await database.close()
    async with served(readable(settings)) as http:
        api = Api(http)
        await api.login()
        assert [set(await api.shown(domain, one["id"])) for one in (first, second, third)] == [
            {"identity", "note"},
            {"identity", "note"},
            {"identity", "secret"},
        ]


def test_without_a_secret_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_SECRET", "a secret of the tests")
    monkeypatch.setenv("IDENTITY_KEYS_READABLE", "true")
    with pytest.raises(SettingsError, match="IDENTITY_KEYS_SECRET"):
        IdentitySettings.load()
    monkeypatch.setenv("IDENTITY_KEYS_SECRET", "short")
    with pytest.raises(SettingsError, match="IDENTITY_KEYS_SECRET"):
        IdentitySettings.load()
