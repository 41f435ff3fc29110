"""A device elsewhere: added, joined and removed with one command each, on a stack that is reached over a network."""

import asyncio
import json
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from propeller.errors import ConflictError, InvalidError, NotFoundError
from propeller.protocol.join_tokens import JoinToken
from propeller.sdk import AsyncPropeller, Propeller
from support.joined import Joined, joined, states, wait_alive
from support.net import wait_until
from support.stack import Up, propeller, running_stack
from support.wiretap import Wiretap

pytestmark = pytest.mark.timeout(180)

HOST = "127.0.0.2"
"""Another address of loopback, by which devices reach the stack as one elsewhere."""

PASSWORD = "ann-ann-ann"
TAP = "127.0.0.3"
TAPPED = ("identity", "coordinator", "model_registry", "data_store")
MARKER_TEXT, MARKER_NUMBER = "patient-70a1", "0.7312583"
"""Of the device's data: what nobody else may see."""

ROWS = "a,b,c,who,label\n" + f"{MARKER_NUMBER},1,-1,{MARKER_TEXT},1\n-0.25,-1,1,somebody,0\n" * 8


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("join") / "state"
    with running_stack(folder, "--host", HOST, "--proplets", "1") as running:
        yield running


def add(up: Up, name: str, *options: str) -> str:
    """Add a device; gives its token."""
    done = propeller("device", "add", name, *options, "--state", str(up.folder))
    assert done.returncode == 0, done.stderr
    assert f"{name} is added." in done.stderr
    return done.stdout.strip()


def traces(content: bytes) -> list[str]:
    """What of the device's data is in there, as text or as numbers of 32 or 64 bits."""
    wanted = {
        text: text.encode() for text in (MARKER_TEXT, MARKER_NUMBER, str(np.float32(MARKER_NUMBER).item()))
    }
    wanted |= {kind: np.array(float(MARKER_NUMBER), kind).tobytes() for kind in ("<f4", ">f4", "<f8", ">f8")}
    return [name for name, what in wanted.items() if what in content]


async def test_a_device_joins_takes_part_with_its_own_data_and_is_removed(up: Up, tmp_path: Path) -> None:
    """Three commands; and no byte of the data goes to any service, seen on the wire and on the stack's disk."""
    shutil.copytree(up.folder / "certs", tmp_path / "authority")
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "rows.csv").write_text(ROWS)
    ports = [
        *(urlsplit(up.url(name)).port or 0 for name in TAPPED),
        int(up.stack["broker"]["port"]),
    ]
    token = JoinToken.decode(await asyncio.to_thread(add, up, "ward-3", "--tag", "north"))
    assert token.identity_url == f"https://{HOST}:{ports[0]}"
    assert token.fingerprint is not None
    async with Wiretap(TAP, HOST, ports, tmp_path / "authority").running() as wire:
        tapped = replace(token, identity_url=f"https://{TAP}:{wire.taps[ports[0]]}").encode()
        await asyncio.to_thread(_join_and_leave, up, tmp_path / "device", tapped)
    # The data store is told nothing at all; what goes to the others can be read here.
    assert [name for name, port in zip(TAPPED, ports, strict=False) if not wire.heard[port]] == ["data_store"]
    assert b"ward-3" in wire.heard[ports[-1]]
    assert b"/update" in wire.heard[ports[1]]
    assert traces(ROWS.encode()) != []
    assert traces(wire.everything) == []
    files = [file for file in up.folder.rglob("*") if file.is_file()]
    assert len(files) > 20
    assert [file for file in files if traces(file.read_bytes())] == []


def _join_and_leave(up: Up, folder: Path, token: str) -> None:
    with joined(folder, token, "--data", "rows.csv") as device, Propeller.from_state(up.folder) as fl:
        wait_alive(up, "ward-3", device)
        assert "16 samples in rows.csv: x float32 [3], y int64" in device.output
        record = next(one for one in fl.proplets() if one["name"] == "ward-3")
        assert record["metadata"]["tags"] == ["north"]
        result = fl.run_round(fl.image())
        assert len(result.updates) == 2
        (mine,) = (one for one in result.updates if one["proplet_id"] == record["id"])
        assert mine["num_samples"] == 16
        _change_data(fl, folder, device, record["id"])
        removed = propeller("device", "remove", "ward-3", "--state", str(up.folder))
        assert removed.returncode == 0, removed.stderr
        assert "ward-3" not in states(up)
        assert record["id"] not in {one["id"] for one in fl.proplets()}
        wait_until(lambda: "refuses this client" in device.output, what="the removed device is refused")
        assert "'propeller join TOKEN' with a new --state" in device.output
        assert "PROPLET_CLIENT_KEY" not in device.output
    again = propeller("join", "--state", str(folder / ".propeller-device"))
    assert again.returncode == 1
    assert "ward-3 was removed from the stack" in again.stderr


