"""Ids and keys of a running stack as the guide's commands, its script and ``propeller provision`` find them."""

import json
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from propeller.stack.env_file import PROVISIONED_CLIENTS, PROVISIONED_VARIABLES, EnvFile, env_values
from support.smq_script import CLIENTS, SmqScript
from support.stack import Up, propeller, running_stack

pytestmark = pytest.mark.timeout(180)

GUIDES = {"IDENTITY_ADMIN_USERNAME": "admin", "IDENTITY_ADMIN_PASSWORD": "12345678"}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("provisioned") / "state", env=GUIDES) as running:
        yield running


def test_the_env_file_says_what_stack_json_says(up: Up) -> None:
    file = up.folder / ".env"
    stack = up.stack
    assert EnvFile.read(file).values == env_values(stack["domain_id"], stack["channel_id"], stack["clients"])
    assert set(EnvFile.read(file).values) == set(PROVISIONED_VARIABLES)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    # As the guide's step 7 reads ids.
    command = f"grep '^PROPLET_2_CLIENT_ID=' {file} | cut -d '=' -f2 | tr -d '\"'"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == stack["clients"]["proplet-2"]["id"]


def test_the_guides_script_works_with_its_own_password(up: Up) -> None:
    identity = up.stack["services"]["identity"]
    script = SmqScript(identity["users"], identity["domains"], identity["channels"], identity["clients"])
    values = script.run()
    assert script.warnings == []
    assert set(script.answers) == set(CLIENTS)
    file = EnvFile.read(up.folder / ".env")
    assert file.updated(values) == file.text  # the keys, which it cannot read, are left alone


def test_provision_takes_the_keys_of_a_stack(up: Up, tmp_path: Path) -> None:
    identity = up.stack["services"]["identity"]["url"]
    own = propeller("provision", "--env-file", str(up.folder / ".env"), "--identity-url", identity)
    assert own.returncode == 0, own.stderr
    assert "nothing was changed" in own.stdout
    other = tmp_path / ".env"
    refused = propeller("provision", "--env-file", str(other), "--identity-url", identity)
    assert refused.returncode == 1
    assert "add --state DIR to take those" in refused.stderr
    assert not other.exists()
    taken = propeller("provision", "--env-file", str(other), "--state", str(up.folder))
    assert taken.returncode == 0, taken.stderr
    assert EnvFile.read(other).values == EnvFile.read(up.folder / ".env").values
    assert taken.stdout.count("  kept\n") == len(PROVISIONED_CLIENTS)
    assert not [client["key"] for client in up.stack["clients"].values() if client["key"] in taken.stdout]


def test_a_start_replaces_a_revoked_key_and_the_env_file_follows(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with running_stack(folder, "--proplets", "2") as first:
        before = first.stack
        assert before["admin"]["password"] != GUIDES["IDENTITY_ADMIN_PASSWORD"]
        assert len(before["admin"]["password"]) >= 12
    kept = json.loads((folder / "secrets.json").read_text())
    kept["clients"]["manager"]["key"] = "0" * 64
    (folder / "secrets.json").write_text(json.dumps(kept))
    (folder / ".env").write_text(f"# mine\n{(folder / '.env').read_text()}")
    with running_stack(folder, "--proplets", "1") as second:
        after, values = second.stack, EnvFile.read(folder / ".env").values
        assert after["clients"]["manager"]["id"] == before["clients"]["manager"]["id"]
        assert after["clients"]["manager"]["key"] not in {"0" * 64, before["clients"]["manager"]["key"]}
        assert values["MANAGER_CLIENT_KEY"] == after["clients"]["manager"]["key"]
        assert values["PROPLET_CLIENT_ID"] == before["clients"]["proplet-1"]["id"]
        assert (values["PROPLET_2_CLIENT_ID"], values["PROPLET_2_CLIENT_KEY"]) == ("", "")
    assert (folder / ".env").read_text().startswith("# mine\n")


def test_a_password_that_identity_would_refuse_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDENTITY_ADMIN_PASSWORD", "short")
    refused = propeller("up", "--state", str(tmp_path / "state"), "--ports", "auto")
    assert refused.returncode == 1
    assert "error: IDENTITY_ADMIN_PASSWORD: at least 8 characters" in refused.stderr
    assert not (tmp_path / "state" / "secrets.json").exists()
