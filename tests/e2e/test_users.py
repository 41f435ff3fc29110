"""People beside the one who started the stack: added by a command, and let in as far as their role goes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from propeller.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    RefusedError,
    StartError,
    UnauthenticatedError,
)
from propeller.sdk import Propeller
from support.stack import Up, running_stack
from support.stack import propeller as run_command

pytestmark = pytest.mark.timeout(180)

PASSWORD = "ann-ann-ann"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("users") / "state", "--proplets", "0") as running:
        yield running


def propeller(up: Up, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run_command(*words, "--state", str(up.folder), env=env)


def as_user(up: Up, name: str, password: str = PASSWORD, *, oci_registry: str | None = None) -> Propeller:
    return Propeller(
        oci_registry=oci_registry,
        manager=up.url("manager"),
        coordinator=up.url("coordinator"),
        model_registry=up.url("model_registry"),
        data_store=up.url("data_store"),
        identity=up.url("identity"),
        user=name,
        password=password,
    )


def test_a_viewer_is_added_made_an_operator_and_disabled(up: Up, tmp_path: Path) -> None:
    program = tmp_path / "p.wasm"
    program.write_bytes(b"\0asm\1\0\0\0")
    added = propeller(up, "user", "add", "ann", PROPELLER_NEW_PASSWORD=PASSWORD)
    assert added.stdout.startswith("ann is viewer."), added.stderr
    with as_user(up, "ann") as ann:
        assert ann.experiments() == []
        with pytest.raises(RefusedError, match=r"user .* is a viewer: it may not POST /models"):
            ann.put_model({"w": [1.0]})
        assert propeller(up, "user", "role", "ann", "operator").stdout == "ann is operator.\n"
    with as_user(up, "ann") as ann:
        assert ann.put_model({"w": [1.0]}) == 1
        with pytest.raises(StartError, match="oci_registry: no address"):
            ann.push_program(program)
        with as_user(up, "ann", oci_registry=up.url("oci_registry")) as pushing:
            pushed = pushing.push_program(program).reference
        assert pushed.startswith(f"{up.url('oci_registry').removeprefix('http://')}/p@sha256:")
        with pytest.raises(RefusedError, match="one of its admins, may manage it"):
            ann.users.list()
        listed = json.loads(propeller(up, "user", "list", "--json").stdout)
        assert [(one["username"], one["role"]) for one in listed] == [("admin", "admin"), ("ann", "operator")]
        assert "operator" in propeller(up, "user", "list").stdout
        assert propeller(up, "user", "disable", "ann").returncode == 0
    with as_user(up, "ann") as ann, pytest.raises(UnauthenticatedError, match="cannot log in"):
        ann.versions()
    assert propeller(up, "user", "enable", "ann").returncode == 0
    assert propeller(up, "user", "role", "ann", "none").returncode == 0
    with as_user(up, "ann") as ann, pytest.raises(RefusedError, match="not a member of this domain"):
        ann.versions()


def test_a_user_changes_their_own_password_and_goes_on_with_it(up: Up) -> None:
    with Propeller.from_state(up.folder) as fl:
        fl.users.add("cleo", PASSWORD, "viewer")
        with pytest.raises(InvalidError, match="IDENTITY_ADMIN_PASSWORD"):
            fl.users.change_password("another-one")
    services = ("manager", "coordinator", "model_registry", "data_store", "identity")
    where = [word for name in services for word in ("--url", f"{name}={up.url(name)}")]
    command = [sys.executable, "-m", "propeller", "user", "password", *where, "--user", "cleo"]
    env = {**os.environ, "PROPELLER_PASSWORD": PASSWORD, "PROPELLER_NEW_PASSWORD": "cleos-second"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "cleo has a new password, and logs in anew with it.\n", done.stderr
    with as_user(up, "cleo") as cleo, pytest.raises(UnauthenticatedError, match="cannot log in"):
        cleo.versions()
    with as_user(up, "cleo", "cleos-second") as cleo:
        assert cleo.versions() != []
        with pytest.raises(InvalidError, match="new_secret"):
            cleo.users.change_password("short")
        cleo.users.change_password("cleos-third")
        assert cleo.versions() != []
    nobody = propeller(up, "user", "password")
    assert nobody.returncode == 1
    assert "whose password?" in nobody.stderr


def test_what_cannot_be(up: Up) -> None:
    with Propeller.from_state(up.folder) as fl:
        with pytest.raises(NotFoundError, match="there is no user 'bob'"):
            fl.users.set_role("bob", "viewer")
        with pytest.raises(InvalidError, match="role: 'king' is not one of viewer, operator, admin"):
            fl.users.add("bob", PASSWORD, "king")
        with pytest.raises(InvalidError, match="password"):
            fl.users.add("bob", "short", "viewer")
        with pytest.raises(ConflictError, match="a user named 'admin' exists"):
            fl.users.add("admin", PASSWORD, "viewer")
    without = propeller(up, "user", "add", "bob", PROPELLER_NEW_PASSWORD="")
    assert without.returncode == 1
    assert "set PROPELLER_NEW_PASSWORD" in without.stderr
