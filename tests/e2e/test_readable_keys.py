"""absmach/propeller's provisioning against a running ``up`` whose clients exist: it reads keys that work, where that is asked for."""

import json
import shutil
from pathlib import Path

import pytest

from propeller.stack.env_file import GUIDE_VARIABLES, EnvFile, id_variable, key_variable
from support.smq_script import CLIENTS, SmqScript
from support.stack import Up, propeller, running_stack

pytestmark = pytest.mark.timeout(240)

GUIDES = {"IDENTITY_ADMIN_USERNAME": "admin", "IDENTITY_ADMIN_PASSWORD": "12345678"}
READABLE = {**GUIDES, "IDENTITY_KEYS_READABLE": "true"}


def script_at(up: Up) -> SmqScript:
    identity = up.stack["services"]["identity"]
    return SmqScript(identity["users"], identity["domains"], identity["channels"], identity["clients"])


def secret_of(folder: Path) -> str:
    found: str = json.loads((folder / "secrets.json").read_text())["client_keys"]
    return found


def test_their_script_reads_the_keys_of_a_stack_and_so_does_ours_also_after_clear_and_a_restore(
    tmp_path: Path,
) -> None:
    folder, file = tmp_path / "state", tmp_path / ".env"
    with running_stack(folder, env=READABLE) as up:
        script = script_at(up)
        values = script.run()
        assert script.warnings == []
        assert set(values) == set(GUIDE_VARIABLES)
        known = up.stack["clients"]
        for name in CLIENTS:
            assert values[id_variable(name)] == known[name]["id"]
            assert values[key_variable(name)] == known[name]["key"]
        file.write_text(EnvFile(file, "").updated(values))
        assert propeller("provision", "clear", "--env-file", str(file)).returncode == 0
        assert EnvFile.read(file).values["MANAGER_CLIENT_KEY"] == ""
        assert script_at(up).run() == values
        identity = up.stack["services"]["identity"]["url"]
        ours = propeller("provision", "--env-file", str(file), "--identity-url", identity)
        assert ours.returncode == 0, ours.stderr
        assert values.items() <= EnvFile.read(file).values.items()
        for kept in folder.rglob("identity/*"):
            assert not [one for one in known.values() if one["key"].encode() in kept.read_bytes()], kept
        for log in folder.rglob("*.log"):
            assert not [one for one in known.values() if one["key"] in log.read_text()], log
        audit = propeller("audit", "show", "--service", "identity", "--state", str(folder)).stdout
        assert "keys_of" in audit
        archive = tmp_path / "backup.tar.zst"
        saved = propeller("backup", str(archive), "--state", str(folder))
        assert saved.returncode == 0, saved.stderr
    secret = secret_of(folder)
    shutil.move(folder, tmp_path / "lost")
    restored = propeller("restore", str(archive), "--state", str(folder))
    assert restored.returncode == 0, restored.stderr
    with running_stack(folder, env=READABLE) as up:
        assert script_at(up).run() == values
    assert secret_of(folder) == secret
    with running_stack(folder, env=GUIDES) as up:  # not asked for any more
        without = script_at(up).run()
        assert without == {name: value for name, value in values.items() if "CLIENT" not in name}
    assert secret_of(folder) == ""


def test_a_stack_of_before_gives_its_clients_new_keys_once(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with running_stack(folder, "--proplets", "0", env=GUIDES) as up:
        before, old = script_at(up).run(), up.stack["clients"]  # makes the clients that are missing
    with running_stack(folder, "--proplets", "1", env=READABLE) as up:
        values, new = script_at(up).run(), up.stack["clients"]
        assert "keys" in up.output
        for name in ("manager", "fl-coordinator", "proxy", "proplet-1"):
            assert values[key_variable(name)] == new[name]["key"]
        assert values["PROPLET_CLIENT_KEY"] != before["PROPLET_CLIENT_KEY"]
        assert not {one["key"] for one in old.values()} & {one["key"] for one in new.values()}
        assert {name: one["id"] for name, one in old.items()}.items() <= {
            name: one["id"] for name, one in new.items()
        }.items()
        assert "PROPLET_2_CLIENT_KEY" not in values  # not of this stack: its key is given anew by hand
    with running_stack(folder, "--proplets", "1", env=READABLE) as up:
        assert up.stack["clients"] == new
        assert script_at(up).run() == values


def test_what_is_neither_true_nor_false_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    refused = propeller(
        "up", "--state", str(folder), "--ports", "auto", env={"IDENTITY_KEYS_READABLE": "perhaps"}
    )
    assert refused.returncode == 1
    assert "IDENTITY_KEYS_READABLE: 'perhaps' is neither true nor false" in refused.stderr
    assert not (folder / "secrets.json").exists()
