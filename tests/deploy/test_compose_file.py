"""The container files against their specifications, the guide, the settings of the services, and each other."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from dotenv import dotenv_values
from pydantic import AliasChoices

from propeller.oci.reference import DefaultRegistry, Reference
from propeller.stack.env_file import GUIDE_PROPLETS, GUIDE_VARIABLES, id_variable, key_variable
from propeller.stack.service_spec import ServiceSpec
from propeller.stack.services import OPERATOR, SERVICES
from support.compose_file import (
    COMPOSE,
    DEPLOY,
    DOCKERFILE,
    EXAMPLE,
    Container,
    MissingVariableError,
    containers,
    document,
    interpolate,
    variables,
)

SECRETS = {"BROKER_SECRET": "s" * 16, "IDENTITY_ADMIN_PASSWORD": "p" * 8}
CONTAINERS: dict[str, ServiceSpec] = {
    name: spec
    for spec in SERVICES
    for name in (("proplet", *GUIDE_PROPLETS[1:]) if spec.is_device else (spec.container_name,))
}

NEED_CREDENTIALS = {name for name, spec in CONTAINERS.items() if spec.client or spec.is_device}


def filled(**given: str) -> dict[str, Container]:
    """The services as an engine sees them with the example's values."""
    example = {name: value or "" for name, value in dotenv_values(EXAMPLE).items()}
    return containers({**example, **SECRETS, **given})


def read_by(spec: ServiceSpec) -> set[str]:
    """Every variable that a service reads."""
    names = {spec.log_level_variable, "PROPELLER_LOG_LEVEL"}
    for field in spec.load_settings_class().model_fields.values():
        alias = field.validation_alias
        names |= (
            {str(choice) for choice in alias.choices} if isinstance(alias, AliasChoices) else {str(alias)}
        )
    return names