def _change_data(fl: Propeller, folder: Path, device: Joined, device_id: str) -> None:
    """A file that cannot be read any more fails the device's tasks, and says where on the device alone; one that can is used."""
    rows = folder / "rows.csv"
    rows.write_text(ROWS.replace(MARKER_NUMBER, MARKER_TEXT, 1))
    failed = fl.run_round(fl.image(), k_of_n=1)
    if device_id in failed.failures:  # the round may have been complete before
        assert "cannot be read" in failed.failures[device_id]
    wait_until(lambda: "the device's own data cannot be read" in device.output, what="it says so")
    assert f"line 2: a is '{MARKER_TEXT}'" in device.output
    rows.write_text(ROWS + "0.5,0.5,0.5,z,1\n")
    again = fl.run_round(fl.image())
    (mine,) = (one for one in again.updates if one["proplet_id"] == device_id)
    assert mine["num_samples"] == 17


def test_its_identity_is_kept_for_its_user_alone_and_goes_on(up: Up, tmp_path: Path) -> None:
    token = add(up, "kept")
    folder = tmp_path / ".propeller-device"
    with joined(tmp_path, token) as device:
        wait_alive(up, "kept", device)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir() if file.is_file()} == {0o600}
        second = propeller("join", "--state", str(folder))
        assert "another 'propeller join' runs" in second.stderr
        renamed = propeller("device", "rename", "kept", "attic", "--state", str(up.folder))
        assert renamed.stdout == "kept is attic from now on.\n", renamed.stderr
        with Propeller.from_state(up.folder) as fl:  # at once, though it runs under the name that it had
            assert "attic" in {one["name"] for one in fl.proplets(alive=True)}
    wait_until(lambda: states(up)["attic"] == ("joined", False), what="it is away")
    assert propeller("device", "rename", "attic", "cellar", "--state", str(up.folder)).returncode == 0
    for arguments in ([], [token]):  # the same token again is no other device: a unit may always give it
        with joined(tmp_path, *arguments) as device:
            wait_alive(up, "cellar", device)
            with Propeller.from_state(up.folder) as fl:
                assert "cellar" in {one["name"] for one in fl.proplets()}
        wait_until(lambda: states(up)["cellar"] == ("joined", False), what="it is away")
    other = propeller("join", add(up, "other"), "--state", str(folder))
    assert "cellar has joined on" in other.stderr


def test_data_that_cannot_be_read_costs_no_token(up: Up, tmp_path: Path) -> None:
    token, file = add(up, "late-2"), tmp_path / "rows.csv"
    file.write_text("a,y\n1,2\nx,3\n")
    refused = propeller("join", token, "--state", str(tmp_path / "device"), "--data", str(file))
    assert refused.returncode == 1
    assert "line 3: a is 'x'" in refused.stderr
    assert states(up)["late-2"] == ("waiting", False)
    without = propeller("join", token, "--state", str(tmp_path / "device"), "--label", "y")
    assert "--label: names a column of --data" in without.stderr


def test_a_token_that_is_not_good_says_what_to_do(up: Up, tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "device"))
    expired = propeller("join", add(up, "late", "--lifetime", "1ms"), *state)
    assert expired.returncode == 1
    assert "the join token expired at" in expired.stderr
    assert "propeller device add" in expired.stderr
    nobodys = propeller("join", "--state", str(tmp_path / "empty"))
    assert "no device has joined" in nobodys.stderr
    cut = propeller("join", add(up, "cut")[:-3], *state)
    assert "copy the whole word" in cut.stderr
    taken = propeller("device", "add", "cut", "--state", str(up.folder))
    assert taken.returncode == 1
    assert "propeller device remove cut" in taken.stderr


def test_a_server_with_another_authority_is_told_nothing(up: Up, tmp_path: Path) -> None:
    good = JoinToken.decode(add(up, "careful"))
    forged = JoinToken(good.identity_url, good.secret, bytes(32)).encode()
    refused = propeller("join", forged, "--state", str(tmp_path / "device"))
    assert refused.returncode == 1
    assert "somebody stands between" in refused.stderr
    assert states(up)["careful"] == ("waiting", False)
    assert not (tmp_path / "device" / "device.json").exists()
    away = JoinToken("https://127.0.0.2:9", good.secret, good.fingerprint).encode()
    nobody = propeller("join", away, "--state", str(tmp_path / "device"))
    assert "cannot be reached from this device" in nobody.stderr
    with joined(tmp_path, good.encode(), "--state", "device") as device:
        wait_alive(up, "careful", device)


