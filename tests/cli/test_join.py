"""``propeller join`` without a stack: what a state folder may be, and what a device is told to be."""

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from propeller.cli.join import DEVICE_FILE, JoinedDevice, run_join
from propeller.errors import InvalidError, StartError
from propeller.proplet.errors import TaskError
from propeller.proplet.policy import Policy
from propeller.proplet.settings import PropletSettings
from propeller.protocol.join_tokens import JoinToken

DEVICE = JoinedDevice(
    token="t",
    identity_url="http://127.0.0.1:9",
    has_authority=False,
    id="id-1",
    key="the-key",
    domain_id="d",
    channel_id="c",
    name="ward-3",
    tags=["hospital", "north"],
    broker={"host": "fleet.example", "port": 8883, "tls": True},
    coordinator_url="https://fleet.example:8086",
    model_registry_url="https://fleet.example:8084",
    data_store_url="https://fleet.example:8083",
)


def settings_of(
    device: JoinedDevice, state: Path, monkeypatch: pytest.MonkeyPatch, **env: str
) -> PropletSettings:
    for name, value in (env | device.environment(state)).items():
        monkeypatch.setenv(name, value)
    return PropletSettings.load()


def test_a_proplet_reads_what_the_device_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = {
        "PROPLET_CLIENT_ID": "other",
        "DATA_STORE_URL": "http://elsewhere",
        "COORDINATOR_URL": "http://x",
    }
    found = settings_of(DEVICE, tmp_path, monkeypatch, **stale)
    assert (found.client_id, found.client_key, found.instance_id) == ("id-1", "the-key", "ward-3")
    assert found.tags == "hospital,north"
    assert str(found.broker) == "mqtts://fleet.example:8883"
    assert found.coordinator_url == "https://fleet.example:8086"
    assert found.data_store_url == "https://fleet.example:8083"
    assert found.data is None
    assert found.folder == tmp_path / "proplet"
    assert "the-key" not in repr(DEVICE)


def test_with_data_of_its_own_it_knows_no_data_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = replace(DEVICE, data="/srv/rows.csv", label="grade")
    found = settings_of(own, tmp_path, monkeypatch, PROPLET_TAGS="gpu", DATA_STORE_URL="http://elsewhere")
    assert (found.data, found.data_label) == (Path("/srv/rows.csv"), "grade")
    assert found.data_store_url is None


def test_tags_of_the_machine_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROPLET_TAGS", "gpu")
    assert DEVICE.environment(tmp_path)["PROPLET_TAGS"] == "hospital,north,gpu"


def test_a_native_interpreter_is_the_owners_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept with the identity, with a policy for the stack's own machine, unless the owner has one."""
    assert JoinedDevice.told(
        {"name": "x", "data": "/etc", "label": "y", "native_python": "/usr/bin/python3"}
    ) == {"name": "x"}
    monkeypatch.delenv("PROPLET_POLICY", raising=False)
    assert settings_of(DEVICE, tmp_path, monkeypatch).native_python is None
    own = replace(DEVICE, native_python="/opt/python")
    found = settings_of(own, tmp_path, monkeypatch)
    assert (found.native_python, found.policy) == (Path("/opt/python"), tmp_path / "native-policy.toml")
    monkeypatch.setenv("PROPLET_POLICY", "/etc/policy.toml")
    assert own.environment(tmp_path)["PROPLET_POLICY"] == "/etc/policy.toml"


def test_joining_with_a_native_interpreter_writes_its_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PROPLET_")]:
        monkeypatch.delenv(name)

    class RunsError(Exception):
        pass

    def execv(*_arguments: object) -> None:
        raise RunsError

    monkeypatch.setattr("propeller.cli.join.keep_private", lambda: None)
    monkeypatch.setattr("propeller.cli.join.os.execv", execv)
    monkeypatch.setattr("propeller.cli.join.os.environ", dict(os.environ))
    state = tmp_path / "state"
    state.mkdir()
    kept = replace(DEVICE, identity_url="https://127.0.0.1:9")
    (state / DEVICE_FILE).write_text(json.dumps({"format": 1, **asdict(kept)}))
    with pytest.raises(RunsError):
        run_join(None, state, native_python=Path("/opt/python"))
    assert json.loads((state / DEVICE_FILE).read_text())["native_python"] == "/opt/python"
    policy = Policy.read(state / "native-policy.toml")
    policy.check_native("127.0.0.1:5000/mine@sha256:1", "")
    with pytest.raises(TaskError, match=r"native programs of ghcr\.io/u/x do not run here"):
        policy.check_native("ghcr.io/u/x:v1", "")
    with pytest.raises(RunsError):  # and again, without saying it
        run_join(None, state)
    assert json.loads((state / DEVICE_FILE).read_text())["native_python"] == "/opt/python"


@pytest.mark.usefixtures("_same_umask")
class TestFolder:
    @pytest.fixture
    def _same_umask(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("propeller.cli.join.keep_private", lambda: None)

    def test_one_that_is_not_there_is_not_made_without_a_token(self, tmp_path: Path) -> None:
        with pytest.raises(StartError, match="no device has joined"):
            run_join(None, tmp_path / "none")
        assert not (tmp_path / "none").exists()

    def test_one_with_other_files_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "rows.csv").touch()
        tmp_path.chmod(0o755)
        with pytest.raises(StartError, match=r"has other files \(rows.csv\)"):
            run_join("a", tmp_path)
        assert tmp_path.stat().st_mode & 0o777 == 0o755

    def test_one_that_is_damaged_is_named(self, tmp_path: Path) -> None:
        for content in ("{", "[]", json.dumps({"format": 1, "id": "x"})):
            (tmp_path / DEVICE_FILE).write_text(content)
            with pytest.raises(StartError, match="is damaged: join anew"):
                run_join(None, tmp_path)

    def test_another_token_than_its_own(self, tmp_path: Path) -> None:
        (tmp_path / DEVICE_FILE).write_text(json.dumps({"format": 1, **asdict(DEVICE)}))
        with pytest.raises(InvalidError, match="no join token"):
            run_join("a", tmp_path)

    def test_one_that_cannot_be_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StartError, match="cannot be used: "):
            run_join("a", tmp_path / "file")


class _Endless(BaseHTTPRequestHandler):
    """Answers without end, as somebody in between may."""

    sent = 0

    def do_GET(self) -> None:  # the name that http.server calls
        self.send_response(200)
        self.end_headers()
        try:
            while type(self).sent < 500_000_000:
                type(self).sent += self.wfile.write(b"A" * 65536)
        except OSError:
            self.close_connection = True

    def log_message(self, *_args: object) -> None: ...


@pytest.fixture
def endless() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Endless)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_who_answers_in_place_of_the_stack_cannot_fill_the_devices_memory(
    endless: str, tmp_path: Path
) -> None:
    token = JoinToken(endless, b"s" * 16, b"f" * 32).encode()
    with pytest.raises(StartError, match="nothing was sent"):
        run_join(token, tmp_path / "state")
    assert _Endless.sent < 50_000_000
    assert not (tmp_path / "state" / "ca.pem").exists()