def test_compose_file_follows_the_specification() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_dockerfile_passes_the_linter() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    linted = subprocess.run([linter, DOCKERFILE], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_dockerfile_copies_only_what_the_build_context_has() -> None:
    kept = {
        line[1:]
        for line in (DEPLOY.parent / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        word
        for line in DOCKERFILE.read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    }
    assert copied == kept
    assert all((DEPLOY.parent / name).exists() for name in kept)


def test_the_image_does_not_run_as_root() -> None:
    last = DOCKERFILE.read_text().rpartition("\nFROM ")[2]
    (user,) = re.findall(r"^USER (\d+):(\d+)$", last, re.MULTILINE)
    assert "0" not in user


@pytest.mark.parametrize("name", CONTAINERS)
def test_published_ports_are_the_guides_on_loopback(name: str) -> None:
    ports = [interpolate(port, {}) for port in document()["services"][name].get("ports", [])]
    assert ports == [
        f"127.0.0.1:{port.host}:{port.container}" for port in CONTAINERS[name].ports if port.published
    ]


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_ports_of_the_host_are_chosen_by_the_variables_that_the_doctor_reads(name: str) -> None:
    chosen = {port.host_variable: f"5{port.container}" for port in CONTAINERS[name].ports if port.published}
    ports = [interpolate(port, chosen) for port in document()["services"][name].get("ports", [])]
    assert ports == [
        f"127.0.0.1:5{port.container}:{port.container}" for port in CONTAINERS[name].ports if port.published
    ]


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_listens_on_the_ports_of_its_service_and_its_health_check_asks_each(name: str) -> None:
    container, ports = filled()[name], CONTAINERS[name].ports
    assert container.command == ["serve", CONTAINERS[name].name]
    assert sorted(container.ports) == sorted(port.container for port in ports)
    assert {port.variable: str(port.container) for port in ports}.items() <= container.environment.items()
    if ports:
        assert {urlsplit(target).port for target in container.health[3:]} == {
            port.container for port in ports
        }


def test_the_variables_of_host_ports_are_those_of_the_services() -> None:
    in_file = {name for name in variables(COMPOSE.read_text()) if name.startswith("PORT_")}
    assert in_file == {port.host_variable for spec in SERVICES for port in spec.ports if port.published}


def test_there_are_exactly_the_guides_services() -> None:
    assert set(document()["services"]) == set(CONTAINERS)


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_is_confined_restarted_and_checked(name: str) -> None:
    service = document()["services"][name]
    assert service["container_name"] == f"propeller-{name}"
    assert service["restart"] == "unless-stopped"
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service.get("pids_limit") == (1024 if CONTAINERS[name].is_device else None)
    assert service["healthcheck"]["test"][:4] == ["CMD", "python", "-m", "propeller.process.probe"]
    assert service["build"] == {"context": "..", "dockerfile": "deploy/Dockerfile"}


def test_every_volume_is_declared_and_no_two_services_share_one() -> None:
    used = [volume for container in filled().values() for volume in container.volumes]
    assert sorted(used) == sorted(document()["volumes"])


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_variable_that_a_service_gets_is_one_that_it_reads(name: str) -> None:
    spec = CONTAINERS[name]
    unknown = set(filled()[name].environment) - read_by(spec)
    if spec.reads_proplets:
        unknown = {
            variable for variable in unknown if not re.fullmatch(r"PROPLET(_\d+)?_CLIENT_ID", variable)
        }
    assert not unknown


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_address_leads_to_a_port_that_a_service_listens_on(name: str) -> None:
    services = filled()
    known = {
        f"{called}:{port}"
        for service in services.values()
        for called in (service.name, *service.aliases)
        for port in service.ports
    }
    for variable, value in services[name].environment.items():
        found = re.findall(r"(?<![\w.])[a-z][a-z0-9-]*:\d+", value)
        assert set(found) <= known, f"{variable}={value}"


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("auth", ["off", "on"])
def test_the_settings_are_taken_with_the_examples_values(
    name: str, auth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = filled(PROPELLER_AUTH=auth, **dict.fromkeys(GUIDE_VARIABLES, "given"))[name]
    for variable in read_by(CONTAINERS[name]):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in container.environment.items():
        monkeypatch.setenv(variable, value)
    settings = CONTAINERS[name].load_settings_class().load()
    assert getattr(settings, "auth", auth) == auth
    assert hasattr(settings, "auth") or name in {"broker", "identity"}, "these always ask for credentials"


def test_the_example_explains_every_variable_and_no_other() -> None:
    """Of the ports of the host it has two: their variables are made of the names in ``SERVICES``."""
    text = EXAMPLE.read_text()
    found = re.findall(r"^(#?)([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE)
    names = [name for _mark, name, _value in found]
    assert len(names) == len(set(names))
    used = variables(COMPOSE.read_text())
    operator = {id_variable(OPERATOR), key_variable(OPERATOR)}  # for curl and commands, not for a container
    assert set(names) - used == operator
    assert {name for name in used - set(names) if not name.startswith("PORT_")} == set()
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#?[A-Z][A-Z0-9_]*=", line):
            assert re.match(r"# \S.*\.$", lines[number - 1]), f"{line} is not explained in the line above it"
    assert {name for mark, name, _value in found if mark} == set(SECRETS), "those two must not have a default"


def test_what_provisioning_writes_is_there_empty_and_used() -> None:
    example = dotenv_values(EXAMPLE)
    assert [example[name] for name in GUIDE_VARIABLES] == [""] * 18
    chosen = {name: f"value-of-{name}" for name in GUIDE_VARIABLES}
    given = {value for container in filled(**chosen).values() for value in container.environment.values()}
    assert set(chosen.values()) <= given


def test_the_examples_values_are_the_defaults() -> None:
    without = containers(SECRETS)
    for name, container in filled().items():
        settings = CONTAINERS[name].load_settings_class()
        for variable, value in container.environment.items():
            default = without[name].environment[variable]
            if (
                value != default and variable != "PROPELLER_HOSTS"
            ):  # compose passes nothing, and the service has the same default
                assert default == ""
                assert value == _default(settings, variable), f"{name}: {variable}"


def _default(settings: type, variable: str) -> str:
    for field in settings.model_fields.values():  # type: ignore[attr-defined]
        if field.validation_alias == variable:
            default = field.default
            return f"{default:g}" if isinstance(default, float) else str(default).lower()
    raise AssertionError(f"{variable} is no setting")


@pytest.mark.parametrize("name", SECRETS)
def test_without_a_secret_nothing_is_started_and_the_remedy_is_said(name: str) -> None:
    with pytest.raises(
        MissingVariableError, match=rf"^{name}: set it in deploy/\.env to \d+ characters or more"
    ):
        containers({**SECRETS, name: ""})


def test_nothing_waits_for_what_needs_credentials() -> None:
    """Before provisioning these restart; a service that waited for their health would fail ``up`` as a whole."""
    for container in filled().values():
        waited = {other for other, condition in container.needs.items() if condition == "service_healthy"}
        assert not waited & NEED_CREDENTIALS


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_listens_where_its_network_reaches_it(name: str) -> None:
    container = filled()[name]
    wanted = {variable for variable in read_by(CONTAINERS[name]) if variable.endswith(("_HOST", "_PORT"))}
    assert {variable for variable in container.environment if variable.endswith(("_HOST", "_PORT"))} == wanted
    values = {variable: container.environment[variable] for variable in wanted}
    assert {values.pop(variable) for variable in wanted if variable.endswith("_HOST")} <= {"0.0.0.0"}
    assert sorted(values.values()) == sorted(map(str, container.ports))


def test_the_broker_has_the_name_that_an_env_file_of_absmach_propeller_gives_it() -> None:
    assert filled()["broker"].aliases == ["mqtt-adapter"]


@pytest.mark.parametrize("name", ["manager", "proxy", "proplet"])
def test_the_values_of_an_env_file_of_absmach_propeller_are_taken(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = {
        f"{prefix}_{variable}": value
        for prefix in ("MANAGER", "PROXY", "PROPLET")
        for variable, value in {
            "LOG_LEVEL": "info", "MQTT_ADDRESS": "tcp://mqtt-adapter:1883", "MQTT_TIMEOUT": "30s", "MQTT_QOS": "2",
        }.items()
    }  # fmt: skip
    theirs |= {
        "PROPLET_LIVELINESS_INTERVAL": "10s",
        "PROXY_REGISTRY_URL": "docker.io",
        "PROXY_AUTHENTICATE": "FALSE",
    }
    container = filled(**theirs, **dict.fromkeys(GUIDE_VARIABLES, "given"))[name]
    for variable, value in container.environment.items():
        monkeypatch.setenv(variable, value)
    settings: Any = CONTAINERS[name].load_settings_class().load()
    assert (settings.mqtt_address, settings.mqtt_qos) == ("tcp://mqtt-adapter:1883", 2)


def test_the_local_registry_is_asked_in_plain_http_by_the_name_of_the_guide() -> None:
    url = filled()["proxy"].environment["PROXY_REGISTRY_URL"]
    reference = Reference.parse("local-registry:5000/fl-client-wasm:latest", DefaultRegistry.parse(url))
    assert reference.registry.plain_http
    assert reference.registry.host == "local-registry:5000"
