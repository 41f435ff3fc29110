"""'propeller doctor' of a stack elsewhere: what is seen by a login, in the words of the local one, and what is not."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from propeller.sdk import Propeller
from support.joined import joined, wait_alive
from support.net import wait_until
from support.stack import Up, propeller, running_stack

pytestmark = pytest.mark.timeout(240)

HOST = "127.0.0.2"
PASSWORD = "ann-ann-ann"
SERVICES = ("manager", "coordinator", "model_registry", "data_store", "identity")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("doctor") / "state"
    with running_stack(folder, "--host", HOST, "--proplets", "1") as running:
        with Propeller.from_state(running.folder) as fl:
            fl.users.add("ann", PASSWORD, "operator")
            fl.users.add("vic", PASSWORD, "viewer")
        yield running


def doctor(up: Up, *words: str, user: str = "ann", ca: bool = True) -> tuple[int, dict[str, Any]]:
    urls = [f"{name}={up.url(name).replace('127.0.0.1', HOST)}" for name in SERVICES]
    where = [*(word for url in urls for word in ("--url", url)), "--user", user]
    named = ["--ca", up.stack["ca"]] if ca else []
    done = propeller("doctor", *where, *named, "--json", *words, env={"PROPELLER_PASSWORD": PASSWORD})
    assert done.stdout, done.stderr
    return done.returncode, {one["what"]: one for one in json.loads(done.stdout)["checks"]}


def test_a_stack_that_is_well_is_told_so_and_what_is_not_seen_is_named(up: Up) -> None:
    code, found = doctor(up)
    assert (code, [one for one in found.values() if one["status"] == "FAIL"]) == (0, [])
    local = propeller("doctor", "--state", str(up.folder), "--json")
    here = {one["what"]: one for one in json.loads(local.stdout)["checks"]}
    assert set(here) - set(found) == {"stack"}
    assert found["login"]["detail"] == "ann is let in"
    for same in ("client ids", "manager mqtt", "proplets", "rounds", "model 0", "datasets"):
        told, known = found[same]["detail"], here[same]["detail"]
        assert told.replace(HOST, "127.0.0.1") == known, same
    assert "5 addresses are good" in found["certificate"]["detail"]
    assert found["versions"]["status"] == found["clocks"]["status"] == "PASS"
    assert (found["broker"]["status"], found["broker"]["detail"]) == ("PASS", "identity is connected to it")
    for unseen in ("disk", "aggregator", "oci-registry", "proxy", "keys", "image"):
        assert found[unseen]["status"] == "SKIP"
        assert "on the stack's machine" in found[unseen]["detail"]


def test_services_that_no_client_needs_are_asked_where_they_can_be(up: Up) -> None:
    named = [
        word
        for name in ("aggregator", "proxy", "oci_registry")
        for word in ("--url", f"{name}={up.url(name).replace('127.0.0.1', HOST)}")
    ]
    code, found = doctor(up, *named)
    assert code == 0
    for name in ("aggregator", "proxy", "oci-registry"):
        assert (found[name]["status"], found[name]["detail"][-7:]) == ("PASS", "answers")
    away = ("--url", f"aggregator=https://{HOST}:9", "--url", f"proxy={up.url('manager')}/nowhere")
    code, found = doctor(up, *away)
    assert found["aggregator"]["status"] == "SKIP"
    assert f"nothing listens on {HOST}:9; it may be out of reach" in found["aggregator"]["detail"]
    assert (code, found["proxy"]["status"]) == (1, "FAIL")  # another program


def test_a_viewer_sees_as_much_as_a_viewer_may(up: Up) -> None:
    code, found = doctor(up, user="vic")
    assert (code, found["proplets"]["status"]) == (0, "PASS")
    assert [one for one in found.values() if one["status"] == "FAIL"] == []


def test_without_a_login_the_services_are_seen_and_the_rest_says_what_is_missing(up: Up) -> None:
    urls = [f"{name}={up.url(name).replace('127.0.0.1', HOST)}" for name in SERVICES]
    where = [*(word for url in urls for word in ("--url", url)), "--ca", up.stack["ca"]]
    wrong = {"PROPELLER_PASSWORD": "wrong-wrong-wrong"}
    done = propeller("doctor", *where, "--user", "ann", "--json", env=wrong)
    found = {one["what"]: one for one in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert found["manager"]["status"] == found["certificate"]["status"] == "PASS"
    assert "user 'ann' cannot log in" in found["login"]["detail"]
    assert "propeller login" in found["login"]["fix"]
    for waits in ("proplets", "rounds", "versions", "datasets"):
        assert found[waits]["detail"] == "waits for login", waits
    assert doctor(up)[0] == 0  # one wrong password: nobody is slowed down


def test_devices_that_are_away_and_a_failed_round_are_named(up: Up, tmp_path: Path) -> None:
    with Propeller.from_state(up.folder) as fl:
        waiting = fl.devices.add("late")
        token = fl.devices.add("ward-3")["token"]
        assert "not joined yet: late, ward-3" in doctor(up)[1]["proplets"]["detail"]
        with joined(tmp_path, token) as device:
            wait_alive(up, "ward-3", device)
            assert "ward-3 has no dataset" in doctor(up)[1]["datasets"]["detail"]
        wait_until(lambda: len(fl.proplets(alive=True)) == 1, what="it is away")
        code, found = doctor(up)
        assert code == 1
        assert "ward-3 is not alive: its last heartbeat was" in found["proplets"]["detail"]
        assert "on it, its log" in found["proplets"]["fix"]
        fl.devices.remove("ward-3")
        fl.devices.remove(waiting["id"])


def test_a_wrong_authority_and_a_service_that_is_away_are_told(up: Up, tmp_path: Path) -> None:
    code, found = doctor(up, ca=False)
    assert code == 1
    assert found["certificate"]["status"] == "FAIL"
    assert "--ca" in found["certificate"]["fix"]
    pid = up.stack["processes"]["data-store"]
    os.kill(pid, signal.SIGSTOP)
    try:
        code, found = doctor(up)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert code == 1
    assert found["data-store"]["status"] == "FAIL"
    assert "did not answer" in found["data-store"]["detail"]
    assert found["datasets"]["detail"] == "waits for data-store"
    assert found["manager"]["status"] == "PASS"


def test_what_the_proxy_is_asked_is_asked_on_its_machine(up: Up) -> None:
    urls = [f"{name}={up.url(name)}" for name in SERVICES]
    done = propeller("doctor", *(word for url in urls for word in ("--url", url)), "--image", "x:latest")
    assert done.returncode == 2
    assert "on the stack's machine" in done.stderr
