"""A stack that others reach over a network: TLS everywhere, and credentials for everyone who is not its user."""

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import httpx
import pytest

from propeller.process.certificates import Authority
from propeller.sdk import AsyncPropeller
from support.stack import Up, propeller, running_stack

pytestmark = pytest.mark.timeout(180)

NAME = "localhost.example"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("network") / "state", "--host", NAME) as running:
        yield running


@pytest.fixture(scope="module")
def trusting(up: Up) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=up.stack["ca"])


def listeners(up: Up) -> dict[str, str]:
    return {name: one["url"] for name, one in up.stack["services"].items()}


def test_a_round_runs_and_every_command_works(up: Up, tmp_path: Path) -> None:
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(f'program = "{up.stack["images"]["fl-client-wasm"]}"\nrounds = 2\n')
    done = propeller("run", str(experiment), "--state", str(up.folder))
    assert "Completed after 2 of 2 rounds" in done.stdout, done.stderr
    status = propeller("status", "--state", str(up.folder))
    assert status.returncode == 0, status.stdout
    doctor = propeller("doctor", "--state", str(up.folder))
    assert "0 failed" in doctor.stdout, doctor.stdout
    assert f"for {NAME}, localhost" in doctor.stdout


def test_every_server_is_verified_and_none_speaks_without_tls(
    up: Up, trusting: ssl.SSLContext, tmp_path: Path
) -> None:
    other = Authority(tmp_path)
    other.ensure()
    with httpx.Client(verify=trusting) as known, httpx.Client() as system:
        distrusting = httpx.Client(verify=ssl.create_default_context(cafile=str(other.file)))
        for name, url in listeners(up).items():
            assert known.get(f"{url}/health").status_code == 200, name
            for stranger in (system, distrusting):
                with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                    stranger.get(f"{url}/health")
            with pytest.raises(httpx.RemoteProtocolError):
                known.get(f"{url.replace('https', 'http')}/health")


async def test_the_broker_speaks_tls_alone(up: Up, trusting: ssl.SSLContext) -> None:
    client, broker = up.stack["clients"]["proplet-1"], up.stack["broker"]
    login = {"username": client["id"], "password": client["key"], "identifier": f"{client['id']}-test"}
    async with aiomqtt.Client(broker["host"], broker["port"], tls_context=trusting, **login):
        pass
    with pytest.raises(aiomqtt.MqttError):
        async with aiomqtt.Client(broker["host"], broker["port"], timeout=1, **login):
            pass


async def test_from_elsewhere_the_name_a_key_and_the_authority_are_needed(up: Up) -> None:
    addresses: dict[str, Any] = {
        name: url.replace("127.0.0.1", "127.0.0.3")
        for name, url in listeners(up).items()
        if name in {"manager", "coordinator", "model_registry", "data_store", "identity"}
    }
    # An address that is not in the certificate: whoever takes it over gains nothing.
    async with AsyncPropeller(**addresses, ca_cert=up.stack["ca"]) as fl:
        with pytest.raises(Exception, match=r"127\.0\.0\.3.*certificate"):
            await fl.versions()
    through_a_proxy = {"X-Forwarded-For": "10.0.0.1"}
    with httpx.Client(verify=ssl.create_default_context(cafile=up.stack["ca"])) as http:
        for name, url in listeners(up).items():
            path = "/users" if name == "identity" else "/metrics"
            assert http.get(f"{url}{path}", headers=through_a_proxy).status_code == 401, name
            known = {"Host": f"{NAME}:{url.rpartition(':')[2]}"}
            assert http.get(f"{url}/health", headers=known).status_code == 200, name
            assert http.get(f"{url}{path}", headers={"Host": "evil.example"}).status_code == 403, name


def test_the_command_line_believes_the_file_that_it_is_given(up: Up) -> None:
    options = [f"--url={name}={url}" for name, url in listeners(up).items()]
    used = ("manager", "coordinator", "model_registry", "data_store", "identity")
    options = [one for one in options if any(f"={name}=" in one for name in used)]
    told = propeller("model", "list", *options)
    assert told.returncode == 1
    assert "certificate verify failed" in told.stderr
    for given, env in ((["--ca", up.stack["ca"]], {}), ([], {"PROPELLER_CA_CERT": up.stack["ca"]})):
        assert propeller("model", "list", *options, *given, env=env).returncode == 0
    assert (
        "--ca is only for --url" in propeller("model", "list", "--state", str(up.folder), "--ca", "x").stderr
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "fe80::1"], "is an IPv6 address"),
        (["--host", "no host"], "'no host' is not a host name or an IP address"),
        (["--host", "fleet.example", "--open"], "--open is for a stack on loopback"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, options: list[str], message: str) -> None:
    command = [sys.executable, "-m", "propeller", "up", "--state", str(tmp_path / "state"), *options]
    told = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert message in told.stderr
