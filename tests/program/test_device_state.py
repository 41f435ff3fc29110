"""What a program keeps between rounds: arrays and JSON, in a test and in a task's files."""

from pathlib import Path
from typing import Any

import pytest

from propeller.errors import NotFoundError, RefusedError
from propeller.program import Context, DeviceState
from propeller.program import tensors as pt
from propeller.program.device_state import TaskState
from propeller.tensors import session

TASK = {"EXPERIMENT_ID": "e-1", "FL_MODE": "train"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    session.use(session.LocalMachine(tmp_path))
    return tmp_path


def again(root: Path, **environment: str) -> TaskState:
    """The state as the next task finds it."""
    session.use(session.LocalMachine(root))
    return TaskState(root, {**TASK, **environment})


def test_a_mapping_in_a_test() -> None:
    state = Context().state
    assert (len(state), state.get("n"), "n" in state) == (0, None, False)
    state["n"], state["w"] = 3, pt.array([1.0, 2.0])
    assert (state["n"], state["w"].tolist(), list(state)) == (3, [1.0, 2.0], ["n", "w"])
    assert state.pop("n") == 3
    assert repr(DeviceState({"n": 1})) == "DeviceState({'n': 1})"
    with pytest.raises(KeyError, match="the device state has no 'n'; it has w"):
        state["n"]


def test_what_is_kept_comes_back(root: Path) -> None:
    state = again(root)
    state["w"] = w = pt.array([[1.0, 2.0]], "float64")
    state["count"] = pt.array(3)
    state["flags"] = {"a": [1, None, "x"], "b": True}
    state["gone"] = 1
    state.keep_library_arrays("control", {"w": pt.zeros(2)})
    w += 1  # as of a dict: what is saved is what it is then
    del state["gone"]
    state.save()
    state = again(root)
    assert sorted(state) == ["count", "flags", "w"]
    assert (state["w"].tolist(), state["w"].dtype) == ([[2.0, 3.0]], "float64")
    assert (state["count"].tolist(), state["flags"]) == (3, {"a": [1, None, "x"], "b": True})
    assert {name: value.tolist() for name, value in state.library_arrays("control").items()} == {"w": [0, 0]}
    state["w"] = state["w"] * 2
    del state["flags"], state["count"]
    state.save()
    assert {name: value.tolist() for name, value in again(root).items()} == {"w": [[4.0, 6.0]]}


def test_a_task_that_uses_none_writes_none(root: Path) -> None:
    again(root).save()
    assert list((root / "state").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("@control/w", 1, "must not begin with '@'"),
        ("", 1, "no name for a value"),
        ("x", float("nan"), "'x' is neither an array nor JSON"),
        ("x", {1, 2}, "'x' is neither an array nor JSON"),
        ("x", object(), "'x' is neither an array nor JSON"),
    ],
)
def test_what_cannot_be_kept(root: Path, name: str, value: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        again(root)[name] = value


def test_an_evaluation_only_reads(root: Path) -> None:
    state = again(root)
    state["n"] = 1
    state.save()
    state = again(root, FL_MODE="evaluate")
    assert state["n"] == 1
    with pytest.raises(RefusedError, match="an evaluation reads the device state"):
        state["n"] = 2
    with pytest.raises(RefusedError, match="an evaluation reads the device state"):
        del state["n"]
    state.save()


def test_a_task_without_a_state_says_why(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="it belongs to no experiment"):
        again(tmp_path, EXPERIMENT_ID="")["n"] = 1
    with pytest.raises(NotFoundError, match="PROPLET_TASK_STATE_BYTES"):
        "n" in again(tmp_path)  # noqa: B015


def test_a_link_in_the_state_is_not_followed(root: Path) -> None:
    """Only a program can have put it there."""
    state = again(root)
    state["w"] = pt.zeros(2)
    state.save()
    kept = root / "state" / "tensors.safetensors"
    kept.rename(root / "elsewhere")
    kept.symlink_to(root / "elsewhere")
    with pytest.raises(pt.TensorError):
        len(again(root))
