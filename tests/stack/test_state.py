"""The state folder: held by one stack, private, and never half-written."""

import json
import stat
from pathlib import Path

import pytest

from propeller.process.run import StartError
from propeller.stack.state import State, write_private


def test_secrets_are_made_once_kept_and_private(tmp_path: Path) -> None:
    state = State(tmp_path)
    first = state.secrets()
    first.clients["manager"] = {"id": "m", "key": "k"}
    state.keep(first)
    assert State(tmp_path).secrets() == first
    assert len(first.broker) >= 32
    assert stat.S_IMODE(state.secrets_file.stat().st_mode) == 0o600


def test_a_given_admin_wins_over_the_kept_one(tmp_path: Path) -> None:
    made = State(tmp_path).secrets()
    changed = State(tmp_path).secrets("root", "given password")
    assert (changed.admin_username, changed.admin_password) == ("root", "given password")
    assert changed.broker == made.broker
    assert State(tmp_path).secrets() == changed


@pytest.mark.parametrize("damage", ["{", "[]", '{"broker": "x"}', '{"unknown": 1}'])
def test_damaged_secrets_are_not_replaced(tmp_path: Path, damage: str) -> None:
    (tmp_path / "secrets.json").write_text(damage)
    with pytest.raises(StartError, match="restore it"):
        State(tmp_path).secrets()
    assert (tmp_path / "secrets.json").read_text() == damage


def test_one_stack_holds_a_folder(tmp_path: Path) -> None:
    first, second = State(tmp_path / "a" / "b"), State(tmp_path / "a" / "b")
    assert first.holder() is None
    first.hold()
    assert second.holder() is not None
    with pytest.raises(StartError, match="already runs"):
        second.hold()
    first.release()
    assert second.holder() is None
    second.hold()
    second.release()


def test_holding_removes_the_description_of_a_stack_that_is_gone(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.publish({"services": {}})
    assert state.read_stack() == {"services": {}}
    state.hold()
    assert state.read_stack() is None
    state.release()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="choose another with --state"):
        State(tmp_path / "file" / "state").hold()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_private(file, {"a": 1})
    with pytest.raises(TypeError):
        write_private(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
