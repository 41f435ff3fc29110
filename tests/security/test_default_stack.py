"""A stack as ``propeller up`` starts it: for its user, and for nobody else."""

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok

from propeller.oci.layout import Layout
from propeller.oci_registry.api import create_api as create_registry_api
from propeller.sdk import Propeller
from propeller.sdk.addresses import PORTS
from support.oci_requests import try_requests
from support.stack import Up, propeller, running_stack

OTHER_UID = 1234

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("default") / "state") as running:
        yield running


ASK = """
import os, sys, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
opener.open(sys.argv[2]).close()  # whatever it imports: the other user may not read that
os.setuid(int(sys.argv[1]))
for url in sys.argv[2:]:
    try:
        print(url.startswith("file:") or opener.open(url).status)
        if url.startswith("file:"):
            print(os.listdir(url.removeprefix("file:")))
    except urllib.error.HTTPError as error:
        print(error.code)
    except OSError as error:
        print(type(error).__name__)
"""

PATHS = {
    "manager": "/tasks",
    "coordinator": "/experiments",
    "aggregator": "/metrics",
    "model_registry": "/models",
    "data_store": "/datasets",
    "oci_registry": "/v2/",
    "proxy": "/metrics",
}


def urls(up: Up) -> dict[str, str]:
    return {name: f"{up.url(name)}{path}" for name, path in PATHS.items()}


def test_its_user_needs_no_credentials(up: Up) -> None:
    for name, url in urls(up).items():
        assert httpx.get(url).status_code == 200, name


def test_through_a_proxy_nobody_is_its_user(up: Up) -> None:
    for name, url in urls(up).items():
        assert httpx.get(url, headers={"X-Forwarded-For": "10.0.0.1"}).status_code == 401, name
        assert (
            httpx.get(f"{up.url(name)}/health", headers={"X-Forwarded-For": "10.0.0.1"}).status_code == 200
        ), name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine(up: Up) -> None:
    """Who gets 200 from ``/health``, 401 from all else, and reads no file of the state."""
    asked = [*urls(up).values(), *(f"{up.url(name)}/health" for name in PATHS)]
    command = [sys.executable, "-I", "-S", "-c", ASK, str(OTHER_UID), *asked, f"file:{up.folder}"]
    answers = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout.split()
    assert answers == ["401"] * len(PATHS) + ["200"] * len(PATHS) + ["True", "PermissionError"]


def test_a_foreign_host_and_a_foreign_page(up: Up) -> None:
    for name, url in urls(up).items():
        foreign = httpx.get(url, headers={"Host": "evil.example"})
        assert foreign.status_code == 403, name
        assert "evil.example" in foreign.text
        page = {"Origin": "http://evil.example", "Content-Type": "application/json"}
        changed = httpx.post(url, headers=page, content=b"{}")
        assert changed.status_code == 403, name
        assert "a page of another site" in changed.text
    # A form needs no permission of the service before a browser sends it.
    assert httpx.post(f"{up.url('manager')}/tasks", content=b'{"name":"x"}').status_code == 415
    assert httpx.post(f"{up.url('manager')}/tasks", data={"name": "x"}).status_code == 415


def test_a_device_may_not_aggregate_store_or_list(up: Up) -> None:
    one = up.stack["clients"]["proplet-1"]
    auth = (one["id"], one["key"])
    other = up.ids()[1]
    with httpx.Client(auth=auth) as http:
        for method, url in (
            ("POST", f"{up.url('aggregator')}/aggregate"),
            ("POST", f"{up.url('model_registry')}/models"),
            ("GET", f"{up.url('model_registry')}/models"),
            ("GET", f"{up.url('data_store')}/datasets/{other}"),
            ("POST", f"{up.url('data_store')}/datasets/{one['id']}"),
            ("GET", f"{up.url('manager')}/proplets"),
            ("POST", f"{up.url('manager')}/tasks"),
            ("GET", f"{up.url('coordinator')}/rounds"),
            ("POST", f"{up.url('coordinator')}/experiments"),
            ("GET", f"{up.url('oci_registry')}/v2/"),
        ):
            assert http.request(method, url).status_code == 403, (method, url)
        assert http.get(f"{up.url('data_store')}/datasets/{one['id']}").status_code == 200
        model = f"{up.url('model_registry')}/models/0"
        assert http.get(model).status_code == 403
        digest = httpx.get(f"{model}/info").json()["digest"]
        assert http.get(model, headers={"X-Model-Digest": digest}).status_code == 200
    wrong = httpx.get(f"{up.url('manager')}/proplets", auth=(one["id"], "not its key"))
    assert wrong.status_code == 401  # whoever shows a key is not the user of the machine beside it


