"""The state folder: held by one stack, private, and never half-written."""

import stat
from pathlib import Path

import pytest

from propeller.errors import StartError
from propeller.stack.state_folder import StateFolder


def test_secrets_are_made_once_kept_and_private(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    first = state.load_secrets()
    first.clients["manager"] = {"id": "m", "key": "k"}
    state.save_secrets(first)
    assert StateFolder(tmp_path).load_secrets() == first
    assert len(first.broker) >= 32
    assert stat.S_IMODE(state.secrets_file.stat().st_mode) == 0o600


def test_a_given_admin_wins_over_the_kept_one(tmp_path: Path) -> None:
    made = StateFolder(tmp_path).load_secrets()
    changed = StateFolder(tmp_path).load_secrets("root", "given password")
    assert (changed.admin_username, changed.admin_password) == ("root", "given password")
    assert changed.broker == made.broker
    assert StateFolder(tmp_path).load_secrets() == changed


@pytest.mark.parametrize("damage", ["{", "[]", '{"broker": "x"}', '{"unknown": 1}'])
def test_damaged_secrets_are_not_replaced(tmp_path: Path, damage: str) -> None:
    (tmp_path / "secrets.json").write_text(damage)
    with pytest.raises(StartError, match="restore it"):
        StateFolder(tmp_path).load_secrets()
    assert (tmp_path / "secrets.json").read_text() == damage


def test_one_stack_holds_a_folder(tmp_path: Path) -> None:
    first, second = StateFolder(tmp_path / "a" / "b"), StateFolder(tmp_path / "a" / "b")
    assert first.running_process() is None
    first.lock()
    assert second.running_process() is not None
    with pytest.raises(StartError, match="already runs"):
        second.lock()
    first.release()
    assert second.running_process() is None
    second.lock()
    second.release()


def test_holding_removes_the_description_of_a_stack_that_is_gone(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.write_stack({"services": {}})
    assert state.read_stack() == {"services": {}}
    state.lock()
    assert state.read_stack() is None
    state.release()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="choose another with --state"):
        StateFolder(tmp_path / "file" / "state").lock()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.write_stack({"a": 1})
    with pytest.raises(TypeError):
        state.write_stack({"a": object()})
    assert state.read_stack() == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["stack.json"]
