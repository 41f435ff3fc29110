"""The identity API over HTTP, as provisioning scripts and administrators use it."""

import asyncio
import base64
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from propeller.errors import StartError
from propeller.identity.login_throttle import FREE_FAILURES
from propeller.identity.settings import IdentitySettings
from support.identity import PASSWORD, SECRET, Site, served


class Api:
    def __init__(self, http: httpx.AsyncClient, settings: IdentitySettings) -> None:
        self.http, self.settings = http, settings
        self.token = ""

    async def login(self, username: str = "admin", password: str = PASSWORD) -> httpx.Response:
        answer = await self.http.post(
            "/users/tokens/issue", json={"username": username, "password": password}
        )
        if answer.is_success:
            self.token = answer.json()["access_token"]
        return answer

    async def __call__(self, method: str, path: str, json: Any = None, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return await self.http.request(method, path, json=json, headers=headers, **options)

    async def made(self, path: str, json: dict[str, Any]) -> dict[str, Any]:
        answer = await self("POST", path, json)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    settings = Site.at(tmp_path).identity
    async with served(settings) as http:
        one = Api(http, settings)
        await one.login()
        yield one


async def test_the_guides_provisioning(api: Api) -> None:
    ports = api.settings
    bases = [
        f"http://127.0.0.1:{port}" for port in (ports.domains_port, ports.channels_port, ports.clients_port)
    ]
    for base in bases:
        assert (await api.http.get(f"{base}/health")).json() == {"status": "ok", "broker": "away"}
    domains, channels, clients = bases
    domain = (await api.made(f"{domains}/domains", {"name": "fl-demo", "route": "fl-demo"}))["id"]
    again = await api("POST", f"{domains}/domains", {"name": "fl-demo", "route": "fl-demo"})
    assert again.status_code == 409
    assert "route" in again.json()["error"]
    assert [one["id"] for one in (await api("GET", f"{domains}/domains")).json()["domains"]] == [domain]
    roles, ids = {}, []
    for name in ("manager", "proplet-1", "proplet-2", "proplet-3", "fl-coordinator", "proxy"):
        body = {"name": name, "tags": ["propeller", "fl-demo"], "status": "enabled"}
        made = await api.made(f"{clients}/{domain}/clients", body)
        assert len(made["credentials"]["secret"]) == 64
        roles[name] = made["role"]
        ids.append(made["id"])
        assert (await api("POST", f"{clients}/{domain}/clients", body)).status_code == 409
        found = (await api("GET", f"{clients}/{domain}/clients", params={"name": name})).json()["clients"]
        assert [one["id"] for one in found] == [made["id"]]
        assert "secret" not in found[0]["credentials"]
    assert roles == {
        "manager": "manager",
        "proplet-1": "proplet",
        "proplet-2": "proplet",
        "proplet-3": "proplet",
        "fl-coordinator": "coordinator",
        "proxy": "proxy",
    }
    channel = (await api.made(f"{channels}/{domain}/channels", {"name": "fl", "status": "enabled"}))["id"]
    assert (await api("POST", f"{channels}/{domain}/channels", {"name": "fl"})).status_code == 409
    body = {"client_ids": ids, "channel_ids": [channel], "types": ["publish", "subscribe"]}
    for _ in range(2):
        assert (await api("POST", f"{channels}/{domain}/channels/connect", body)).status_code == 201


async def test_the_audit_log_says_whom_a_channel_was_opened_to(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    settings = Site.at(tmp_path).identity.model_copy(update={"audit_log": file})
    async with served(settings) as http:
        api = Api(http, settings)
        await api.login()
        domain = (await api.made("/domains", {"name": "d", "route": "d"}))["id"]
        client = (await api.made(f"/{domain}/clients", {"name": "proplet-1"}))["id"]
        channel = (await api.made(f"/{domain}/channels", {"name": "fl"}))["id"]
        only = {"client_ids": [client], "types": ["subscribe"]}
        await api.made(f"/{domain}/channels/{channel}/connect", only)
        await api.made(f"/{domain}/channels/connect", only | {"channel_ids": [channel]})
        assert (await api("POST", f"/{domain}/channels/{channel}/disconnect", only)).status_code == 204
        assert (await api("PATCH", f"/{domain}/clients/{client}", {"compat": True})).is_success
    told = [json.loads(line)["about"] for line in file.read_bytes().splitlines()[-4:]]
    said = {"clients": client, "channels": channel, "types": "subscribe"}
    assert told == [said, said, said, {"compat": True}]


async def test_lists_are_paged_in_a_stable_order(api: Api) -> None:
    domain = (await api.made("/domains", {"name": "d", "route": "d"}))["id"]
    made = [(await api.made(f"/{domain}/clients", {"name": f"c-{n}"}))["id"] for n in range(7)]
    await api("POST", f"/{domain}/clients/{made[3]}/disable")
    seen: list[str] = []
    for offset in (0, 3, 6, 9):
        part = (await api("GET", f"/{domain}/clients", params={"offset": offset, "limit": 3})).json()
        assert part["total"] == 7
        seen += [one["id"] for one in part["clients"]]
    assert seen == made
    disabled = (await api("GET", f"/{domain}/clients", params={"status": "disabled"})).json()
    assert [one["id"] for one in disabled["clients"]] == [made[3]]
    for wrong in (
        {"limit": 0},
        {"limit": 1001},
        {"offset": -1},
        {"offset": 10**30},
        {"limit": "x"},
        {"status": "x"},
    ):
        answer = await api("GET", f"/{domain}/clients", params=wrong)
        assert answer.status_code == 400
        assert next(iter(wrong)) in answer.json()["error"]


BAD_BODIES: list[tuple[str, Any, str]] = [
    ("/domains", {"name": "x"}, "route"),
    ("/domains", {"name": "x", "route": "a/../b"}, "route"),
    ("/domains", {"name": "", "route": "a"}, "name"),
    ("/domains", ["name"], "JSON"),
    ("/{d}/clients", {}, "name"),
    ("/{d}/clients", {"name": "a" * 129}, "name"),
    ("/{d}/clients", {"name": "line\nfeed"}, "name"),
    ("/{d}/clients", {"name": 5}, "name"),
    ("/{d}/clients", {"name": "a", "role": "king"}, "role"),
    ("/{d}/clients", {"name": "a", "tags": ["role:king"]}, "role"),
    ("/{d}/clients", {"name": "a", "metadata": {"x": "y" * 20000}}, "metadata"),
    ("/{d}/clients", {"name": "a", "tags": "x"}, "tags"),
    ("/{d}/clients", {"name": "a", "status": "maybe"}, "status"),
    ("/{d}/clients", {"name": "a", "credentials": {"secret": "s3cret"}}, "secret"),
    ("/{d}/channels", {"name": None}, "name"),
    ("/{d}/channels/connect", {"client_ids": [], "channel_ids": ["a"]}, "client_ids"),
    ("/{d}/channels/connect", {"client_ids": ["a#"], "channel_ids": ["a"]}, "client_ids"),
    ("/{d}/channels/connect", {"client_ids": ["a"], "channel_ids": ["a"], "types": ["fly"]}, "types"),
    ("/users", {"username": "u", "password": "s3cret"}, "password"),
    ("/users/tokens/issue", {"username": "admin"}, "password"),
    ("/auth/verify", {}, "authorization"),
]


async def test_a_bad_body_is_answered_with_its_field(api: Api) -> None:
    domain = (await api.made("/domains", {"name": "d", "route": "d"}))["id"]
    for path, body, names in BAD_BODIES:
        answer = await api("POST", path.format(d=domain), body)
        assert answer.status_code == 400, body
        assert names in answer.json()["error"], body
        assert "s3cret" not in answer.text


async def test_what_is_not_there_is_404(api: Api) -> None:
    domain = (await api.made("/domains", {"name": "d", "route": "d"}))["id"]
    client = (await api.made(f"/{domain}/clients", {"name": "c"}))["id"]
    for method, path in (
        ("GET", "/domains/none"),
        ("POST", "/domains/none/disable"),
        ("GET", "/none/clients"),
        ("POST", "/none/clients"),
        ("GET", f"/{domain}/clients/none"),
        ("DELETE", f"/{domain}/clients/none"),
        ("POST", f"/{domain}/clients/none/secret"),
        ("POST", f"/{domain}/clients/none/enable"),
        ("DELETE", f"/{domain}/channels/none"),
        ("GET", "/users/none"),
        ("POST", "/users/none/disable"),
    ):
        answer = await api(
            method, path, {"name": "x"} if path.endswith("clients") and method == "POST" else None
        )
        assert answer.status_code == 404, path
    answer = await api(
        "POST", f"/{domain}/channels/connect", {"client_ids": [client], "channel_ids": ["none"]}
    )
    assert answer.status_code == 404
    assert "none" in answer.json()["error"]


async def test_only_users_manage(api: Api) -> None:
    domain = (await api.made("/domains", {"name": "d", "route": "d"}))["id"]
    made = await api.made(f"/{domain}/clients", {"name": "manager"})
    basic = (made["id"], made["credentials"]["secret"])
    assert (await api.http.get("/domains", auth=basic)).status_code == 403
    for headers in (
        {},
        {"Authorization": "Bearer x"},
        {"Authorization": "Basic !"},
        {"Authorization": "Other x"},
    ):
        answer = await api.http.get("/domains", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]
        assert "WWW-Authenticate" in answer.headers


async def test_a_user_manages_own_domains_only(api: Api) -> None:
    foreign = (await api.made("/domains", {"name": "d", "route": "d"}))["id"]
    await api.made("/users", {"username": "ann", "password": "ann-ann-ann"})
    assert (await api("POST", "/users", {"username": "ann", "password": "ann-ann-ann"})).status_code == 409
    await api.login("ann", "ann-ann-ann")
    own = (await api.made("/domains", {"name": "a", "route": "a"}))["id"]
    assert [one["id"] for one in (await api("GET", "/domains")).json()["domains"]] == [own]
    assert (await api("GET", f"/{own}/clients")).status_code == 200
    for method, path in (
        ("GET", f"/domains/{foreign}"),
        ("GET", f"/{foreign}/clients"),
        ("POST", f"/{foreign}/clients"),
        ("GET", "/users"),
        ("POST", "/users"),
    ):
        assert (
            await api(method, path, {"name": "x", "username": "x", "password": "12345678"})
        ).status_code == 403


async def test_keys_are_verified_rotated_and_end_with_the_client(api: Api) -> None:
    domain = (await api.made("/domains", {"name": "d", "route": "d"}))["id"]
    made = await api.made(f"/{domain}/clients", {"name": "proplet-1"})
    path, key = f"/{domain}/clients/{made['id']}", made["credentials"]["secret"]

    async def verify(secret: str) -> httpx.Response:
        header = "Basic " + base64.b64encode(f"{made['id']}:{secret}".encode()).decode()
        return await api.http.post("/auth/verify", json={"authorization": header})

    good = await verify(key)
    assert (good.status_code, good.json()) == (
        200,
        {"kind": "client", "id": made["id"], "role": "proplet", "domain": domain, "name": made["name"]},
    )
    assert (await verify(key[:-1])).status_code == 401
    assert (await verify("")).status_code == 401
    new = (await api("POST", f"{path}/secret")).json()["credentials"]["secret"]
    assert [(await verify(one)).status_code for one in (key, new)] == [401, 200]
    assert (await api("POST", f"{path}/disable")).json()["status"] == "disabled"
    assert (await verify(new)).status_code == 401
    assert (await api("POST", f"{path}/enable")).json()["status"] == "enabled"
    assert (await verify(new)).status_code == 200
    assert (await api("DELETE", path)).status_code == 204
    assert (await verify(new)).status_code == 401
    assert (await api("GET", path)).status_code == 404
    assert (await api("GET", f"/{domain}/clients")).json()["total"] == 0
    again = await api.made(f"/{domain}/clients", {"name": "proplet-1"})
    assert again["id"] != made["id"]


async def test_tokens(api: Api) -> None:
    issued = await api.http.post("/users/tokens/issue", json={"identity": "admin", "secret": PASSWORD})
    access, refresh = issued.json()["access_token"], issued.json()["refresh_token"]
    verdict = await api.http.post("/auth/verify", json={"authorization": f"Bearer {access}"})
    assert verdict.json()["kind"] == "user"
    assert verdict.json()["role"] == "admin"
    refreshed = await api.http.post("/users/tokens/refresh", headers={"Authorization": f"Bearer {refresh}"})
    assert refreshed.status_code == 201
    for path, token in (
        ("/users/profile", refresh),
        ("/users/tokens/refresh", access),
        ("/users/profile", access[:-2]),
    ):
        method = "GET" if path.endswith("profile") else "POST"
        answer = await api.http.request(method, path, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 401, path
    answer = await api.http.post("/users/tokens/refresh")
    assert (answer.status_code, answer.json()) == (401, {"error": "send the refresh token as Bearer"})
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_a_new_password_ends_the_old_tokens(api: Api) -> None:
    await api.made("/users", {"username": "ann", "password": "ann-ann-ann"})
    await api.login("ann", "ann-ann-ann")
    wrong = {"old_secret": "no", "new_secret": "new-new-new"}
    assert (await api("PATCH", "/users/secret", wrong)).status_code == 401
    right = {**wrong, "old_secret": "ann-ann-ann"}
    assert (await api("PATCH", "/users/secret", right)).status_code == 204
    assert (await api("GET", "/users/profile")).status_code == 401
    assert (await api.login("ann", "ann-ann-ann")).status_code == 401
    assert (await api.login("ann", "new-new-new")).status_code == 201
    assert (await api("GET", "/users/profile")).json()["credentials"] == {"username": "ann"}


async def test_a_refresh_token_is_good_once(api: Api) -> None:
    async def refresh(token: str) -> httpx.Response:
        return await api.http.post("/users/tokens/refresh", headers={"Authorization": f"Bearer {token}"})

    async def knows(token: str) -> bool:
        verdict = await api.http.post("/auth/verify", json={"authorization": f"Bearer {token}"})
        return verdict.status_code == 200

    body = {"username": "admin", "password": PASSWORD}
    first = (await api.http.post("/users/tokens/issue", json=body)).json()
    other = (await api.http.post("/users/tokens/issue", json=body)).json()
    second = (await refresh(first["refresh_token"])).json()
    third = (await refresh(second["refresh_token"])).json()
    assert [await knows(one["access_token"]) for one in (first, second, third)] == [True] * 3
    stolen = await refresh(first["refresh_token"])
    assert stolen.status_code == 401
    assert "used before, so its login is ended" in stolen.json()["error"]
    # Whoever has the newest one is out, too: nobody knows which of them is the thief. Other logins are not concerned.
    assert (await refresh(third["refresh_token"])).status_code == 401
    assert [await knows(one["access_token"]) for one in (first, second, third, other)] == [False] * 3 + [True]


async def test_of_two_at_once_with_one_refresh_token_one_gets_on(api: Api) -> None:
    body = {"username": "admin", "password": PASSWORD}
    token = (await api.http.post("/users/tokens/issue", json=body)).json()["refresh_token"]
    header = {"Authorization": f"Bearer {token}"}
    answers = await asyncio.gather(
        *(api.http.post("/users/tokens/refresh", headers=header) for _ in range(5))
    )
    assert sorted(answer.status_code for answer in answers) == [201, 401, 401, 401, 401]


async def test_a_login_ends_when_it_is_revoked_and_of_many_the_oldest_does(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.identity.users.MAX_LOGINS", 3)
    body = {"username": "admin", "password": PASSWORD}
    tokens = [
        (await api.http.post("/users/tokens/issue", json=body)).json()["access_token"] for _ in range(4)
    ]

    async def statuses() -> list[int]:
        return [
            (await api.http.get("/users/profile", headers={"Authorization": f"Bearer {one}"})).status_code
            for one in tokens
        ]

    assert await statuses() == [401, 200, 200, 200]
    header = {"Authorization": f"Bearer {tokens[2]}"}
    assert (await api.http.post("/users/tokens/revoke", headers=header)).status_code == 204
    assert await statuses() == [401, 200, 401, 200]


async def test_members_have_their_role_in_their_domain_alone(api: Api) -> None:
    one = (await api.made("/domains", {"name": "one", "route": "one"}))["id"]
    two = (await api.made("/domains", {"name": "two", "route": "two"}))["id"]
    ann = await api.made("/users", {"username": "ann", "password": "ann-ann-ann"})
    path = f"/domains/{one}/members/{ann['id']}"
    assert (await api("PUT", path, {"role": "king"})).status_code == 400
    assert (await api("PUT", f"/domains/{one}/members/nobody", {"role": "viewer"})).status_code == 404
    other = Api(api.http, api.settings)
    token = (await other.login("ann", "ann-ann-ann")).json()["access_token"]

    async def role(domain: str) -> Any:
        body = {"authorization": f"Bearer {token}", "domain": domain}
        answer = await api.http.post("/auth/verify", json=body)
        return answer.json().get("role") if answer.status_code == 200 else answer.status_code

    assert await role(one) == 403
    for given in ("viewer", "operator", "admin"):
        assert (await api("PUT", path, {"role": given})).status_code == 200
        assert (await role(one), await role(two), await role("nowhere")) == (given, 403, 403)
        # A domain's admins manage it, and its other members do not.
        allowed = (await other("GET", f"/{one}/clients")).status_code
        assert allowed == (200 if given == "admin" else 403)
    assert (await api("GET", f"/domains/{one}/members")).json() == {
        "members": [{"user_id": ann["id"], "username": "ann", "role": "admin"}]
    }
    assert [one["name"] for one in (await other("GET", "/domains")).json()["domains"]] == ["one"]
    assert (await api("DELETE", path)).status_code == 204
    assert (await api("DELETE", path)).status_code == 404
    assert await role(one) == 403


async def test_a_client_is_of_its_domain_alone(api: Api) -> None:
    one = (await api.made("/domains", {"name": "one", "route": "one"}))["id"]
    two = (await api.made("/domains", {"name": "two", "route": "two"}))["id"]
    made = await api.made(f"/{one}/clients", {"name": "viewer-1"})
    pair = f"{made['id']}:{made['credentials']['secret']}".encode()
    header = "Basic " + base64.b64encode(pair).decode()
    answers = [
        await api.http.post("/auth/verify", json={"authorization": header, "domain": domain})
        for domain in (one, two)
    ]
    assert [answer.status_code for answer in answers] == [200, 403]
    assert answers[0].json()["role"] == "viewer"
    assert (await api("POST", f"/{one}/clients", {"name": "x", "role": "admin"})).status_code == 400


async def test_a_disabled_user_is_out(api: Api) -> None:
    ann = await api.made("/users", {"username": "ann", "password": "ann-ann-ann"})
    other = Api(api.http, api.settings)
    await other.login("ann", "ann-ann-ann")
    assert (await api("POST", f"/users/{ann['id']}/disable")).status_code == 200
    assert (await other("GET", "/users/profile")).status_code == 401
    assert (await other.login("ann", "ann-ann-ann")).status_code == 401


async def test_guessing_is_slowed_down(api: Api) -> None:
    tries = await asyncio.gather(
        *(
            api.http.post("/users/tokens/issue", json={"username": "x", "password": "y"})
            for _ in range(FREE_FAILURES)
        )
    )
    assert {answer.status_code for answer in tries} == {401}
    after = await api.http.post("/users/tokens/issue", json={"username": "x", "password": "y"})
    assert after.status_code == 429
    assert int(after.headers["Retry-After"]) > 0
    assert (await api.login()).status_code == 201


async def test_expired_tokens_say_so(tmp_path: Path) -> None:
    site = Site.at(tmp_path).identity.model_copy(update={"access_token_s": 0.001})
    async with served(site) as http:
        one = Api(http, site)
        await one.login()
        await asyncio.sleep(0.01)
        answer = await one("GET", "/domains")
    assert answer.status_code == 401
    assert "expired" in answer.json()["error"]


async def test_everything_is_kept_and_the_admins_password_is_the_environments(tmp_path: Path) -> None:
    settings = Site.at(tmp_path).identity
    async with served(settings) as http:
        one = Api(http, settings)
        await one.login()
        domain = (await one.made("/domains", {"name": "d", "route": "d"}))["id"]
        made = await one.made(f"/{domain}/clients", {"name": "c"})
    changed = IdentitySettings.load(**{**settings.model_dump(), "admin_password": "another one"})
    async with served(changed) as http:
        one = Api(http, changed)
        assert (await one.login()).status_code == 401
        assert (await one.login(password="another one")).status_code == 201
        assert (await one("GET", f"/{domain}/clients/{made['id']}")).json()["name"] == "c"
    files = list(tmp_path.glob("identity.db*"))
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    secret = made["credentials"]["secret"].encode()
    assert not any(secret in file.read_bytes() for file in files)
    without = IdentitySettings.load(**settings.model_dump(exclude={"admin_password"}))
    async with served(without):
        pass


async def test_without_an_admin_it_does_not_start(tmp_path: Path) -> None:
    settings = IdentitySettings.load(database=str(tmp_path / "new.db"), broker_secret=SECRET)
    with pytest.raises(StartError, match="IDENTITY_ADMIN_PASSWORD"):
        async with served(settings):
            pass


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/domains", {"nmae": "d", "route": "d"}, "nmae: there is no such field; did you mean 'name'? There are name, route"),
        ("/{domain}/clients", {"name": "a", "rol": "proxy"}, "rol: there is no such field; did you mean 'role'?"),
        ("/{domain}/channels", {"name": "a", "statsu": "enabled"}, "statsu: there is no such field; did you mean 'status'?"),
        ("/{domain}/devices", {"name": "a", "tag": ["x"]}, "tag: there is no such field; did you mean 'tags'?"),
        ("/users", {"user": "ann", "password": PASSWORD}, "user: there is no such field; did you mean 'username'?"),
        ("/users/tokens/issue", {"username": "admin", "pasword": PASSWORD}, "did you mean 'password'?"),
        ("/{domain}/channels/connect", {"clients": [], "channel_ids": []}, "clients: there is no such field; did you mean 'client_ids'?"),
    ],
)  # fmt: skip
async def test_a_field_that_there_is_not_is_refused_with_the_nearest(
    api: Api, path: str, body: dict[str, Any], told: str
) -> None:
    domain = (await api.made("/domains", {"name": "known", "route": "known"}))["id"]
    answer = await api("POST", path.format(domain=domain), body)
    assert answer.status_code == 400
    assert told in answer.json()["error"]
    assert PASSWORD not in answer.text


async def test_fields_of_the_other_identity_service_are_taken(api: Api) -> None:
    domain = await api.made("/domains", {"name": "d", "route": "d", "tags": ["t"], "metadata": {"a": 1}})
    path = f"/{domain['id']}"
    await api.made(f"{path}/channels", {"name": "c", "route": "c", "metadata": {}, "parent_group_id": ""})
    await api.made(f"{path}/clients", {"name": "manager", "parent_group_id": ""})
    logged_in = {"identity": "admin", "secret": PASSWORD, "domain_id": domain["id"]}
    assert (await api("POST", "/users/tokens/issue", logged_in)).status_code == 201
    many = {f"field-{number}": 1 for number in range(5000)}
    refused = await api("POST", "/domains", {"name": "e", "route": "e", **many})
    assert refused.status_code == 400
    assert len(refused.text) < 4000
