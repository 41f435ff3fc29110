"""The services' descriptions, and the environment that each process of a stack is given."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from propeller.errors import StartError
from propeller.proplet.settings import PropletSettings
from propeller.stack.config import StackConfig, StackTls
from propeller.stack.service_spec import ServiceSpec
from propeller.stack.services import HTTP_SERVICES, PORTS, SERVICES, find_service
from support.stack_config import make_stack_config

GUIDE_PORTS = {
    "broker": 1883,
    "identity-users": 9002,
    "identity-domains": 9003,
    "identity-channels": 9005,
    "identity-clients": 9006,
    "manager": 7070,
    "coordinator": 8086,
    "aggregator": 8085,
    "model-registry": 8084,
    "data-store": 8083,
    "oci-registry": 5000,
}
"""As the quick-start guide has them."""

LIMIT = re.compile(r"_MAX_|_BYTES$|_KEEP$|^COORDINATOR_KEEP_|_DAYS$|^PROPLET_TASK_|_PROGRAM_(WALL|MEMORY)")
"""The names of settings that bound something."""


@pytest.fixture
def config(tmp_path: Path) -> StackConfig:
    return make_stack_config(tmp_path)


def test_the_ports_are_the_guides() -> None:
    assert {name: PORTS[name].host for name in GUIDE_PORTS} == GUIDE_PORTS


def test_names_ports_and_variables_are_used_once() -> None:
    ports = [port for spec in SERVICES for port in spec.ports]
    for values in (
        [spec.name for spec in SERVICES],
        [spec.container_name for spec in SERVICES],
        [port.name for port in ports],
        [port.variable for port in ports],
        [port.host for port in ports],
    ):
        assert len(set(values)) == len(values)


def test_who_has_an_http_api() -> None:
    without = {"broker", "proplet"}
    assert set(HTTP_SERVICES) == {spec.name for spec in SERVICES} - without


def test_an_unknown_service_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(
        StartError, match=r"there is no service 'brokr'; choose from broker, identity, manager"
    ):
        find_service("brokr")


@pytest.mark.parametrize("spec", SERVICES, ids=lambda spec: spec.name)
def test_a_service_starts_with_what_a_stack_tells_it_and_reads_all_of_it(
    spec: ServiceSpec, config: StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = "proplet-1" if spec.is_device else spec.name
    env = spec.environment_in(config, process)
    shared = set(find_service("aggregator").environment_in(config)) - {"AGGREGATOR_HOST", "AGGREGATOR_PORT"}
    told = set(env) - shared
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    spec.load_settings_class().load()
    fields = spec.load_settings_class().model_fields.values()
    known = {alias for field in fields for alias in _aliases(field.validation_alias)}
    assert told <= known | {"PROPELLER_NATS_SERVER"}
    assert callable(spec.load_main())


def _aliases(alias: object) -> list[str]:
    return list(getattr(alias, "choices", [alias]))


def test_what_is_asked_for_one_service_wins_and_goes_to_no_other(config: StackConfig) -> None:
    extra = {"model-registry": {"REGISTRY_INITIAL_MODEL": "{}", "REGISTRY_HOST": "::1"}}
    config = StackConfig(config.folder, config.ports, config.secrets, extra=extra)
    told = find_service("model-registry").environment_in(config)
    assert (told["REGISTRY_INITIAL_MODEL"], told["REGISTRY_HOST"]) == ("{}", "::1")
    assert "REGISTRY_INITIAL_MODEL" not in find_service("aggregator").environment_in(config)


def test_proplets_share_programs_and_take_the_limits_that_are_set(
    config: StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROPLET_TASK_WALL_TIME", "7")
    monkeypatch.setenv("PROPLET_MAX_TASKS", "3")
    monkeypatch.setenv("PROPLET_MAX_PROCESSORS", "1")
    monkeypatch.setenv("PROPLET_CLIENT_ID", "another")
    found = list[PropletSettings]()
    for name in ("proplet-1", "proplet-2"):
        with monkeypatch.context() as environment:
            for variable, value in find_service("proplet").environment_in(config, name).items():
                environment.setenv(variable, value)
            found.append(PropletSettings.load())
    assert [one.client_id for one in found] == ["id-proplet-1", "id-proplet-2"]
    assert [one.instance_id for one in found] == ["proplet-1", "proplet-2"]
    assert [(one.limits.wall_time_s, one.max_tasks) for one in found] == [(7.0, 3), (7.0, 3)]
    assert [one.max_processors for one in found] == [1, 1]
    assert found[0].cache == found[1].cache
    assert found[0].folder != found[1].folder


def test_devices_have_the_tags_of_all_and_their_own(
    config: StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"proplet-2": ["gpu", "floor=2"]}
    tagged = StackConfig(config.folder, config.ports, config.secrets, tags=own)
    told = [find_service("proplet").environment_in(tagged, f"proplet-{n}")["PROPLET_TAGS"] for n in (1, 2)]
    assert told == ["", "gpu,floor=2"]
    monkeypatch.setenv("PROPLET_TAGS", "demo")
    told = [find_service("proplet").environment_in(tagged, f"proplet-{n}")["PROPLET_TAGS"] for n in (1, 2)]
    assert told == ["demo", "demo,gpu,floor=2"]


def test_the_proxy_takes_the_registry_of_the_person_and_its_identity_of_the_stack(
    config: StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = find_service("proxy")
    assert proxy.environment_in(config)["PROXY_REGISTRY_URL"] == config.url("oci-registry")
    monkeypatch.setenv("PROXY_REGISTRY_URL", "ghcr.io")
    monkeypatch.setenv("PROXY_CLIENT_KEY", "another")
    told = proxy.environment_in(config)
    assert (told["PROXY_REGISTRY_URL"], told["PROXY_CLIENT_KEY"]) == ("ghcr.io", "key-proxy")


def test_the_proxys_signers_are_those_of_all_who_run_programs(
    config: StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = {name.upper(): find_service(name) for name in ("proxy", "coordinator", "aggregator")}

    def told() -> dict[str, str | None]:
        return {name: one.environment_in(config).get(f"{name}_SIGNERS") for name, one in services.items()}

    assert told() == dict.fromkeys(services)
    monkeypatch.setenv("PROXY_SIGNERS", "acme.pub")
    assert told() == dict.fromkeys(services, "acme.pub")
    monkeypatch.setenv("AGGREGATOR_SIGNERS", "other.pub")
    assert told() == {"PROXY": "acme.pub", "COORDINATOR": "acme.pub", "AGGREGATOR": "other.pub"}


def test_up_passes_on_every_limit(config: StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal names the setting to raise, so it can be raised."""
    for spec in SERVICES:
        fields = spec.load_settings_class().model_fields.values()
        limits = [
            name for field in fields for name in _aliases(field.validation_alias)[:1] if LIMIT.search(name)
        ]
        for name in limits:
            monkeypatch.setenv(name, "7")
        told = spec.environment_in(config, "proplet-1" if spec.is_device else "")
        assert [name for name in limits if told.get(name) != "7"] == []


