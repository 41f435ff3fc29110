"""TLS between the embedded broker and its clients: real handshakes, and what is said when one fails."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import SettingsConfigDict
from structlog.testing import capture_logs

from propeller.errors import StartError
from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.broker import Broker
from propeller.mqtt.broker import main as broker_main
from propeller.mqtt.broker_config import BrokerSettings
from propeller.mqtt.problems import SettingNames
from propeller.mqtt.session import Credentials, Session
from propeller.mqtt.tls import MqttTlsSettings, variable_names
from propeller.process.certificates import Authority
from support.certificates import Certificates, make_certificates
from support.identity import SECRET, Site
from support.net import eventually, free_port
from support.provisioned import Provisioned


class ClientSettings(MqttTlsSettings):
    model_config = SettingsConfigDict(alias_generator=variable_names("DEVICE_"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@contextlib.asynccontextmanager
async def tls_site(
    folder: Path, files: Certificates, **given: Any
) -> AsyncIterator[tuple[Site, Provisioned]]:
    """A broker that speaks TLS, with identity and the guide's clients."""
    plain = Site.at(folder)
    settings = BrokerSettings.load(
        **{
            "port": plain.broker.port,
            "nats_port": plain.broker.nats_port,
            "state": plain.broker.state,
            "secret": SECRET,
            "tls_cert": files.cert,
            "tls_key": files.key,
            **given,
        }
    )
    site = Site(settings, plain.identity)
    async with site.running() as (_identity, made):
        yield site, made


def session(site: Site, made: Provisioned, *, tls: bool = True, **given: Any) -> Session:
    address = BrokerAddress("127.0.0.1", site.broker.port, tls)
    client = made.clients["proplet-1"]
    context = ClientSettings.load(**given).tls_context(address)
    return Session(
        address,
        Credentials(client.id, client.id, client.key),
        tls=context,
        names=SettingNames.of_service("DEVICE"),
        clean=True,
    )


async def line_of(one: Session) -> dict[str, Any]:
    """What a session that cannot connect logs."""
    with capture_logs() as logs:
        async with one.running():
            line = await eventually(lambda: next((x for x in logs if "trying again" in x["event"]), None), 5)
    assert line is not None
    return dict(line)


async def test_handshakes_that_must_and_must_not_succeed(tmp_path: Path, files: Certificates) -> None:
    async with tls_site(tmp_path, files) as (site, made):
        got: list[bytes] = []

        async def take(_topic: str, payload: bytes) -> None:
            got.append(payload)

        async with session(site, made, mqtt_tls_ca_cert=files.ca).running() as good:
            assert await good.wait_connected(10)
            start = (
                f"m/{made.domain_id}/c/{made.channel_id}/control/manager/start/{made.clients['proplet-1'].id}"
            )
            await good.subscribe(start, take)
            manager = made.clients["manager"]
            sender = Session(
                good.address,
                Credentials(manager.id, manager.id, manager.key),
                tls=ClientSettings.load(mqtt_tls_ca_cert=files.ca).tls_context(good.address),
            )
            async with sender.running():
                await sender.publish(start, b"over tls")
            await eventually(lambda: got == [b"over tls"])

        unknown: list[dict[str, Any]] = [{"mqtt_tls_ca_cert": files.other_ca}, {}]  # {}: those of the system
        for given in unknown:
            line = await line_of(session(site, made, **given))
            assert line["reason"].startswith("the broker's certificate is not trusted: ")
            assert line["remedy"] == "set DEVICE_MQTT_TLS_CA_CERT to the file of the authority that signed it"
        line = await line_of(session(site, made, tls=False))
        assert "closed the connection" in line["reason"]
        assert line["remedy"] == f"if this port is for TLS, write mqtts://127.0.0.1:{site.broker.port}"
        with capture_logs() as logs:
            async with session(site, made, mqtt_tls_insecure_skip_verify=True).running() as unchecked:
                assert await unchecked.wait_connected(10)
        assert any("certificate is not checked" in line["event"] for line in logs)


async def test_a_broker_may_ask_for_the_clients_certificate_too(tmp_path: Path, files: Certificates) -> None:
    async with tls_site(tmp_path, files, tls_client_ca=files.ca) as (site, made):
        shown: dict[str, Any] = {
            "mqtt_tls_client_cert": files.client_cert,
            "mqtt_tls_client_key": files.client_key,
        }
        async with session(site, made, mqtt_tls_ca_cert=files.ca, **shown).running() as good:
            assert await good.wait_connected(10)
        line = await line_of(session(site, made, mqtt_tls_ca_cert=files.ca))
        assert "DEVICE_MQTT_TLS_CLIENT_CERT and DEVICE_MQTT_TLS_CLIENT_KEY" in line["remedy"]


async def test_a_certificate_for_another_host_is_refused(tmp_path: Path, files: Certificates) -> None:
    async with tls_site(tmp_path, files, tls_cert=files.other_host_cert, tls_key=files.other_host_key) as (
        site,
        made,
    ):
        line = await line_of(session(site, made, mqtt_tls_ca_cert=files.ca))
    assert "mismatch" in line["reason"]
    assert "broker's address" in line["remedy"]


