"""Two proplets with one client's id: whoever asks is told, by name, and the devices' own log says what it may be."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from propeller.sdk import Propeller
from support.net import wait_until
from support.stack import PROPELLER, Up, propeller, running_stack

pytestmark = pytest.mark.timeout(180)


@contextmanager
def proplet_of(up: Up, name: str, folder: Path) -> Iterator[Path]:
    """Another process with a proplet's id and key, for the length of the block; gives its log."""
    client, stack = up.stack["clients"][name], up.stack
    env = {
        "PROPLET_DOMAIN_ID": stack["domain_id"],
        "PROPLET_CHANNEL_ID": stack["channel_id"],
        "PROPLET_CLIENT_ID": client["id"],
        "PROPLET_CLIENT_KEY": client["key"],
        "PROPLET_MQTT_ADDRESS": f"tcp://{stack['broker']['host']}:{stack['broker']['port']}",
        "PROPLET_STATE": str(folder / "twin"),
    }
    log = folder / "twin.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*PROPELLER, "serve", "proplet"], env={**os.environ, **env}, stdout=output, stderr=output
        )
    try:
        yield log
    finally:
        process.terminate()
        process.wait(20)


def test_two_proplets_with_one_id_are_named(tmp_path: Path) -> None:
    with running_stack(tmp_path / "state") as up, Propeller.from_state(up.folder) as fl:
        at = ("--state", str(up.folder))
        assert fl.devices.duplicates() == []
        assert "client ids" in propeller("doctor", *at).stdout
        with proplet_of(up, "proplet-2", tmp_path) as log:
            wait_until(fl.devices.duplicates, 60, "identity sees that there are two")
            assert fl.devices.duplicates() == [up.stack["clients"]["proplet-2"]["id"]]
            status = propeller("status", *at)
            assert (
                "Two processes are connected as proplet-2, and each ends the other's connection"
                in status.stdout
            )
            document = json.loads(propeller("status", *at, "--json").stdout)
            assert document["duplicates"] == [up.stack["clients"]["proplet-2"]["id"]]
            report = propeller("doctor", *at, "--json")
            assert report.returncode == 1
            (found,) = (one for one in json.loads(report.stdout)["checks"] if one["what"] == "client ids")
            assert found["status"] == "FAIL"
            assert "two processes are connected as proplet-2" in found["detail"]
            wait_until(
                lambda: "another process may be connected as" in log.read_text(), 60, "its log says why"
            )
