"""Devices over HTTP: added by people, let in once by their token, renamed and removed."""

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from propeller.identity.login_throttle import BURST
from propeller.identity.settings import IdentitySettings
from propeller.process.certificates import Authority, read_certificate
from propeller.protocol.join_tokens import JoinToken
from support.identity import PASSWORD, Site, served
from support.net import eventually

TOLD = {
    "join_url": "https://fleet.example:9002",
    "join_broker": "mqtts://fleet.example",
    "join_coordinator_url": "https://fleet.example:8086",
    "join_model_registry_url": "https://fleet.example:8084",
    "join_data_store_url": "https://fleet.example:8083",
}


class Api:
    """A domain with one channel, and whoever is logged in."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.token = self.domain = self.channel = ""

    async def open(self) -> None:
        await self.login("admin")
        self.domain = (await self.made("/domains", {"name": "d", "route": "d"}))["id"]
        self.channel = (await self.made(f"/{self.domain}/channels", {"name": "fl"}))["id"]

    async def login(self, username: str) -> None:
        answer = await self.http.post(
            "/users/tokens/issue", json={"username": username, "password": PASSWORD}
        )
        assert answer.headers["cache-control"] == "no-store"
        self.token = answer.json()["access_token"]

    async def __call__(self, method: str, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return await self.http.request(
            method, path, json=json, headers={"Authorization": f"Bearer {self.token}"}, **options
        )

    async def made(self, path: str, json: dict[str, Any]) -> dict[str, Any]:
        answer = await self("POST", path, json)
        assert answer.status_code == 201, answer.text
        if path.endswith(("/devices", "/clients")):  # with a token or a key
            assert answer.headers["cache-control"] == "no-store"
        found: dict[str, Any] = answer.json()
        return found

    async def add(self, name: str, **more: Any) -> dict[str, Any]:
        return await self.made(f"/{self.domain}/devices", {"name": name, **more})

    async def join(self, token: str) -> httpx.Response:
        """As a device does, which is nobody yet."""
        secret = JoinToken.decode(token).secret.hex()
        return await self.http.post("/devices/join", json={"secret": secret})

    async def devices(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self("GET", f"/{self.domain}/devices")).json()["devices"]
        return found


def settings_at(folder: Path, **more: Any) -> IdentitySettings:
    return Site.at(folder).identity.model_copy(update={**TOLD, **more})


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with served(settings_at(tmp_path)) as http:
        one = Api(http)
        await one.open()
        yield one


def reason(answer: httpx.Response) -> str:
    return str(answer.json()["error"])


async def test_a_device_is_added_joins_once_and_is_known(api: Api) -> None:
    added = await api.add("ward-3", tags=["hospital", "north"])
    token = JoinToken.decode(added["token"])
    assert (token.identity_url, token.fingerprint) == ("https://fleet.example:9002", None)
    assert [(one["name"], one["state"]) for one in await api.devices()] == [("ward-3", "waiting")]
    answer = await api.join(added["token"])
    assert answer.status_code == 200, answer.text
    joined = answer.json()
    assert len(joined.pop("key")) == 64
    told = {
        "id": added["id"],
        "name": "ward-3",
        "tags": ["hospital", "north"],
        "domain_id": api.domain,
        "channel_id": api.channel,
        "broker": {"host": "fleet.example", "port": 8883, "tls": True},
        "coordinator_url": "https://fleet.example:8086",
        "model_registry_url": "https://fleet.example:8084",
        "data_store_url": "https://fleet.example:8083",
    }
    assert joined == told
    known = answer.json()
    own = (known["id"], known["key"])
    assert (await api.http.get("/devices/self", auth=own)).json() == told
    basic = base64.b64encode(":".join(own).encode()).decode()
    verdict = await api.http.post("/auth/verify", json={"authorization": f"Basic {basic}"})
    assert (verdict.json()["role"], verdict.json()["name"]) == ("proplet", "ward-3")
    again = await api.join(added["token"])
    assert again.status_code == 409
    assert "was used at" in reason(again)
    (listed,) = await api.devices()
    assert (listed["state"], listed["token_expires_at"]) == ("joined", None)
    assert listed["joined_at"] is not None


async def test_a_device_that_asks_again_is_told_the_same_and_nobody_else_is(api: Api) -> None:
    added = await api.add("ward-3")
    secret = JoinToken.decode(added["token"]).secret.hex()

    async def ask(nonce: str) -> httpx.Response:
        return await api.http.post("/devices/join", json={"secret": secret, "nonce": nonce})

    mine, anothers = "5a" * 32, "5b" * 32
    first, *more = await asyncio.gather(*(ask(mine) for _ in range(4)))
    assert first.status_code == 200, first.text
    assert [one.json() for one in more] == [first.json()] * 3
    known = first.json()
    assert known["key"] != mine
    assert (await api.http.get("/devices/self", auth=(known["id"], known["key"]))).status_code == 200
    for refused in (await ask(anothers), await api.join(added["token"])):
        assert refused.status_code == 409
        assert "was used at" in reason(refused)
    assert (await ask(mine)).json() == known  # the others changed nothing
    await api("POST", f"/{api.domain}/clients/{added['id']}/secret")
    assert (await ask(mine)).status_code == 409  # it was given another key since
    for wrong in ("", "5a", "zz" * 32, mine + "5a"):
        assert (await ask(wrong)).status_code == 400


async def test_asking_again_ends_with_the_token(api: Api) -> None:
    token = JoinToken.decode((await api.add("ward-3", lifetime_s=1.0))["token"])
    body = {"secret": token.secret.hex(), "nonce": "5a" * 32}
    assert (await api.http.post("/devices/join", json=body)).status_code == 200

    async def is_over() -> bool:
        return (await api.http.post("/devices/join", json=body)).status_code == 409

    await eventually(is_over, what="the token's time is over")


async def test_of_many_that_come_at_once_one_is_let_in(api: Api) -> None:
    token = (await api.add("ward-3"))["token"]
    answers = await asyncio.gather(*(api.join(token) for _ in range(6)))
    assert sorted(one.status_code for one in answers) == [200, 409, 409, 409, 409, 409]


async def test_a_token_expires(api: Api) -> None:
    token = (await api.add("ward-3", lifetime_s=0.001))["token"]
    answer = await api.join(token)
    assert answer.status_code == 403
    assert "expired at" in reason(answer)
    assert "propeller device add" in reason(answer)
    assert [one["state"] for one in await api.devices()] == ["expired"]


async def test_guessing_is_slowed_down_and_says_nothing(api: Api) -> None:
    answers = [await api.http.post("/devices/join", json={"secret": f"{n:032x}"}) for n in range(BURST + 2)]
    assert {one.status_code for one in answers[:BURST]} == {401}
    assert len({one.text for one in answers[:BURST]}) == 1
    assert answers[-1].status_code == 429
    assert "join tokens" in reason(answers[-1])


async def test_a_removed_device_is_nobody_and_its_name_is_free(api: Api) -> None:
    added = await api.add("ward-3")
    known = (await api.join(added["token"])).json()
    taken = await api("POST", f"/{api.domain}/devices", {"name": "ward-3"})
    assert taken.status_code == 409
    assert "propeller device remove ward-3" in reason(taken)
    assert (await api("DELETE", f"/{api.domain}/devices/{added['id']}")).status_code == 204
    assert (await api("DELETE", f"/{api.domain}/devices/{added['id']}")).status_code == 404
    gone = await api.http.get("/devices/self", auth=(known["id"], known["key"]))
    assert gone.status_code == 401
    assert (await api.join(added["token"])).status_code == 401
    again = await api.add("ward-3")
    assert again["id"] != added["id"]
    assert (await api.join(again["token"])).status_code == 200


async def test_nobody_keeps_a_device_from_being_removed_by_naming_another_by_its_id(api: Api) -> None:
    stolen = await api.add("ward-3")
    for answer in (
        await api("POST", f"/{api.domain}/devices", {"name": stolen["id"]}),
        await api("PATCH", f"/{api.domain}/devices/{stolen['id']}", {"name": stolen["id"].upper()}),
    ):
        assert answer.status_code == 400
        assert "has the form of a client's id" in reason(answer)
    await api.made(
        f"/{api.domain}/clients", {"name": stolen["id"], "role": "device"}
    )  # by an admin, or from before
    gone = await api("DELETE", f"/{api.domain}/devices/{stolen['id']}")
    assert gone.status_code == 204, gone.text
    assert (await api.join(stolen["token"])).status_code == 401


async def test_a_device_is_renamed_and_told_so(api: Api) -> None:
    added = await api.add("ward-3")
    await api.add("ward-4")
    known = (await api.join(added["token"])).json()
    path = f"/{api.domain}/devices/{added['id']}"
    assert (await api("PATCH", path, {"name": "ward-4"})).status_code == 409
    assert (await api("PATCH", path, {"name": "cellar"})).json()["name"] == "cellar"
    told = await api.http.get("/devices/self", auth=(known["id"], known["key"]))
    assert told.json()["name"] == "cellar"


async def test_a_manager_is_told_what_the_proplets_of_its_channel_are_called(api: Api) -> None:
    other = await api.made(f"/{api.domain}/channels", {"name": "other"})
    first = await api.add("ward-3", tags=["hospital"], channel="fl")
    await api.add("ward-4", channel="other")
    path, clients = f"/{api.domain}/channels/connect", {}
    for name in ("manager", "proplet-1"):
        clients[name] = await api.made(f"/{api.domain}/clients", {"name": name, "tags": ["a,b"]})
        await api("POST", path, {"client_ids": [clients[name]["id"]], "channel_ids": [api.channel]})

    async def asked(name: str, channel: str = api.channel, version: str = "") -> httpx.Response:
        one, params = clients[name], {"domain_id": api.domain, "channel_id": channel}
        auth = (one["id"], one["credentials"]["secret"])
        headers = {"If-None-Match": version} if version else {}
        return await api.http.get("/auth/names", params=params, auth=auth, headers=headers)

    own = clients["proplet-1"]["id"]
    answer = await asked("manager")
    assert answer.json()["clients"] == {
        first["id"]: {"name": "ward-3", "tags": ["hospital"]},
        own: {"name": "proplet-1", "tags": ["a,b"]},
    }
    version = answer.headers["etag"]
    unchanged = await asked("manager", version=version)
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", version)
    device = f"/{api.domain}/devices/{first['id']}"
    assert (await api("PATCH", device, {"name": "cellar", "tags": ["north"]})).status_code == 200
    await api("POST", f"/{api.domain}/clients/{own}/disable")
    changed = await asked("manager", version=version)
    assert changed.json()["clients"] == {
        first["id"]: {"name": "cellar", "tags": ["north"]},
        own: {"name": "proplet-1", "tags": ["a,b"]},
    }
    await api("DELETE", device)
    assert set((await asked("manager")).json()["clients"]) == {own}
    await api("POST", f"/{api.domain}/clients/{own}/enable")
    for refused in (
        await asked("proplet-1", version=version),
        await asked("manager", other["id"], version),
        await api("GET", f"/auth/names?domain_id={api.domain}&channel_id={api.channel}"),
    ):
        assert (refused.status_code, "only a manager" in refused.text) == (403, True)


async def test_tags_are_changed_without_the_name_and_the_name_without_them(api: Api) -> None:
    own = await api.made(f"/{api.domain}/clients", {"name": "proplet-1", "tags": ["old"]})
    added = await api.add("ward-3", tags=["hospital"])
    path = f"/{api.domain}/devices"
    changed = await api("PATCH", f"{path}/{added['id']}", {"tags": ["north", "gpu"]})
    assert changed.json() == {"id": added["id"], "name": "ward-3", "tags": ["north", "gpu"]}
    renamed = await api("PATCH", f"{path}/{added['id']}", {"name": "ward-4"})
    assert renamed.json()["tags"] == ["north", "gpu"]
    assert (await api("PATCH", f"{path}/{own['id']}", {"tags": []})).json()["tags"] == []
    for body, named in (({}, "name, tags or both"), ({"tags": ["a,b"]}, "comma"), ({"tags": [""]}, "tags")):
        refused = await api("PATCH", f"{path}/{added['id']}", body)
        assert refused.status_code == 400
        assert named in reason(refused)


async def test_only_devices_are_changed_here_and_a_stacks_own_keep_their_names(api: Api) -> None:
    manager = await api.made(f"/{api.domain}/clients", {"name": "manager"})
    own = await api.made(f"/{api.domain}/clients", {"name": "proplet-1"})
    assert (await api("DELETE", f"/{api.domain}/devices/{manager['id']}")).status_code == 404
    renamed = await api("PATCH", f"/{api.domain}/devices/{own['id']}", {"name": "x"})
    assert renamed.status_code == 400
    assert [(one["name"], one["state"]) for one in await api.devices()] == [("proplet-1", "joined")]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"name": "proplet-7"}, "kept for the devices that a stack runs itself"),
        ({"name": "a b"}, "name"),
        ({"name": "x" * 65}, "64 characters"),
        ({"name": "a", "tags": ["b,c"]}, "comma"),
        ({"name": "a", "lifetime_s": 0}, "lifetime_s"),
        ({"name": "a", "lifetime_s": True}, "lifetime_s"),
        ({"name": "a", "lifetime_s": 1e9}, "lifetime_s"),
    ],
)
async def test_what_is_wrong_is_named(api: Api, body: dict[str, Any], named: str) -> None:
    answer = await api("POST", f"/{api.domain}/devices", body)
    assert answer.status_code == 400
    assert named in reason(answer)


async def test_where_there_are_several_channels_one_is_named(api: Api) -> None:
    second = await api.made(f"/{api.domain}/channels", {"name": "other"})
    unclear = await api("POST", f"/{api.domain}/devices", {"name": "a"})
    assert unclear.status_code == 400
    assert "fl, other" in reason(unclear)
    added = await api.add("a", channel="other")
    assert (await api.join(added["token"])).json()["channel_id"] == second["id"]
    missing = await api("POST", f"/{api.domain}/devices", {"name": "b", "channel": "none"})
    assert missing.status_code == 404


async def test_an_operator_adds_and_removes_and_a_viewer_does_not(api: Api) -> None:
    for name in ("operator", "viewer"):
        made = await api.made("/users", {"username": f"the-{name}", "password": PASSWORD})
        await api("PUT", f"/domains/{api.domain}/members/{made['id']}", {"role": name})
    await api.login("the-operator")
    added = await api.add("ward-3")
    assert (await api("POST", f"/{api.domain}/clients", {"name": "manager"})).status_code == 403
    known = (await api.join(added["token"])).json()
    await api.login("the-viewer")
    assert (await api("GET", f"/{api.domain}/devices")).status_code == 403
    assert (await api("DELETE", f"/{api.domain}/devices/{added['id']}")).status_code == 403
    as_device = await api.http.get(f"/{api.domain}/devices", auth=(known["id"], known["key"]))
    assert as_device.status_code == 403
    assert (await api("GET", "/devices/self")).status_code == 403


async def test_without_addresses_nobody_is_added(tmp_path: Path) -> None:
    async with served(Site.at(tmp_path).identity) as http:
        api = Api(http)
        await api.open()
        answer = await api("POST", f"/{api.domain}/devices", {"name": "a"})
        assert answer.status_code == 403
        assert "IDENTITY_JOIN_URL, IDENTITY_JOIN_BROKER" in reason(answer)
        assert (await http.get("/devices/ca")).status_code == 404


async def test_a_token_has_the_fingerprint_of_the_authority_that_is_shown(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "certs")
    authority.ensure()
    async with served(settings_at(tmp_path, join_ca_cert=authority.file)) as http:
        api = Api(http)
        await api.open()
        fingerprint = JoinToken.decode((await api.add("a"))["token"]).fingerprint
        assert fingerprint is not None
        assert fingerprint.hex() == read_certificate(authority.file).fingerprint
        shown = await http.get("/devices/ca")
        assert ssl.PEM_cert_to_DER_cert(shown.text) == ssl.PEM_cert_to_DER_cert(authority.file.read_text())
        authority.file.write_text("nothing")
        broken = await api("POST", f"/{api.domain}/devices", {"name": "b"})
        assert broken.status_code == 403
        assert "IDENTITY_JOIN_CA_CERT" in reason(broken)


async def test_what_was_done_is_in_the_audit_log(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    async with served(settings_at(tmp_path, audit_log=file)) as http:
        api = Api(http)
        await api.open()
        added = await api.add("ward-3")
        key = (await api.join(added["token"])).json()["key"]
        await api("PATCH", f"/{api.domain}/devices/{added['id']}", {"name": "cellar"})
        await api("DELETE", f"/{api.domain}/devices/{added['id']}")
    text = file.read_text()
    entries = [json.loads(line) for line in text.splitlines()[-4:]]
    assert [(one["action"].partition(" ")[0], one["about"]["device"]) for one in entries] == [
        ("POST", "ward-3"),
        ("POST", "ward-3"),
        ("PATCH", "cellar"),
        ("DELETE", "cellar"),
    ]
    assert entries[1]["action"] == "POST /devices/join"
    assert added["token"] not in text
    assert JoinToken.decode(added["token"]).secret.hex() not in text
    assert key not in text
