"""A device elsewhere: added, joined and removed with one command each, on a stack that is reached over a network."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from propeller.protocol.join_tokens import JoinToken
from propeller.sdk import Propeller
from support.joined import joined, states, wait_alive
from support.net import wait_until
from support.stack import Up, propeller, running_stack

pytestmark = pytest.mark.timeout(180)

HOST = "127.0.0.2"
"""Another address of loopback, by which devices reach the stack as one elsewhere."""

ROWS = {"data": [{"x": [0.25, 1.0, -1.0], "y": 1}, {"x": [-0.25, -1.0, 1.0], "y": 0}] * 8}


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


def test_a_device_joins_takes_part_and_is_removed(up: Up, tmp_path: Path) -> None:
    token = add(up, "ward-3", "--tag", "north")
    assert JoinToken.decode(token).identity_url.startswith(f"https://{HOST}:")
    assert JoinToken.decode(token).fingerprint is not None
    assert states(up)["ward-3"] == ("waiting", False)
    with joined(tmp_path, token) as device, Propeller.from_state(up.folder) as fl:
        wait_alive(up, "ward-3", device)
        device_id = next(one["id"] for one in fl.proplets() if one["name"] == "ward-3")
        fl.put_dataset(device_id, ROWS)
        result = fl.run_round(fl.image())
        assert device_id in {one["proplet_id"] for one in result.updates}
        (record,) = (one for one in fl.proplets() if one["id"] == device_id)
        assert record["metadata"]["tags"] == ["north"]
        removed = propeller("device", "remove", "ward-3", "--state", str(up.folder))
        assert removed.returncode == 0, removed.stderr
        assert device_id not in {one["id"] for one in fl.proplets()}
        assert "ward-3" not in states(up)
        wait_until(lambda: "refuses this client" in device.output, what="the removed device is refused")
    again = propeller("join", "--state", str(tmp_path / ".propeller-device"))
    assert again.returncode == 1
    assert "ward-3 was removed from the stack" in again.stderr


def test_its_identity_is_kept_for_its_user_alone_and_goes_on(up: Up, tmp_path: Path) -> None:
    token = add(up, "kept")
    folder = tmp_path / ".propeller-device"
    with joined(tmp_path, token) as device:
        wait_alive(up, "kept", device)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir() if file.is_file()} == {0o600}
        second = propeller("join", "--state", str(folder))
        assert "another 'propeller join' runs" in second.stderr
    wait_until(lambda: states(up)["kept"] == ("joined", False), what="it is away")
    assert propeller("device", "rename", "kept", "cellar", "--state", str(up.folder)).returncode == 0
    for arguments in ([], [token]):  # the same token again is no other device: a unit may always give it
        with joined(tmp_path, *arguments) as device:
            wait_alive(up, "cellar", device)
            with Propeller.from_state(up.folder) as fl:
                assert "cellar" in {one["name"] for one in fl.proplets()}
        wait_until(lambda: states(up)["cellar"] == ("joined", False), what="it is away")
    other = propeller("join", add(up, "other"), "--state", str(folder))
    assert "cellar has joined on" in other.stderr


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