async def test_a_renewed_certificate_is_shown_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("propeller.process.tls.CHECK_S", 0.05)
    authority = Authority(tmp_path / "certs")
    authority.ensure()
    cert, key = authority.ensure_server("server", ["127.0.0.1"])
    settings = Site.at(tmp_path).broker.model_copy(update={"tls_cert": cert, "tls_key": key})

    def shown() -> str:
        with contextlib.suppress(OSError):
            return ssl.get_server_certificate(("127.0.0.1", settings.port), ca_certs=str(authority.file))
        return ""

    stop = asyncio.Event()
    running = asyncio.create_task(broker_main(settings, stop))
    try:
        before = await eventually(lambda: asyncio.to_thread(shown))
        authority.ensure_server("server", ["127.0.0.1", "fleet.example"])

        async def is_another() -> bool:
            return await asyncio.to_thread(shown) not in {"", before}

        await eventually(is_another)
    finally:
        stop.set()
        await running


async def test_tls_to_a_port_without_it_is_named(broker_port: int, files: Certificates) -> None:
    address = BrokerAddress("127.0.0.1", broker_port, tls=True)
    context = ClientSettings.load(mqtt_tls_ca_cert=files.ca).tls_context(address)
    line = await line_of(Session(address, Credentials("tls-to-plain"), tls=context, clean=True))
    assert f"see that {address} is the broker's port for TLS" in line["remedy"]


def wrong(files: Certificates) -> Iterator[tuple[dict[str, Any], str]]:
    missing, text = files.ca.with_name("none.pem"), files.ca.with_name("text.pem")
    text.write_text("no certificate")
    yield {"mqtt_tls_ca_cert": missing}, "DEVICE_MQTT_TLS_CA_CERT: .*none.pem cannot be read: No such file"
    yield {"mqtt_tls_ca_cert": text}, "DEVICE_MQTT_TLS_CA_CERT: .*text.pem holds no PEM certificate"
    yield {"mqtt_tls_client_cert": files.cert}, "DEVICE_MQTT_TLS_CLIENT_KEY: not set, but .*CLIENT_CERT is"
    yield {"mqtt_tls_client_key": files.key}, "DEVICE_MQTT_TLS_CLIENT_CERT: not set, but .*CLIENT_KEY is"
    pair = {"mqtt_tls_client_cert": files.cert, "mqtt_tls_client_key": files.client_key}
    yield pair, "DEVICE_MQTT_TLS_CLIENT_KEY: .*client-key.pem is not the key of the certificate .*server.pem"
    yield {**pair, "mqtt_tls_client_key": text}, "are not a PEM certificate and its PEM private key"


def test_files_that_cannot_be_used_are_named(files: Certificates) -> None:
    for given, says in wrong(files):
        with pytest.raises(StartError, match=says):
            ClientSettings.load(**given).tls_context(BrokerAddress("b", 8883, tls=True))
    with pytest.raises(StartError, match=r"tcp://b:1883 is without TLS; write mqtts://b:8883, or unset it"):
        ClientSettings.load(mqtt_tls_ca_cert=files.ca).tls_context(BrokerAddress("b"))
    assert ClientSettings.load().tls_context(BrokerAddress("b")) is None


def test_a_key_with_a_passphrase_is_named_and_nobody_is_asked_for_it(files: Certificates) -> None:
    from cryptography.hazmat.primitives import serialization

    plain = serialization.load_pem_private_key(files.client_key.read_bytes(), None)
    locked = files.ca.with_name("locked.pem")
    locked.write_bytes(
        plain.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    settings = ClientSettings.load(mqtt_tls_client_cert=files.client_cert, mqtt_tls_client_key=locked)
    with pytest.raises(
        StartError, match=r"DEVICE_MQTT_TLS_CLIENT_KEY: .*locked.pem is protected by a passphrase"
    ):
        settings.tls_context(BrokerAddress("b", 8883, tls=True))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tls_key": None}, "BROKER_TLS_KEY: not set, but BROKER_TLS_CERT is; set both or neither"),
        ({"tls_cert": None, "tls_key": None}, "BROKER_TLS_CLIENT_CA is set, but BROKER_TLS_CERT and"),
        ({"tls_client_ca": Path("none.pem")}, "BROKER_TLS_CLIENT_CA: none.pem cannot be read"),
    ],
)
async def test_a_broker_whose_files_do_not_go_together_does_not_start(
    tmp_path: Path, files: Certificates, given: dict[str, Any], says: str
) -> None:
    whole = {"tls_cert": files.cert, "tls_key": files.key, "tls_client_ca": files.ca, **given}
    settings = BrokerSettings.load(
        port=free_port(), nats_port=free_port(), state=tmp_path, secret=SECRET, **whole
    )
    with pytest.raises(StartError, match=says):
        await Broker(settings).__aenter__()
