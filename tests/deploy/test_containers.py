"""The guide's steps 3 to 8 with the services of compose.yaml, each started as its container would start it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from propeller.data import program_path
from propeller.stack.env_file import PROVISIONED_VARIABLES, EnvFile
from propeller.stack.services import PORTS, SERVICES
from support.compose import Engine
from support.compose_file import EXAMPLE, document
from support.net import eventually
from support.stack import propeller as run_command

IDENTITIES = {
    "manager": ["MANAGER_DOMAIN_ID", "MANAGER_CHANNEL_ID", "MANAGER_CLIENT_ID", "MANAGER_CLIENT_KEY"],
    "coordinator-http": ["COORDINATOR_CLIENT_ID", "COORDINATOR_CLIENT_KEY"],
    "proxy": ["PROXY_DOMAIN_ID", "PROXY_CHANNEL_ID", "PROXY_CLIENT_ID", "PROXY_CLIENT_KEY"],
    "proplet": ["PROPLET_DOMAIN_ID", "PROPLET_CHANNEL_ID", "PROPLET_CLIENT_ID", "PROPLET_CLIENT_KEY"],
}
"""What each service says that it misses; the other proplets say the same as the first."""

RECREATED = ["manager", "coordinator-http", "proplet", "proplet-2", "proplet-3", "proxy"]
"""Step 5 of the guide."""

PROPLETS = ["proplet", "proplet-2", "proplet-3"]


@dataclass(frozen=True)
class Site:
    """The stack after step 5, and what was seen on the way.

    Attributes:
        engine: runs it.
        env: the ``.env`` file's values.
        ended: of what needs credentials, before there were any: exit code and log.
        first: what was created in step 3.
        second: and in step 5.
    """

    engine: Engine
    env: dict[str, str]
    ended: dict[str, tuple[int, str]]
    first: list[str]
    second: list[str]

    def get(self, name_and_port: str, path: str) -> httpx.Response:
        return httpx.get(f"http://{self.engine.address(name_and_port)}{path}", timeout=30, trust_env=False)

    @property
    def participants(self) -> list[str]:
        return [self.env[f"{name.upper().replace('-', '_')}_CLIENT_ID"] for name in PROPLETS]


def propeller(*arguments: str) -> str:
    """The command of this installation; what it printed."""
    done = run_command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start (3), provision (4), recreate (5)."""
    folder = tmp_path_factory.mktemp("containers")
    env_file = folder / ".env"
    secrets = "BROKER_SECRET=a secret of the tests\nIDENTITY_ADMIN_PASSWORD=12345678\n"
    env_file.write_text(EXAMPLE.read_text().replace("INTERVAL=10\n", "INTERVAL=1\n") + secrets)
    engine = Engine(env_file, folder / "state")
    try:
        engine.up()
        ended = {name: (engine.exit_code(name), engine.logs(name)) for name in RECREATED}
        first, engine.created = engine.created, []
        url = f"http://{engine.address('identity:9002')}"
        propeller("provision", "--env-file", str(env_file), "--identity-url", url)
        engine.up(*RECREATED, force=True)
        engine.wait_healthy(*RECREATED)
        yield Site(engine, EnvFile.read(env_file).values, ended, first, engine.created)
    finally:
        engine.stop()


@pytest.mark.parametrize("name", RECREATED)
def test_before_provisioning_a_service_says_all_that_it_misses_and_what_to_do(site: Site, name: str) -> None:
    code, log = site.ended[name]
    assert code == 1
    missing = IDENTITIES["proplet" if name in PROPLETS else name]
    assert [line.strip() for line in log.splitlines() if line.endswith(": not set")] == [
        f"{variable}: not set" for variable in missing
    ]
    assert "propeller provision" in log
    assert "Traceback" not in log


def test_before_provisioning_the_others_run(site: Site) -> None:
    assert set(site.first) == {*PROPLETS, *(spec.container_name for spec in SERVICES)}