def test_identity_tells_devices_that_join_the_addresses_by_which_they_reach_the_stack(
    config: StackConfig, tmp_path: Path
) -> None:
    def told(stack: StackConfig) -> dict[str, str]:
        env = find_service("identity").environment_in(stack)
        return {name: value for name, value in env.items() if name.startswith("IDENTITY_JOIN_")}

    ports = config.ports
    here = told(config)
    assert here["IDENTITY_JOIN_URL"] == f"http://127.0.0.1:{ports['identity-users']}"
    assert here["IDENTITY_JOIN_BROKER"] == f"tcp://127.0.0.1:{ports['broker']}"
    assert "IDENTITY_JOIN_CA_CERT" not in here
    ca = tmp_path / "ca.pem"
    tls = StackTls("fleet.example", ca, tmp_path / "server.pem", tmp_path / "server-key.pem")
    elsewhere = told(replace(config, tls=tls))
    assert elsewhere == {
        "IDENTITY_JOIN_URL": f"https://fleet.example:{ports['identity-users']}",
        "IDENTITY_JOIN_BROKER": f"mqtts://fleet.example:{ports['broker']}",
        "IDENTITY_JOIN_COORDINATOR_URL": f"https://fleet.example:{ports['coordinator']}",
        "IDENTITY_JOIN_MODEL_REGISTRY_URL": f"https://fleet.example:{ports['model-registry']}",
        "IDENTITY_JOIN_DATA_STORE_URL": f"https://fleet.example:{ports['data-store']}",
        "IDENTITY_JOIN_CA_CERT": str(ca),
    }
