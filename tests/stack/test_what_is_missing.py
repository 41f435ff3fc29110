"""What each service says when it cannot start: every setting it lacks or cannot read at once, a port that is taken."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from propeller.errors import StartError
from propeller.process.settings import ServiceSettings, SettingsError
from propeller.stack.services import SERVICES, find_service
from support.net import free_port

MISSING = {
    "broker": {"BROKER_SECRET"},
    "identity": {"BROKER_SECRET"},
    "manager": {f"MANAGER_{name}" for name in ("DOMAIN_ID", "CHANNEL_ID", "CLIENT_ID", "CLIENT_KEY")},
    "coordinator": {"MODEL_REGISTRY_URL", "AGGREGATOR_URL"},
    "proxy": {
        *(f"PROXY_{name}" for name in ("DOMAIN_ID", "CHANNEL_ID", "CLIENT_ID", "CLIENT_KEY")),
        "PROXY_REGISTRY_URL",
    },
    "proplet": {f"PROPLET_{name}" for name in ("DOMAIN_ID", "CHANNEL_ID", "CLIENT_ID", "CLIENT_KEY")},
}
"""What each service cannot do without; the others start with nothing set."""

CLIENTS = ("manager", "proxy", "proplet")
"""Services whose identity may be in config.toml."""


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = {"PATH", "HOME", "LANG", "TMPDIR"}
    for name in set(os.environ) - kept:
        if not name.startswith(("PYTEST", "COV")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def settings(service: str) -> type[ServiceSettings]:
    return find_service(service).load_settings_class()


def fault(service: str) -> str:
    with pytest.raises(SettingsError) as caught:
        settings(service).load()
    return str(caught.value)


@pytest.mark.parametrize("service", [spec.name for spec in SERVICES])
def test_all_that_is_missing_is_named_at_once(service: str) -> None:
    if service not in MISSING:
        settings(service).load()
        return
    text = fault(service)
    named = {
        line.strip().removesuffix(": not set") for line in text.splitlines() if line.endswith(": not set")
    }
    assert named == MISSING[service]
    if service in CLIENTS:
        assert "propeller provision makes these ids and keys" in text
        assert f"section [{service}] of config.toml (domain_id, channel_id, client_id, client_key)" in text
        assert text.endswith("there is no such file")


@pytest.mark.parametrize("service", CLIENTS)
def test_what_is_wrong_is_told_together_with_what_is_missing(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = service.upper()
    monkeypatch.setenv(f"{prefix}_DOMAIN_ID", "a/b")
    monkeypatch.setenv(f"{prefix}_MQTT_ADDRESS", "http://broker")
    monkeypatch.setenv(f"{prefix}_MQTT_QOS", "7")
    text = fault(service)
    assert f"{prefix}_CHANNEL_ID: not set" in text
    assert f"{prefix}_CLIENT_KEY: not set" in text
    for wrong in ("DOMAIN_ID", "MQTT_ADDRESS", "MQTT_QOS"):
        assert f"{prefix}_{wrong}: " in text
        assert f"{prefix}_{wrong}: not set" not in text


def test_faults_between_settings_are_told_together_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROPELLER_IDENTITY_URL", "http://x")
    monkeypatch.setenv("PROPELLER_PEER_ROLE", "x")
    monkeypatch.setenv("COORDINATOR_DOMAIN_ID", "d")
    monkeypatch.setenv("MQTT_BROKER", "http://broker")
    text = fault("coordinator")
    for name in ("PROPELLER_PEER_ROLE", "COORDINATOR_CLIENT_KEY", "COORDINATOR_CHANNEL_ID", "MQTT_BROKER"):
        assert f"\n  {name}: " in text
    assert "MODEL_REGISTRY_URL: not set" in text


@pytest.mark.parametrize("service", CLIENTS)
@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("[other]\nx = 1\n", "the file has no such section"),
        ('[{service}]\ndomain_id = "d"\nclient_id = ""\n', "it lacks channel_id, client_id, client_key"),
    ],
)
def test_what_config_toml_lacks_is_named(service: str, file: str, says: str) -> None:
    Path("config.toml").write_text(file.replace("{service}", service))
    text = fault(service)
    assert text.endswith(says)
    assert (f"{service.upper()}_DOMAIN_ID: not set" in text) == ("domain_id" not in file)


@pytest.mark.parametrize("service", CLIENTS)
def test_a_config_toml_that_cannot_be_read_is_named_with_what_is_wanted_of_it(service: str) -> None:
    Path("config.toml").write_text("[manager\n")
    text = fault(service)
    assert "config.toml cannot be read: " in text
    assert f"or set {service.upper()}_DOMAIN_ID, {service.upper()}_CHANNEL_ID" in text


@pytest.mark.parametrize("service", CLIENTS)
def test_config_toml_gives_the_whole_identity(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = 'domain_id = "fd"\nchannel_id = "fc"\nclient_id = "fi"\nclient_key = "fk"\n'
    Path("config.toml").write_text(f"[{service}]\n{keys}")
    monkeypatch.setenv("PROXY_REGISTRY_URL", "ghcr.io")
    loaded: Any = settings(service).load()
    assert (loaded.domain_id, loaded.channel_id, loaded.client_id) == ("fd", "fc", "fi")


def test_the_command_says_it_without_a_trace(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "propeller", "serve", "manager"],
        env={"PATH": os.environ["PATH"]}, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: settings to correct in the environment:\n")
    assert "MANAGER_CLIENT_KEY: not set" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


LISTENERS = {
    "BROKER_PORT": ("broker", {"nats_port": "free"}),
    "BROKER_NATS_PORT": ("broker", {"port": "free"}),
    **{
        f"IDENTITY_{name.upper()}_PORT": (
            "identity",
            {
                f"{other}_port": "free"
                for other in ("users", "domains", "channels", "clients")
                if other != name
            },
        )
        for name in ("users", "domains", "channels", "clients")
    },
    "MANAGER_HTTP_PORT": ("manager", {}),
    "COORDINATOR_PORT": ("coordinator", {"MQTT_BROKER": "off"}),
    "AGGREGATOR_PORT": ("aggregator", {}),
    "REGISTRY_PORT": ("model-registry", {}),
    "DATA_STORE_PORT": ("data-store", {}),
    "OCI_REGISTRY_PORT": ("oci-registry", {}),
    "PROXY_HTTP_PORT": ("proxy", {}),
}
"""The variable of each port that a service listens on, the service, and what else it must be told."""


def environment(service: str, folder: Path) -> dict[str, Any]:
    """Settings with which a service would start, but for its port."""
    secret = {"BROKER_SECRET": "a secret of the tests"}
    client = {
        "domain_id": "d",
        "channel_id": "c",
        "client_id": "c",
        "mqtt_address": f"127.0.0.1:{free_port()}",
    }
    of_services: dict[str, dict[str, Any]] = {
        "broker": {**secret, "state": folder},
        "identity": {
            **secret, "database": str(folder / "identity.db"), "admin_password": "12345678",
            "BROKER_NATS_URL": f"nats://127.0.0.1:{free_port()}",
        },
        "manager": {**client, "database": str(folder / "manager.db")},
        "coordinator": {
            "MODEL_REGISTRY_URL": "http://127.0.0.1:1", "AGGREGATOR_URL": "http://127.0.0.1:1", "state": folder,
        },
        "aggregator": {},
        "model-registry": {"folder": folder},
        "data-store": {"folder": folder},
        "oci-registry": {"folder": folder},
        "proxy": {**client, "cache": folder, "PROXY_REGISTRY_URL": "ghcr.io"},
    }  # fmt: skip
    return of_services[service]


@pytest.mark.parametrize("variable", LISTENERS)
async def test_a_taken_port_is_named_with_who_has_it_and_what_to_do(variable: str, tmp_path: Path) -> None:
    service, more = LISTENERS[variable]
    given = {name: free_port() if value == "free" else value for name, value in more.items()}
    main = find_service(service).load_main()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        loaded = settings(service).load(**{**environment(service, tmp_path), **given, variable: port})
        with pytest.raises(StartError) as caught:
            async with asyncio.timeout(10):
                await main(loaded, asyncio.Event())
    text = str(caught.value)
    assert text.startswith(service)
    assert f"port {port} is already in use by" in text
    assert f"(process {os.getpid()})" in text
    assert f"stop what listens there, or choose another port with {variable}" in text
    assert "\n" not in text