def test_an_operator_adds_and_removes_devices_from_elsewhere(up: Up) -> None:
    env = {"PROPELLER_NEW_PASSWORD": PASSWORD, "PROPELLER_PASSWORD": PASSWORD}
    for name, role in (("ann", "operator"), ("bob", "viewer")):
        command = ("user", "add", name, "--role", role, "--state", str(up.folder))
        assert propeller(*command, env=env).returncode == 0
    services = ("manager", "coordinator", "model_registry", "data_store", "identity")
    urls = [
        word for name in services for word in ("--url", f"{name}={up.url(name).replace('127.0.0.1', HOST)}")
    ]
    remote = [*urls, "--ca", up.stack["ca"]]
    added = propeller("device", "add", "afar", *remote, "--user", "ann", "--json", env=env)
    assert added.returncode == 0, added.stderr
    assert json.loads(added.stdout)["name"] == "afar"
    listed = propeller("device", "list", *remote, "--user", "ann", env=env)
    assert "afar" in listed.stdout
    refused = propeller("device", "remove", "afar", *remote, "--user", "bob", env=env)
    assert refused.returncode == 1
    assert "only an operator or an admin" in refused.stderr
    missing = propeller("device", "remove", "nobody", *remote, "--user", "ann", env=env)
    assert "there is no device 'nobody'; there are: " in missing.stderr
    assert propeller("device", "remove", "afar", *remote, "--user", "ann", env=env).returncode == 0
    assert "afar" not in states(up)


def remote(up: Up) -> list[str]:
    services = ("manager", "coordinator", "model_registry", "data_store", "identity")
    urls = [f"{name}={up.url(name).replace('127.0.0.1', HOST)}" for name in services]
    return [*(word for url in urls for word in ("--url", url)), "--ca", up.stack["ca"]]


def test_after_a_login_commands_need_neither_address_nor_password(
    up: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = ("user", "add", "eve", "--role", "operator", "--state", str(up.folder))
    assert propeller(*added, env={"PROPELLER_NEW_PASSWORD": PASSWORD}).returncode == 0
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    named = [*remote(up), "--user", "eve"]
    wrong = propeller("login", *named, env={"PROPELLER_PASSWORD": "wrong-wrong-wrong"})
    assert (wrong.returncode, "user 'eve' cannot log in" in wrong.stderr) == (1, True)
    done = propeller("login", *named, env={"PROPELLER_PASSWORD": PASSWORD})
    assert done.returncode == 0, done.stderr
    kept = tmp_path / "config" / "propeller" / "login.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert PASSWORD not in kept.read_text()
    status = propeller("status")
    assert status.returncode == 0, status.stderr
    assert "proplet-1" in status.stdout
    assert propeller("status", *remote(up), "--json").returncode == 0
    assert propeller("device", "list").returncode == 0
    # A token that is not good any more is renewed, once for all who have it.
    document = json.loads(kept.read_text())
    kept.write_text(json.dumps({**document, "access_token": "expired"}))
    with Propeller.from_login() as fl, Propeller.from_login() as other:
        assert fl.latest() == other.latest()
    assert json.loads(kept.read_text())["refresh_token"] != document["refresh_token"]
    kept.write_text(json.dumps({**document, "access_token": "expired"}))  # one that was used
    ended = propeller("status")
    assert (ended.returncode, "has ended: log in again" in ended.stderr) == (1, True)
    assert propeller("login", *named, env={"PROPELLER_PASSWORD": PASSWORD}).returncode == 0
    assert propeller("logout").returncode == 0
    assert list(kept.parent.glob("*.json")) == []
    assert "nobody has logged in" in propeller("logout").stderr
    assert "No stack runs on" in propeller("status").stdout


async def test_from_python_with_an_event_loop(up: Up) -> None:
    async with AsyncPropeller.from_state(up.folder) as fl:
        added = await fl.devices.add("looped", tags=["north"], lifetime_s=60)
        assert JoinToken.decode(added["token"]).identity_url.startswith(f"https://{HOST}:")
        with pytest.raises(ConflictError, match="propeller device remove looped"):
            await fl.devices.add("looped")
        with pytest.raises(InvalidError, match="name"):
            await fl.devices.add("no spaces")
        renamed = await fl.devices.rename("looped", "straight")
        assert renamed == {"id": added["id"], "name": "straight", "tags": ["north"]}
        found = next(one for one in await fl.devices.list() if one["id"] == added["id"])
        assert (found["name"], found["state"], found["alive"]) == ("straight", "waiting", False)
        await fl.devices.remove(added["id"])
        with pytest.raises(NotFoundError, match="there is no device 'straight'"):
            await fl.devices.remove("straight")
