"""PropletSettings: both versions' names, both dialects of durations, the configuration file."""

from pathlib import Path

import pytest

from propeller.process.settings import SettingsError
from propeller.proplet.settings import PropletSettings

S = {
    "PROPLET_DOMAIN_ID": "d",
    "PROPLET_CHANNEL_ID": "c",
    "PROPLET_CLIENT_ID": "me",
    "PROPLET_CLIENT_KEY": "key",
}
H = {"PROPLET_TENANT_ID": "d", "PROPLET_CHANNEL_ID": "c", "PROPLET_ENTITY_ID": "me", "PROPLET_API_KEY": "key"}


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in {*S, *H}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def load(monkeypatch: pytest.MonkeyPatch, *environments: dict[str, str]) -> PropletSettings:
    for environment in environments:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
    return PropletSettings.load()


@pytest.mark.parametrize("names", [S, H])
def test_both_versions_names_are_read(monkeypatch: pytest.MonkeyPatch, names: dict[str, str]) -> None:
    one = load(monkeypatch, names)
    assert (one.domain_id, one.channel_id, one.client_id, one.client_key) == ("d", "c", "me", "key")
    assert one.folder == Path(".propeller/proplet-me")
    assert "key" not in repr(one).replace("client_key", "")


@pytest.mark.parametrize("text", ["10", "10s", "10000ms"])
def test_both_dialects_of_durations(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert load(monkeypatch, S, {"PROPLET_LIVELINESS_INTERVAL": text}).liveliness_interval == 10.0


def test_the_limits_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"PROPLET_TASK_WALL_TIME": "1m", "PROPLET_TASK_MEMORY": "1048576", "PROPLET_MQTT_QOS": "2"}
    one = load(monkeypatch, S, given)
    assert (one.limits.wall_time_s, one.limits.memory_bytes, one.mqtt_qos) == (60.0, 1048576, 2)


def test_where_native_programs_are_allowed_a_task_has_more_memory_unless_the_owner_says_how_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    native = {"PROPLET_NATIVE_PYTHON": "/usr/bin/python3"}
    assert load(monkeypatch, S, {}).limits.memory_bytes == 512 << 20
    assert load(monkeypatch, S, native).limits.memory_bytes == 2048 << 20
    assert load(monkeypatch, S, native | {"PROPLET_TASK_MEMORY": "1048576"}).limits.memory_bytes == 1048576


def test_the_coordinator_has_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, S, {"MANAGER_COORDINATOR_URL": "http://c"}).coordinator_url == "http://c"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"PROPLET_EXTERNAL_WASM_RUNTIME": "wasmtime", "PROPLET_TASK_FUEL": "5"}, "unset PROPLET_TASK_FUEL"),
        ({"PROPLET_CLIENT_ID": "a/b"}, "PROPLET_CLIENT_ID"),
        ({"PROPLET_MQTT_ADDRESS": "http://x"}, "PROPLET_MQTT_ADDRESS"),
        ({"PROPLET_MQTT_QOS": "3"}, "PROPLET_MQTT_QOS"),
        ({"PROPLET_TASK_WALL_TIME": "soon"}, "PROPLET_TASK_WALL_TIME"),
        ({"PROPLET_MAX_TASKS": "0"}, "PROPLET_MAX_TASKS"),
        (
            {"PROPLET_MAX_MEMORY": "1048576"},
            "PROPLET_MAX_MEMORY: 1048576 is less than one task may take, 1811939328",
        ),
        (
            {"PROPLET_MAX_DISK": "1048576"},
            "PROPLET_MAX_DISK: .*PROPLET_TASK_OUT_BYTES and PROPLET_TASK_STATE_BYTES",
        ),
        ({"PROPLET_MAX_THREADS": "63"}, "PROPLET_MAX_THREADS: 63 .*PROPLET_TASK_THREADS"),
        ({"PROPLET_MAX_DESCRIPTORS": "-1"}, "PROPLET_MAX_DESCRIPTORS: -1 .*PROPLET_TASK_DESCRIPTORS"),
        ({"PROPLET_MAX_PROCESSORS": "0"}, "PROPLET_MAX_PROCESSORS"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load(monkeypatch, S, given)


def test_every_missing_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as caught:
        PropletSettings.load()
    for name in S:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        'domain_id = "fd"\nclient_id = "fme"\nclient_key = "fkey"',
        'tenant_id = "fd"\nentity_id = "fme"\napi_key = "fkey"',
    ],
)
def test_the_configuration_file_gives_what_the_environment_does_not(
    monkeypatch: pytest.MonkeyPatch, keys: str
) -> None:
    Path("mine.toml").write_text(f'[proplet2]\n{keys}\nchannel_id = "fc"\n')
    where = {"PROPLET_CONFIG_FILE": "mine.toml", "PROPLET_CONFIG_SECTION": "proplet2"}
    one = load(monkeypatch, where, {"PROPLET_CLIENT_ID": "me", "PROPLET_CHANNEL_ID": ""})
    assert (one.domain_id, one.channel_id, one.client_id, one.client_key) == ("fd", "fc", "me", "fkey")


def test_a_configuration_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.toml").write_text("][")
    with pytest.raises(SettingsError, match=r"mine\.toml cannot be read"):
        load(monkeypatch, {"PROPLET_CONFIG_FILE": "mine.toml"})
