"""Logs of a stack elsewhere: by its services' addresses and a login, for operators and admins alone."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from propeller.errors import InvalidError, NotFoundError, RefusedError
from propeller.sdk import Propeller
from support.stack import PROPELLER, Up, propeller, running_stack

pytestmark = pytest.mark.timeout(180)

PASSWORD = "ann-ann-ann"
SERVICES = ("manager", "coordinator", "model_registry", "data_store", "identity")
OPERATED = ("aggregator", "proxy", "oci_registry")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("logs") / "state", "--proplets", "1") as running:
        with Propeller.from_state(running.folder) as fl:
            fl.users.add("ann", PASSWORD, "operator")
            fl.users.add("vic", PASSWORD, "viewer")
        yield running


def where(up: Up, user: str) -> list[str]:
    urls = [word for name in SERVICES for word in ("--url", f"{name}={up.url(name)}")]
    return [*urls, "--user", user]


def logs(up: Up, *words: str, user: str = "ann") -> subprocess.CompletedProcess[str]:
    return propeller("logs", *where(up, user), *words, env={"PROPELLER_PASSWORD": PASSWORD})


def client(up: Up, user: str) -> Propeller:
    urls = {name: up.url(name) for name in SERVICES}
    return Propeller(**urls, user=user, password=PASSWORD)  # type: ignore[arg-type]


def test_an_operator_sees_what_the_services_log_in_the_words_of_the_files(up: Up) -> None:
    elsewhere = logs(up, "--service", "manager")
    assert elsewhere.returncode == 0, elsewhere.stderr
    here = propeller("logs", "--state", str(up.folder), "--service", "manager").stdout
    assert elsewhere.stdout.splitlines()[:5] == here.splitlines()[:5] != []
    every = logs(up)
    assert "identity: " in every.stderr  # an operator of the domain is none of identity
    assert {row.split()[1] for row in every.stdout.splitlines()} == {
        "manager", "coordinator", "model-registry", "data-store",
    }  # fmt: skip
    last = logs(up, "--last", "1", "--json")
    assert json.loads(last.stdout)["time"]
    assert logs(up, "--service", "manager", "--level", "error").stdout == ""
    for secret in [*(one["key"] for one in up.stack["clients"].values()), up.stack["admin"]["password"]]:
        assert secret not in every.stdout


def test_who_may_not_and_what_is_not_there_is_said(up: Up) -> None:
    refused = logs(up, user="vic")
    assert refused.returncode == 1
    assert "it may not GET /logs" in refused.stderr
    proplet = logs(up, "--service", "proplet-1")
    assert proplet.returncode == 1
    assert "of the broker, and of devices, are on their machines" in proplet.stderr
    unknown = logs(up, "--service", "proxy")
    assert unknown.returncode == 1
    assert "--service proxy: its address is not known: give it as --url proxy=URL" in unknown.stderr
    assert logs(up, "--round", "nothere").returncode == 1
    assert logs(up, "--level", "loud").returncode == 2


def test_those_that_no_client_needs_are_asked_where_their_addresses_are_known(up: Up) -> None:
    named = [word for name in OPERATED for word in ("--url", f"{name}={up.url(name)}")]
    every = logs(up, *named)
    assert every.returncode == 0, every.stderr
    assert {"aggregator", "proxy", "oci-registry"} < {row.split()[1] for row in every.stdout.splitlines()}
    for name in ("aggregator", "proxy", "oci-registry"):
        elsewhere = logs(up, *named, "--service", name, "--json").stdout.splitlines()
        file = (up.folder / "logs" / f"{name}.log").read_text().splitlines()
        assert elsewhere == file[: len(elsewhere)] != []
        refused = logs(up, *named, "--service", name, user="vic")
        assert refused.returncode == 1
        assert "viewer" in refused.stderr
        assert "{" not in refused.stderr
    local = Propeller.from_state(up.folder)
    with local:
        assert {*SERVICES, *OPERATED} == set(local.services)
        assert local.logs("oci_registry", lines=1, level="info")[0]["level"] == "INFO"
        for wrong in ({"lines": 0}, {"level": "loud"}):
            with pytest.raises(InvalidError, match=next(iter(wrong))):
                local.logs("oci_registry", **wrong)
        with pytest.raises(InvalidError, match="after"):
            local.log_lines("oci_registry", after="x")


def test_a_service_that_is_not_there_holds_up_no_other(up: Up) -> None:
    away = logs(up, "--url", "aggregator=http://127.0.0.1:9")
    assert away.returncode == 0
    assert "aggregator: GET http://127.0.0.1:9/logs" in away.stderr
    assert "manager" in away.stdout


def test_a_wrong_password_is_tried_once(up: Up) -> None:
    """Of five services that are asked none slows the user down."""
    for _ in range(3):
        wrong = propeller("logs", *where(up, "ann"), env={"PROPELLER_PASSWORD": "wrong-wrong-wrong"})
        assert wrong.returncode == 1
        assert "user 'ann' cannot log in" in wrong.stderr
    assert logs(up, "--service", "manager").returncode == 0


def test_python_has_them_by_field(up: Up) -> None:
    with client(up, "ann") as ann:
        found = ann.logs("manager", lines=3)
        assert len(found) == 3
        assert all({"time", "level", "msg"} <= set(one) for one in found)
        assert not [one for one in ann.logs("manager", level="warning") if one["level"] == "INFO"]
        with pytest.raises(InvalidError, match="none of manager"):
            ann.logs("broker")
        with pytest.raises(InvalidError, match="level"):
            ann.logs("manager", level="loud")
        with pytest.raises(InvalidError, match="lines"):
            ann.logs("manager", lines=0)
        with pytest.raises(InvalidError, match="after"):
            ann.log_lines("manager", after="not-one")
    with client(up, "vic") as vic, pytest.raises(RefusedError, match="may not GET /logs"):
        vic.logs("manager")
    with Propeller.from_state(up.folder) as fl, pytest.raises((NotFoundError, RefusedError, InvalidError)):
        fl.logs("identity")


def test_following_outlasts_the_service_and_shows_each_line_once(up: Up) -> None:
    command = [*PROPELLER, "logs", *where(up, "ann"), "--service", "data-store", "-f"]
    env = {**os.environ, "PROPELLER_PASSWORD": PASSWORD}
    shown: list[str] = []

    def read_until(text: str, times: int = 1) -> None:
        assert process.stdout is not None
        while sum(text in row for row in shown) < times:
            shown.append(process.stdout.readline())
            assert shown[-1]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        read_until("listening")
        with Propeller.from_state(up.folder) as fl:
            fl.put_dataset("proplet-1", {"data": [{"x": [1.0], "y": 0}]})
        read_until("Dataset stored")
        os.kill(up.stack["processes"]["data-store"], signal.SIGKILL)
        read_until("listening", times=2)  # of the process that was started in its place
        process.terminate()
    assert len(set(shown)) == len(shown)
    assert [row[:12] for row in shown] == sorted(row[:12] for row in shown)
