"""A strategy as a program: what it is given, what it gives back, and what it is told when that is not right."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.fl.tensors import from_safetensors, to_safetensors
from propeller.program import Aggregate, DeviceUpdate, aggregate, command, registry
from propeller.program import tensors as pt
from propeller.tensors import session
from propeller.tensors.files import TaskFiles
from propeller.tensors.numpy_machine import ArrayFiles, NumpyMachine
from propeller.tensors.python_machine import PythonMachine

BASE = {"w": np.array([1.0, 2.0]), "n": np.array(3, np.int64)}
HEADER: dict[str, Any] = {
    "num_samples": 4,
    "steps": None,
    "metrics": {},
    "slot": 0,
    "staleness": 0,
    "base": 0,
}

Task = Callable[..., tuple[int, str, str]]


@pytest.fixture(params=[(NumpyMachine, ArrayFiles), (PythonMachine, TaskFiles)], ids=["numpy", "python"])
def task(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Task:
    """Runs a function as an aggregation on files; gives the exit code, standard output and standard error."""
    machine, files = request.param
    for name in ("in", "out"):
        (tmp_path / name).mkdir()

    def write(name: str, tensors: Any) -> None:
        (tmp_path / "in" / f"{name}.safetensors").write_bytes(to_safetensors(tensors))

    def run(function: Any, updates: list[Any], state: Any = None, values: Any = None, **params: Any) -> Any:
        write("model", BASE)
        write("base-1", {name: tensor - 1 for name, tensor in BASE.items()})
        for number, (tensors, _header) in enumerate(updates):
            write(f"update-{number}", tensors)
        if state is not None:
            write("state", state)
        headers = [{**HEADER, **header} for _tensors, header in updates]
        document = {"params": params, "state": values or {}, "updates": headers}
        (tmp_path / "in" / "aggregation.json").write_text(json.dumps(document))
        registry.reset()
        aggregate(function)
        monkeypatch.setenv("ROUND_ID", "r-1")
        monkeypatch.setenv("FL_MODE", "aggregate")
        session.use(machine(files(tmp_path)))
        code = command.run(tmp_path)
        return code, *capsys.readouterr()

    return run


def written(folder: Path, name: str) -> dict[str, Any]:
    return from_safetensors((folder / "out" / f"{name}.safetensors").read_bytes())[0]


def test_a_mean_with_state(task: Task, tmp_path: Path) -> None:
    def merge(base: Any, updates: Any, state: Any, params: Any, ctx: Any) -> Aggregate:
        print("merging", ctx.round_id, len(updates), params)  # noqa: T201 - what is tested
        assert list(base) == ["w", "n"]
        assert base["w"].tolist() == [1.0, 2.0]
        assert [(each.num_samples, each.steps, each.slot) for each in updates] == [(4, None, 0), (12, 7, 2)]
        assert updates[-1].metrics == {"loss": 0.5}
        assert [each.slot for each in updates[:1]] == [0]
        assert "@control/w" not in updates[0].model
        # An update that is stale has a base of its own.
        assert updates[0].delta["w"].tolist() == [2.0, 2.0]
        assert updates[1].delta["w"].tolist() == [5.0, 5.0]
        assert state["seen"] == 3
        velocity = state["v/w"] + sum(each.delta["w"] for each in updates)
        return Aggregate({"n": 5, "w": base["w"] + velocity}, {"v/w": velocity, "seen": state["seen"] + 1})

    first = {"w": np.array([3.0, 4.0]), "n": np.array(4, np.int64), "@control/w": np.zeros(2)}
    second = {"w": np.array([5.0, 6.0]), "n": np.array(4, np.int64)}
    headers = [{}, {"num_samples": 12, "steps": 7, "slot": 2, "metrics": {"loss": 0.5}, "base": 1}]
    code, out, err = task(
        merge, list(zip([first, second], headers, strict=True)), {"v/w": np.array([0.5, 0.0])}, {"seen": 3}
    )
    assert (code, err) == (0, "merging r-1 2 {}\n")
    assert json.loads(out) == {"round_id": "r-1", "state": {"seen": 4}}
    model = written(tmp_path, "model")
    assert model["w"].tolist() == [8.5, 9.0]
    assert model["n"].item() == 5
    assert written(tmp_path, "state")["v/w"].tolist() == [7.5, 7.0]


@pytest.mark.parametrize(
    ("give", "told"),
    [
        (lambda: None, "TypeError: merge is marked with @aggregate: it returns an Aggregate, not NoneType"),
        (lambda: Aggregate([1]), "TypeError: the aggregate's model is a list; it is a dict by name"),  # type: ignore[arg-type]
        (lambda: Aggregate({}, {"x": {1}}), "TypeError: the state holds what is neither an array nor JSON"),
        (lambda: Aggregate({}, {"x": float("nan")}), "TypeError: the state holds what is neither an array"),
        (lambda: Aggregate({"w": "no"}), "TensorError"),
        (lambda: 1 // 0, "ZeroDivisionError"),
    ],
)
def test_what_is_no_aggregate_is_explained(task: Task, give: Any, told: str) -> None:
    def merge(*_: Any) -> Any:
        return give()

    code, out, err = task(merge, [])
    assert (code, out) == (1, "")
    assert told in err.splitlines()[-1]
    assert re.match(r"test_aggregation\.py:\d+: ", err.splitlines()[-1])


def test_a_name_that_is_not_there(task: Task) -> None:
    def merge(base: Any, updates: Any, *_: Any) -> Any:
        with pytest.raises(pt.TensorError, match="update 0 has no tensor 'x'; it has w, n"):
            updates[0].model["x"]
        return Aggregate(dict(base))

    code, _, err = task(merge, [(BASE, {})])
    assert code == 0, err


def test_called_as_a_function(machine: Any) -> None:
    """In a test of one's own, with arrays and without files."""
    base = {"w": pt.array([1.0, 2.0])}
    update = DeviceUpdate({"w": pt.array([2.0, 4.0])}, base, num_samples=3)
    assert dict(update.delta)["w"].tolist() == [1.0, 2.0]
    assert len(update.delta) == 1
