"""The proxy's environment: names of both versions, and what is said when something is missing."""

from pathlib import Path

import pytest
import structlog

from propeller.oci.credentials import Login, Token
from propeller.oci.reference import DefaultRegistry, Registry
from propeller.process.settings import SettingsError
from propeller.proxy.main import registry_logins
from propeller.proxy.settings import MAX_CHUNK_BYTES, ProxySettings

S = {
    "PROXY_DOMAIN_ID": "d", "PROXY_CHANNEL_ID": "c", "PROXY_CLIENT_ID": "proxy", "PROXY_CLIENT_KEY": "key",
    "PROXY_REGISTRY_URL": "ghcr.io",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in os.environ:
        if name.startswith(("PROXY_", "PROPELLER_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def load(monkeypatch: pytest.MonkeyPatch, **environment: str) -> ProxySettings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return ProxySettings.load()


def test_the_guides_names(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, **S, PROXY_MQTT_TIMEOUT="30s", PROXY_CHUNK_SIZE="512000", PROXY_MQTT_QOS="2")
    assert (settings.domain_id, settings.channel_id, settings.client_id) == ("d", "c", "proxy")
    assert (settings.mqtt_timeout, settings.chunk_size, settings.mqtt_qos) == (30.0, 512_000, 2)
    assert settings.registry == Registry("ghcr.io")
    assert settings.registry_credential is None
    assert "key" not in repr(settings).replace("client_key", "").replace("tls_key", "")


def test_the_later_names(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        PROXY_TENANT_ID="d", PROXY_CHANNEL_ID="c", PROXY_ENTITY_ID="proxy", PROXY_API_KEY="key",
        PROXY_REGISTRY_URL="http://local-registry:5000",
    )  # fmt: skip
    assert (settings.domain_id, settings.client_id) == ("d", "proxy")
    assert settings.client_key.get_secret_value() == "key"
    assert settings.registry == Registry("local-registry:5000", plain_http=True)


def test_a_user_name_with_its_password_wins_over_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    token = load(monkeypatch, **S, PROXY_REGISTRY_TOKEN="t", PROXY_REGISTRY_USERNAME="u")
    assert token.registry_credential == Token("t")
    both = load(monkeypatch, PROXY_REGISTRY_PASSWORD="p")
    assert both.registry_credential == Login("u", "p")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"PROXY_AUTHENTICATE": "true"}, "there is no login"),
        ({"PROXY_REGISTRY_USERNAME": "u", "PROXY_REGISTRY_PASSWORD": "p"}, "set PROXY_AUTHENTICATE=true"),
    ],
)
def test_half_a_login_is_said_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, str], says: str
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with structlog.testing.capture_logs() as logs:
        assert registry_logins(load(monkeypatch, **S, **given)) == {}
    assert [says in line["event"] for line in logs] == [True]


def test_a_registry_with_a_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, **{**S, "PROXY_REGISTRY_URL": "http://local-registry:5000/user"})
    assert settings.default_registry == DefaultRegistry(settings.registry, "user")
    assert settings.registry == Registry("local-registry:5000", plain_http=True)


def test_everything_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as caught:
        load(monkeypatch, PROXY_CHUNK_SIZE=str(MAX_CHUNK_BYTES + 1), PROXY_MQTT_ADDRESS="http://x")
    for name in (
        "PROXY_DOMAIN_ID",
        "PROXY_CHANNEL_ID",
        "PROXY_CLIENT_ID",
        "PROXY_REGISTRY_URL",
        "PROXY_CHUNK_SIZE",
    ):
        assert name in str(caught.value)
    assert "tcp://host:1883" in str(caught.value)


def test_a_wrong_registry_says_how_one_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"PROXY_REGISTRY_URL: .*http://local-registry:5000"):
        load(monkeypatch, **{**S, "PROXY_REGISTRY_URL": "ftp://x"})


def test_the_identity_comes_from_config_toml_where_the_environment_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(
        '[proxy]\ndomain_id = "fd"\nchannel_id = "fc"\nentity_id = "fp"\nclient_key = "fk"\n'
    )
    settings = load(monkeypatch, PROXY_REGISTRY_URL="ghcr.io", PROXY_CHANNEL_ID="c")
    assert (settings.domain_id, settings.channel_id, settings.client_id) == ("fd", "c", "fp")
    assert settings.client_key.get_secret_value() == "fk"
    (tmp_path / "config.toml").write_text("[proxy")
    with pytest.raises(SettingsError, match=r"config\.toml cannot be read"):
        load(monkeypatch)