def test_who_did_what_is_written_down_and_whoever_changes_it_is_found(up: Up, tmp_path: Path) -> None:
    """Beside what the other tests here did."""
    state = ["--state", str(up.folder)]
    client = up.stack["clients"]["operator"]
    made = httpx.post(f"{up.url('manager')}/tasks", json={"name": "t", "image_url": "x"})
    assert made.status_code == 201
    wrong = httpx.get(f"{up.url('manager')}/tasks", auth=(client["id"], "wrong"))
    assert wrong.status_code == 401
    told = propeller("audit", "show", "--service", "manager", "--json", *state)
    entries = [json.loads(line) for line in told.stdout.splitlines()]
    by_action = {entry["action"]: entry for entry in entries}
    assert by_action["POST /tasks"]["who"]["role"] == "operator"
    assert by_action["POST /tasks"]["about"] == {"task": made.json()["id"]}
    assert (by_action["GET /tasks"]["status"], by_action["GET /tasks"]["who"]) == (401, {"kind": "unknown"})
    assert "fl-demo" in propeller("audit", "show", "--who", "admin", *state).stdout
    everything = propeller("audit", "show", "--json", *state).stdout
    for secret in (client["key"], up.stack["admin"]["password"]):
        assert secret not in everything

    verified = propeller("audit", "verify", *state)
    assert (verified.returncode, verified.stdout.count("none changed")) == (0, 8)
    head = next(word for word in verified.stdout.split() if word.startswith("manager="))
    url = [f"--url={name}={one['url']}" for name, one in up.stack["services"].items()]
    known = [one for one in url if one.partition("=")[2].partition("=")[0] in PORTS]
    over_http = propeller("audit", "verify", "--service", "manager", "--head", head, *known)
    assert f"none changed  {head}" in over_http.stdout, over_http.stderr
    with Propeller.from_state(up.folder) as fl:
        assert fl.audit("manager", after=1, limit=1)[0]["seq"] == 2

    # A copy, as the services go on: whoever changes an entry, or removes the newest ones, is found.
    shutil.copytree(up.folder / "audit", tmp_path / "audit")
    file = tmp_path / "audit" / "manager" / "audit.jsonl"
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"POST /tasks"', b'"POST /taskz"', 1))
    changed = propeller("audit", "verify", "--state", str(tmp_path))
    assert (changed.returncode, "manager: entry" in changed.stdout) == (1, True)
    file.write_bytes(b"".join(content.splitlines(keepends=True)[:-1]))
    assert propeller("audit", "verify", "--state", str(tmp_path)).returncode == 0
    cut = propeller("audit", "verify", "--head", head, "--state", str(tmp_path))
    assert (cut.returncode, "which was noted, is not there" in cut.stdout) == (1, True)
    file.write_bytes(content[:100] + b"\n" + content)
    none = propeller("audit", "verify", "--json", "--state", str(tmp_path))
    errors = [one["error"] for one in json.loads(none.stdout)]
    assert len(errors) == 8
    assert sum(error is not None for error in errors) == 1  # the others are verified
    assert propeller("audit", "verify", "--head", f"manager=\u00b2:{64 * '0'}", *state).returncode == 2


def sent_to_identity(up: Up) -> tuple[dict[str, str], dict[str, str]]:
    """An admin's token, and ids that there are, in a domain of their own, by the names of path parameters."""
    admin, url = up.stack["admin"], up.url("identity")
    login = {"username": admin["username"], "password": admin["password"]}
    issued = httpx.post(f"{url}/users/tokens/issue", json=login).json()
    headers = {"Authorization": f"Bearer {issued['access_token']}"}

    def make(path: str, **fields: str) -> str:
        name = f"generated-{uuid.uuid4().hex}"
        made = httpx.post(
            f"{url}{path}", json={key: value or name for key, value in fields.items()}, headers=headers
        )
        return str(made.json()["id"])

    domain = make("/domains", name="", route="")
    known = {
        "domain_id": domain,
        "client_id": make(f"/{domain}/clients", name=""),
        "channel_id": make(f"/{domain}/channels", name=""),
        "user_id": make("/users", username="", password=""),
    }
    return headers, known


