"""The manager's environment, in both versions' names."""

import pytest

from propeller.manager.settings import ManagerSettings
from propeller.process.settings import SettingsError


def test_the_names_of_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MANAGER_TENANT_ID": "d",
        "MANAGER_CHANNEL_ID": "c",
        "MANAGER_ENTITY_ID": "m",
        "MANAGER_API_KEY": "k",
        "MANAGER_COORDINATOR_URL": "http://coordinator-http:8080",
        "MANAGER_MQTT_TIMEOUT": "30s",
        "MANAGER_MQTT_QOS": "2",
    }.items():
        monkeypatch.setenv(name, value)
    settings = ManagerSettings.load()
    assert (settings.domain_id, settings.channel_id, settings.client_id) == ("d", "c", "m")
    assert settings.client_key.get_secret_value() == "k"
    assert (settings.mqtt_timeout_s, settings.mqtt_qos) == (30.0, 2)
    assert settings.coordinator_url == "http://coordinator-http:8080"
    monkeypatch.setenv("MANAGER_DOMAIN_ID", "older")
    assert ManagerSettings.load().domain_id == "older"


def test_an_identity_alone_is_enough_and_a_key_need_not_be() -> None:
    assert (
        ManagerSettings.load(domain_id="d", channel_id="c", client_id="m").client_key.get_secret_value() == ""
    )
    with pytest.raises(SettingsError, match="MANAGER_CLIENT_ID: not set"):
        ManagerSettings.load(domain_id="d", channel_id="c")