def test_provisioning_fills_every_variable(site: Site) -> None:
    assert all(site.env[name] for name in PROVISIONED_VARIABLES)


def test_step_5_recreates_what_it_names_and_what_is_told_the_domain(site: Site) -> None:
    services = document()["services"]
    told = {name for name, one in services.items() if "PROPELLER_DOMAIN_ID" in one.get("environment", {})}
    assert sorted(site.second) == sorted({*RECREATED, *told})
    assert "local-data-store" in told  # whose proplets are new
    assert site.get("local-data-store:8083", "/datasets").json()["count"] == 3


def test_every_container_is_healthy_by_its_own_check(site: Site) -> None:
    unhealthy = [name for name in site.first if not site.engine.healthy(name)]
    assert unhealthy == []


async def test_a_round_of_the_guide(site: Site) -> None:
    registry = site.engine.address("local-registry:5000")
    propeller("push", str(program_path("logreg")), f"{registry}/fl-client-wasm:latest")
    manager = site.engine.address("manager:7070")
    async with httpx.AsyncClient(timeout=30, trust_env=False) as http:

        async def alive() -> bool:
            found: list[dict[str, Any]] = (await http.get(f"http://{manager}/proplets")).json()["proplets"]
            return {one["id"] for one in found if one["alive"]} >= set(site.participants)

        await eventually(alive, what="three proplets are alive")
        experiment = {
            "experiment_id": "exp-1",
            "round_id": "r-1",
            "model_ref": "fl/models/global_model_v0",
            "participants": site.participants,
            "hyperparams": {"epochs": 1, "lr": 0.01, "batch_size": 16},
            "k_of_n": 3,
            "timeout_s": 60,
            "task_wasm_image": f"{registry}/fl-client-wasm:latest",
        }
        answer = await http.post(f"http://{manager}/fl/experiments", json=experiment)
        assert answer.status_code == 200, answer.text
    ended = site.get("coordinator-http:8080", "/rounds/r-1/complete?wait_s=20").json()
    assert (ended["completed"], ended["num_updates"], ended["model_version"]) == (True, 3, 1)
    model = site.get("model-registry:8081", "/models/1").json()
    assert any(model["w"]), "the model has learned nothing"
    assert "Received container request" in site.engine.logs("proxy")


def test_the_doctor_finds_nothing_wrong(site: Site) -> None:
    """It takes the published ports from the file, which are others here."""
    ports = [
        f"{port[1]}={site.engine.address(f'{name}:{port[2]}').rpartition(':')[2]}\n"
        for name, service in document()["services"].items()
        for line in service.get("ports", ())
        if (port := re.search(r"\$\{(PORT_\w+):-\d+\}:(\d+)$", line))
    ]
    assert len(ports) == sum(port.published for port in PORTS.values())
    file = site.engine.env_file.with_name("doctor.env")
    file.write_text(site.engine.env_file.read_text() + "".join(ports))
    shown = propeller("doctor", "--env-file", str(file))
    assert "PASS image: the proxy resolves" in shown
    assert " 0 failed" in shown


def test_a_dataset_is_where_the_guide_looks_for_it(site: Site) -> None:
    shown = site.engine.execute("local-data-store", "cat", f"/data/datasets/{site.participants[0]}.json")
    assert '"schema":"fl-demo-dataset-v1"' in shown.stdout, shown.stderr


async def test_a_proplet_that_hangs_is_unhealthy(site: Site) -> None:
    site.engine.pause("proplet-3")
    try:
        await eventually(lambda: not site.engine.healthy("proplet-3"), what="its heartbeats stop")
    finally:
        site.engine.resume("proplet-3")
    await eventually(lambda: site.engine.healthy("proplet-3"), what="it beats again")


def test_no_secret_is_in_a_log(site: Site) -> None:
    secrets = {
        value for name, value in site.env.items() if name.endswith(("_KEY", "_SECRET", "_PASSWORD")) and value
    }
    for name in site.first:
        assert not [secret for secret in secrets if secret in site.engine.logs(name)]