@pytest.mark.parametrize(
    "service", ["manager", "coordinator", "model_registry", "data_store", "aggregator", "identity"]
)
def test_whatever_is_sent_is_answered_as_described(up: Up, service: str) -> None:
    """Generated from what the service says of itself: no server errors, and no status or body that it does not describe."""
    headers, known = sent_to_identity(up) if service == "identity" else ({}, {})
    schema = schemathesis.openapi.from_url(f"{up.url(service)}/openapi.json", headers=headers)
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        ends_its_login = found.ok().label == "POST /users/tokens/revoke"
        try_operation(found.ok(), sent_to_identity(up)[0] if ends_its_login else headers, known)


def try_operation(operation: Any, headers: dict[str, str], known: dict[str, str]) -> None:
    """Send some requests of one operation; in half of them what is ``known`` is named."""
    checks = (
        schemathesis.checks.not_a_server_error,
        schemathesis.checks.status_code_conformance,
        schemathesis.checks.content_type_conformance,
        schemathesis.checks.response_schema_conformance,
    )

    @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(), st.booleans())
    def try_it(case: Any, is_there: bool) -> None:
        for parameters in (case.path_parameters, case.query):
            if is_there and parameters:
                parameters |= {name: value for name, value in known.items() if name in parameters}
        case.call_and_validate(headers=headers, checks=checks)

    try_it()


def test_whatever_is_sent_to_the_registry_is_answered(up: Up, tmp_path: Path) -> None:
    routes = create_registry_api(Layout(tmp_path)).routes

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def try_it(data: st.DataObject) -> None:
        async def send() -> None:
            async with httpx.AsyncClient(base_url=up.url("oci_registry")) as http:
                await try_requests(data, routes, http.request)

        asyncio.run(send())

    try_it()
    assert "Traceback" not in (up.folder / "logs" / "oci-registry.log").read_text()


def test_the_state_is_private(up: Up) -> None:
    wrong = {}
    for path in [up.folder, *up.folder.rglob("*")]:
        try:
            mode = stat.S_IMODE(path.lstat().st_mode)
        except FileNotFoundError:  # services come and go with files
            continue
        if not path.is_symlink() and mode & 0o077:
            wrong[str(path.relative_to(up.folder))] = oct(mode)
    assert wrong == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_open_lets_in_every_user_and_says_so(tmp_path: Path) -> None:
    with running_stack(tmp_path / "state", "--proplets", "0", "--open") as opened:
        url = f"{opened.url('manager')}/proplets"
        command = [sys.executable, "-I", "-S", "-c", ASK, str(OTHER_UID), url]
        assert subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout == "200\n"
        foreign = httpx.get(url, headers={"Host": "evil.example"})
        assert foreign.status_code == 403  # a page in a browser is no user of the machine
    assert "every user of this machine may use the services" in opened.output


def test_open_contradicts_asking_for_access_checks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "propeller", "up", "--open", "--state", str(tmp_path / "state")]
    told = subprocess.run(
        command, env={**os.environ, "PROPELLER_AUTH": "on"}, capture_output=True, text=True, check=False
    )
    assert told.returncode == 1
    assert "PROPELLER_AUTH=on contradicts --open" in told.stderr


def test_off_in_the_environment_opens_no_stack_and_is_not_ignored_without_a_word(tmp_path: Path) -> None:
    env = {"PROPELLER_AUTH": "off"}
    with running_stack(tmp_path / "state", "--proplets", "0", env=env) as running:
        through_a_proxy = {"X-Forwarded-For": "10.0.0.1"}
        assert httpx.get(f"{running.url('manager')}/proplets", headers=through_a_proxy).status_code == 401
    assert "PROPELLER_AUTH=off is for single services and has no effect here" in running.output
