"""The doctor on a stack that runs: nothing wrong, then one thing after another broken for real, and mended."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from propeller.sdk import Propeller, PropellerError
from support.doctor import Report, changed, examine, gone, hung, listener, published
from support.net import eventually, free_port
from support.service import start_service
from support.stack import Up, propeller, running_stack

pytestmark = pytest.mark.timeout(180)

NEEDS_THE_BROKER = {"client ids", "keys", "channel", "manager mqtt", "proplets", "image"}


SILENT_PORT = free_port()
"""Where a registry is that says nothing."""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    registries = {"PROXY_ALLOWED_REGISTRIES": f"http://127.0.0.1:{SILENT_PORT}"}
    with running_stack(tmp_path_factory.mktemp("doctor") / "state", env=registries) as running:
        yield running


def report(up: Up, *arguments: str) -> Report:
    return examine("--state", str(up.folder), *arguments)


async def healthy_again(up: Up) -> None:
    await eventually(lambda: report(up).code == 0, 45, "the doctor finds nothing wrong")


def admin(up: Up, method: str, path: str, **options: Any) -> Any:
    """A call to identity as its first user."""
    identity = up.stack["services"]["identity"]
    token = httpx.post(f"{identity['users']}/users/tokens/issue", json=up.stack["admin"]).json()
    headers = {"Authorization": f"Bearer {token['access_token']}"}
    answer = httpx.request(method, f"{identity['clients']}{path}", headers=headers, **options)
    assert answer.is_success, answer.text
    return answer.json() if answer.content else None


@contextmanager
def without(file: Path) -> Iterator[None]:
    aside = file.with_name(f"{file.name}.aside")
    file.rename(aside)
    try:
        yield
    finally:
        aside.rename(file)


def test_nothing_is_wrong_and_no_session_is_taken_over(up: Up) -> None:
    logs = [up.folder / "logs" / f"{name}.log" for name in ("manager", "proplet-1", "proxy", "coordinator")]
    connects = [log.read_text().count("connected to MQTT broker") for log in logs]
    found = report(up)
    assert (found.code, found.failed, found.skipped) == (0, set(), {})
    assert "of the 200000 that the broker may keep" in found.line("subscriptions")
    assert connects == [log.read_text().count("connected to MQTT broker") for log in logs]


def test_as_a_person_reads_it(up: Up) -> None:
    done = propeller("doctor", "--state", str(up.folder), "--participants", "proplet-2")
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert any(line.startswith("PASS manager: http://127.0.0.1:") for line in lines)
    wrong = next(number for number, line in enumerate(lines) if line.startswith("FAIL"))
    assert lines[wrong] == "FAIL participants: --participants: proplet-2 is an instance name, not a client id"
    assert up.stack["clients"]["proplet-2"]["id"] in lines[wrong + 1]
    assert lines[wrong + 1].strip().startswith("fix: use ")
    for secret in [client["key"] for client in up.stack["clients"].values()] + [
        up.stack["admin"]["password"]
    ]:
        assert secret not in done.stdout + done.stderr


def test_participants(up: Up) -> None:
    good, unknown = up.ids()[0], "00000000-1111-2222-3333-444444444444"
    found = report(up, "--participants", f"{good}, proplet-1,{unknown}")
    assert found.failed == {"participants"}
    assert "proplet-1 is an instance name" in found.line("participants")
    assert f"the manager knows no proplet '{unknown}'" in found.line("participants")
    assert report(up, "--participants", good).code == 0


async def test_services_that_hang(up: Up) -> None:
    begun = time.monotonic()
    with (
        hung(listener(up.url("data_store"))),
        hung(listener(up.url("identity"))),
        hung(listener(up.url("proxy"))),
    ):
        found = report(up)
    assert time.monotonic() - begun < 15
    assert found.failed == {"data-store", "identity", "proxy"}
    for what in found.failed:
        assert "accepts connections but did not answer" in found.line(what)
    assert found.skipped == {
        "datasets": "waits for data-store",
        "keys": "waits for identity",
        "subscriptions": "waits for identity",
        "client ids": "waits for identity",
        "channel": "waits for keys",
        "image": "waits for proxy",
    }
    await healthy_again(up)  # their answers tell the time at which they were stopped, for up to a second


async def test_a_proplet_that_died(up: Up) -> None:
    with gone(up, psutil.Process(up.stack["processes"]["proplet-1"])):
        url = f"{up.url('manager')}/proplets/{up.stack['clients']['proplet-1']['id']}"
        await eventually(lambda: not httpx.get(url).json()["alive"], 30, "the manager notices")
        found = report(up)
    assert found.failed == {"proplets"}
    assert (
        f"proplet-1 ({up.stack['clients']['proplet-1']['id']}) is not alive: its last heartbeat was"
        in found.line("proplets")
    )
    await healthy_again(up)


async def test_a_coordinator_that_is_down(up: Up) -> None:
    with gone(up, listener(up.url("coordinator"))):
        found = report(up)
    assert found.failed == {"coordinator"}
    assert "nothing listens" in found.line("coordinator")
    assert f"propeller logs --state {up.folder} --service coordinator" in found.line("coordinator")
    assert found.skipped == {"rounds": "waits for coordinator"}
    await healthy_again(up)


async def test_a_broker_that_is_down(up: Up) -> None:
    broker = up.stack["broker"]
    server = listener(f"tcp://{broker['host']}:{broker['port']}")
    service = server.parent()  # it would start the server again; without it the server ends
    assert service is not None
    with gone(up, service):
        server.wait(10)
        found = report(up)
    assert found.failed == {"broker"}
    assert "nothing listens" in found.line("broker")
    assert set(found.skipped) == NEEDS_THE_BROKER
    await healthy_again(up)


def test_a_revoked_key(up: Up, tmp_path: Path) -> None:
    domain, channel = up.stack["domain_id"], up.stack["channel_id"]
    made = admin(up, "POST", f"/{domain}/clients", json={"name": "proplet-9"})
    body = {"client_ids": [made["id"]], "types": ["publish", "subscribe"]}
    admin(up, "POST", f"/{domain}/channels/{channel}/connect", json=body)
    stack = changed(up.stack)
    stack["clients"]["proplet-9"] = {"id": made["id"], "key": made["credentials"]["secret"]}
    stack["clients"] = {name: one for name, one in stack["clients"].items() if name != "proplet-1"}
    with published(tmp_path, stack) as folder:
        assert examine("--state", str(folder)).failed == {"proplets", "datasets"}  # it never ran
        admin(up, "POST", f"/{domain}/clients/{made['id']}/secret")
        found = examine("--state", str(folder))
    assert found.failed == {"keys", "datasets"}
    assert "the broker refuses proplet-9" in found.line("keys")
    assert "its key is wrong: it was revoked" in found.line("keys")
    assert found.skipped == {"proplets": "waits for keys, channel"}
    admin(up, "DELETE", f"/{domain}/clients/{made['id']}")


async def test_a_disabled_client(up: Up) -> None:
    path = f"/{up.stack['domain_id']}/clients/{up.stack['clients']['proplet-2']['id']}"
    admin(up, "POST", f"{path}/disable")
    found = report(up)
    admin(up, "POST", f"{path}/enable")
    assert found.failed == {"keys"}
    assert "it is disabled" in found.line("keys")
    assert f"{path}/enable" in found.line("keys")
    await healthy_again(up)


def test_a_dataset_that_is_gone_and_an_empty_one(up: Up) -> None:
    first, second, _third = up.ids()
    file = up.folder / "data-store" / f"{second}.json"
    with without(up.folder / "data-store" / f"{first}.json"), without(file):
        file.write_text('{"data": []}')
        found = report(up)
        file.unlink()
    assert found.failed == {"datasets"}
    assert f"proplet-1 ({first}) has no dataset" in found.line("datasets")
    assert f"proplet-2 ({second}) has an empty dataset" in found.line("datasets")
    assert report(up).code == 0


def test_no_model_to_begin_with(up: Up) -> None:
    [model] = (up.folder / "model-registry").glob("global_model_v0.*")
    with without(model):
        found = report(up)
    assert found.failed == {"model 0"}
    assert f"curl -X POST {up.url('model_registry')}/models" in found.line("model 0")


def test_images(up: Up) -> None:
    registry = up.url("oci_registry").removeprefix("http://")
    absent = report(up, "--image", f"{registry}/not-there:latest")
    assert absent.failed == {"image"}
    assert "404 Not Found" in absent.line("image")
    assert "use exactly the name and tag you pushed" in absent.line("image")
    upper = report(up, "--image", "ghcr.io/YourUsername/fl-client-wasm:latest")
    assert upper.failed == {"image"}
    assert "upper-case letters" in upper.line("image")
    assert "use exactly the name you pushed" in upper.line("image")


def test_a_registry_that_says_nothing(up: Up) -> None:
    with socket.create_server(("127.0.0.1", SILENT_PORT)):
        begun = time.monotonic()
        found = report(up, "--image", f"127.0.0.1:{SILENT_PORT}/program:latest")
    assert time.monotonic() - begun < 15
    assert found.failed == {"image"}
    assert "the proxy runs, but its registry gave no answer" in found.line("image")


def test_the_ids_of_an_env_file(up: Up, tmp_path: Path) -> None:
    ids = (up.folder / ".env").read_text()
    ports = "".join(
        f"PORT_{name.upper().replace('-', '_')}={url.rpartition(':')[2]}\n"
        for name, url in {
            "broker": f":{up.stack['broker']['port']}",
            **{f"identity-{name}": up.stack["services"]["identity"][name] for name in
               ("users", "domains", "channels", "clients")},
            **{name: one["url"] for name, one in up.stack["services"].items() if name != "identity"},
        }.items()
    )  # fmt: skip
    assert examine("--env-file", str(up.folder / ".env")).code == 0
    containers = tmp_path / ".env"
    containers.write_text(ids + ports)
    assert examine("--env-file", str(containers)).code == 0
    right, wrong = up.stack["channel_id"], "99999999-0000-0000-0000-000000000000"
    containers.write_text(ids.replace(f"PROPLET_CHANNEL_ID={right}", f"PROPLET_CHANNEL_ID={wrong}") + ports)
    found = examine("--env-file", str(containers))
    assert found.failed == {"channel"}
    assert f"/c/{wrong} (PROPLET_DOMAIN_ID and PROPLET_CHANNEL_ID) to proplet-1" in found.line("channel")
    assert f"propeller provision --env-file {containers}" in found.line("channel")
    containers.write_text(ids.replace("PROXY_CLIENT_KEY=", "PROXY_CLIENT_KEY=x") + ports)
    found = examine("--env-file", str(containers))
    assert found.failed == {"keys"}
    assert "the broker refuses proxy (" in found.line("keys")
    assert "PROXY_CLIENT_ID" in found.line("keys")
    assert found.skipped == {"image": "waits for keys, channel"}
    assert "it is unknown or disabled, or its key is wrong or revoked" in found.line("keys")
    containers.write_text(
        ids.replace("PROXY_CLIENT_KEY=", "PROXY_CLIENT_KEY=x") + ports + "IDENTITY_ADMIN_USERNAME="
        f"admin\nIDENTITY_ADMIN_PASSWORD={up.stack['admin']['password']}\n"
    )
    assert "its key is wrong: it was revoked" in examine("--env-file", str(containers)).line("keys")
    secret = up.stack["clients"]["proplet-2"]["key"]
    containers.write_text(ids.replace("PROPLET_2_CLIENT_ID=", f"PROPLET_2_CLIENT_ID={secret} #") + ports)
    found = examine("--env-file", str(containers))
    assert "the broker refuses proplet-2" in found.line("keys")
    assert secret not in repr(found)


def test_services_that_authenticate(up: Up, tmp_path: Path) -> None:
    """There only health is open: the rest is asked with the clients' own keys."""
    ids, registry, store = up.ids(), free_port(), free_port()
    auth = {
        "PROPELLER_AUTH": "on",
        "PROPELLER_IDENTITY_URL": up.url("identity"),
        "PROPELLER_DOMAIN_ID": up.stack["domain_id"],
    }
    models = {**auth, "REGISTRY_PORT": str(registry), "MODELS_DIR": str(tmp_path / "models")}
    data = {
        **auth,
        "DATA_STORE_PORT": str(store),
        "DATA_DIR": str(tmp_path / "data"),
        "FL_DATASET_PARTICIPANTS": ",".join(ids[:2]),
    }
    urls = {"model_registry": f"http://127.0.0.1:{registry}", "data_store": f"http://127.0.0.1:{store}"}
    with (
        start_service("model-registry", models, registry, tmp_path / "models.log"),
        start_service("data-store", data, store, tmp_path / "data.log"),
        published(tmp_path / "state", changed(up.stack, **urls)) as folder,
    ):
        through_a_proxy = {"X-Forwarded-For": "10.0.0.1"}
        asked = httpx.get(f"{urls['data_store']}/datasets/{ids[0]}", headers=through_a_proxy)
        assert asked.status_code == 401
        found = examine("--state", str(folder))
    assert found.failed == {"datasets"}
    assert found.line("datasets").startswith(f"FAIL proplet-3 ({ids[2]}) has no dataset")


def test_how_the_newest_round_failed(up: Up) -> None:
    registry = up.url("oci_registry").removeprefix("http://")
    with Propeller.from_state(up.folder) as fl:
        with pytest.raises(PropellerError, match="cannot be fetched"):
            fl.run_round(f"{registry}/not-there:latest", round_id="r-no-image", k_of_n=3, timeout_s=30)
        found = report(up)
        assert found.failed == {"rounds", "image"}
        assert "the newest, r-no-image, failed" in found.line("rounds")
        assert f"--image {registry}/not-there:latest" in found.line("rounds")
        assert "404 Not Found" in found.line("image")
        fl.run_round(fl.image(), hyperparams={"epochs": 1, "lr": 0.1})
    assert report(up).code == 0
