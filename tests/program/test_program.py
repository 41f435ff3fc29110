"""What a program is given, what it may give back, and what it is told when that is not right."""

import functools
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.fl.tensors import (
    DTYPES,
    Tensors,
    bounds,
    check_ranges,
    from_json,
    from_safetensors,
    specs_of,
    to_base_dtypes,
    to_safetensors,
)
from propeller.program import Data, Evaluation, Update, command, registry
from propeller.program import tensors as pt
from propeller.program.tensors import TensorError
from propeller.tensors import session
from propeller.tensors.files import TaskFiles
from propeller.tensors.machine import Files, StepMachine
from propeller.tensors.numpy_machine import ArrayFiles, NumpyMachine
from propeller.tensors.python_machine import PythonMachine

SAMPLES = [
    {"x": [0.1, 0.2], "y": 1, "name": "a", "ok": True, "big": 2**63, "once": 1},
    {"x": [0.3, 0.4], "y": 0, "name": "b", "ok": False, "big": 2**63},
]
MODEL = {"w": [1.0, 2.0], "b": 0.5}

Task = Callable[..., tuple[int, str, str]]


@pytest.fixture(params=[(NumpyMachine, ArrayFiles), (PythonMachine, TaskFiles)], ids=["numpy", "python"])
def task(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Task:
    """Runs a function as a program on files; gives the exit code, standard output and standard error."""
    machine, files = request.param
    for name in ("in", "out"):
        (tmp_path / name).mkdir()

    def run(function: Any = None, *, model: Any = MODEL, mode: str = "train", **environment: str) -> Any:
        (tmp_path / "in" / "dataset.json").write_text(json.dumps({"data": SAMPLES, "size": 2}))
        if isinstance(model, bytes):
            (tmp_path / "in" / "model.safetensors").write_bytes(model)
        else:
            (tmp_path / "in" / "model.json").write_text(json.dumps(model))
        registry.reset()
        if function is not None:
            {"train": registry.train, "evaluate": registry.evaluate}[mode](function)
        for key, value in {
            "ROUND_ID": "r-1",
            "PROPLET_ID": "p-1",
            "MODEL_URI": "m",
            "FL_MODE": mode,
            **environment,
        }.items():
            monkeypatch.setenv(key, value)
        session.use(machine(files(tmp_path)))
        code = command.run(tmp_path)
        return code, *capsys.readouterr()

    return run


def test_a_training(task: Task, tmp_path: Path) -> None:
    def fit(model: Any, data: Data, hyperparams: Any, ctx: Any) -> Update:
        print("hello", ctx.round_id, data.columns)  # noqa: T201 - what is tested
        assert (model["w"].dtype, model["w"].shape, model["b"].shape) == ("float64", (2,), ())
        assert (data.x.dtype, data["y"].dtype, data.ok.dtype) == ("float32", "int64", "bool")
        assert data.x.tolist()[1] == pytest.approx([0.3, 0.4])
        assert "name" not in data
        assert [sample["name"] for sample in data.samples] == ["a", "b"]
        new = model["w"] * hyperparams["lr"]
        return Update({"b": 1, "w": new}, len(data), {"loss": new.sum(), "n": 2})

    code, out, err = task(fit, HYPERPARAMS='{"lr": 10.0}')
    assert (code, err) == (0, "hello r-1 ('x', 'y', 'ok')\n")
    assert json.loads(out) == {
        "round_id": "r-1",
        "proplet_id": "p-1",
        "base_model_uri": "m",
        "num_samples": 2,
        "metrics": {"loss": 30.0, "n": 2},
        "update": {"b": 1.0, "w": [10.0, 20.0]},
    }
    assert list((tmp_path / "out").iterdir()) == []


def test_a_large_update(task: Task, tmp_path: Path) -> None:
    """It goes to a file, in types that lose nothing, and the platform reads it."""
    base = {
        "w": np.zeros((100, 60), "float32"),
        "n": np.array([1, 2], "int64"),
        "s": np.array(0.5),
    }

    def fit(model: Any, *_: Any) -> Update:
        w = pt.arange(6000).reshape(100, 60) * 0.5
        return Update({"w": w.T.T.astype("float64"), "n": model["n"] + 1, "s": model["s"]}, 3)

    code, out, _ = task(fit, model=to_safetensors(base))
    assert code == 0
    assert "update" not in json.loads(out)
    found, _ = from_safetensors((tmp_path / "out" / "update.safetensors").read_bytes())
    assert list(found) == ["w", "n", "s"]
    assert [each.dtype.name for each in found.values()] == ["float64", "int64", "float64"]
    np.testing.assert_array_equal(found["w"], np.arange(6000).reshape(100, 60) * 0.5)
    assert (found["n"].tolist(), found["s"].item()) == ([2, 3], 0.5)


def every_dtype() -> Tensors:
    """A tensor of each dtype of a model, with its extremes; one without elements and one of many dimensions."""
    model: Tensors = {"rank": np.ones((1,) * 32, np.float32), "none": np.empty((2, 0, 3), np.float32)}
    for name, dtype in DTYPES.items():
        least, most = bounds(dtype)
        model[name] = np.array([least, most, 1, 0], object).astype(dtype)
        model[f"{name}.scalar"] = model[name][1].reshape(())
    model["F32"][2] = 0.1
    return model


@pytest.mark.parametrize("filling", [1, 10_000])
def test_every_model_comes_back_as_it_was(task: Task, tmp_path: Path, filling: int) -> None:
    """Inline and in a file, whatever its dtypes: as the coordinator reads it, it is the base model bit for bit."""
    model = {**every_dtype(), "filling": np.zeros(filling, np.float32)}
    code, out, err = task(lambda model, *_: Update(model, 3), model=to_safetensors(model))
    assert code == 0, err
    base = specs_of(model)
    if filling == 1:
        update = from_json(json.loads(out)["update"], base)
    else:
        update = from_safetensors((tmp_path / "out" / "update.safetensors").read_bytes())[0]
    check_ranges(update, base)
    returned = to_base_dtypes(update, base)
    assert specs_of(returned) == base
    for name, array in model.items():
        assert returned[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(("size", "saves"), [(256, 0), (257, 1)])
def test_a_task_crosses_into_the_machine_a_few_times(
    task: Task, monkeypatch: pytest.MonkeyPatch, size: int, saves: int
) -> None:
    """What is there; what is read at the end; the update."""
    tapes: list[str] = []
    do = StepMachine.run

    def run(machine: StepMachine, tape: str) -> str:
        tapes.append(tape)
        return do(machine, tape)

    def fit(model: Any, data: Data, *_: Any) -> Update:
        metrics = {"loss": data.x.mean(), "accuracy": (data.y == 1).mean(), "count": 2}
        return Update({"w": model["w"] + 1, "b": model["b"] * 2}, 2, metrics=metrics)

    monkeypatch.setattr(StepMachine, "run", run)
    code, out, err = task(fit, model={"w": [0.5] * (size - 1), "b": 1.0})
    assert code == 0, err
    document = json.loads(out)
    assert document["metrics"] == {"loss": pytest.approx(0.25), "accuracy": 0.5, "count": 2}
    assert ("update" not in document) == bool(saves)
    assert len(tapes) == 3
    assert sum('"save"' in tape for tape in tapes) == saves


def test_what_a_program_has_of_each_dtype(task: Task) -> None:
    def fit(model: Any, *_: Any) -> Update:
        dtypes = {name: model[name].dtype for name in DTYPES}
        assert dtypes == {
            "F64": "float64",
            **dict.fromkeys(("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"), "float32"),
            **dict.fromkeys(("I64", "I32", "I16", "I8", "U32", "U16"), "int64"),
            "U64": "uint64",
            "U8": "uint8",
            "BOOL": "bool",
        }
        assert (model["F16"] * 2).tolist()[1] == 131008.0
        assert (model["I8"] + 1).tolist()[1] == 128
        assert model["U64"].tolist() == [0, 2**64 - 1, 1, 0]
        assert type(model["I32.scalar"].item()) is int
        assert range(model["U8.scalar"].item())[-1] == 254
        with pytest.raises(TensorError, match=r"uint64 is only carried.*astype\('int64'\)"):
            model["U64"] + 1
        with pytest.raises(TensorError, match="does not fit int64"):
            model["U64"].astype("int64").tolist()
        small = model["U64"].astype("float64").clip(0, 7).astype("int64")
        update = dict(model)
        update["U64"] = small + 1
        update["I8"] = model["I8"] * 0.25
        update["BOOL"] = ~model["BOOL"]
        update["U8"] = model["BOOL"]
        update["U64.scalar"] = 2**63
        update["F64.scalar"] = 0.1
        return Update(update, 3)

    code, out, err = task(fit, model=to_safetensors(every_dtype()))
    assert code == 0, err
    update = json.loads(out)["update"]
    assert update["U64"] == [1, 8, 2, 1]
    assert update["I8"] == [-32.0, 31.75, 0.25, 0.0]  # rounding is the strategy's
    assert update["BOOL"] == [True, False, False, True]
    assert update["U8"] == [0, 1, 1, 0]
    assert (update["U64.scalar"], update["F64.scalar"]) == (2**63, 0.1)


def test_an_update_is_not_written_through_a_link(task: Task, tmp_path: Path) -> None:
    """A program can leave one in its folder before the host writes."""
    target = tmp_path / "secret"
    target.write_text("kept")
    (tmp_path / "out" / "update.safetensors").symlink_to(target)
    code, out, err = task(lambda *_: Update({"w": pt.zeros(5000)}, 1), model={})
    assert (code, out) == (1, "")
    assert "save: " in err
    assert target.read_text() == "kept"


def test_an_evaluation(task: Task) -> None:
    code, out, _ = task(lambda *_: Evaluation(2, {"accuracy": pt.ones(()) * 0.5}), mode="evaluate")
    assert code == 0
    assert json.loads(out)["metrics"] == {"accuracy": 0.5}
    assert "update" not in json.loads(out)


def updated(model: Any = None, num_samples: Any = 1, metrics: Any = None) -> Callable[..., Any]:
    return lambda *_: Update(model or {"w": [1, 2], "b": 0.0}, num_samples, metrics or {})


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (updated({"w": [1, 2]}), "the update does not have the base model's names: it lacks b"),
        (updated({"w": [1, 2], "b": 0, "c": 1}), "it has c beside it"),
        (updated({"w": [1, 2, 3], "b": 0}), r"the update's 'w' has shape \[3\], the base model's \[2\]"),
        (updated({"w": [[1], [2, 3]], "b": 0}), "the lists are not of one length"),
        (updated({"w": "no", "b": 0}), "str is not a number or a list of them"),
        (updated({"w": [1, float("nan")], "b": 0}), "the update's 'w' has .*diverged"),
        (updated({"w": [1, 2], "b": float("inf")}), "the update's 'b' has .*diverged"),
        (updated([1, 2]), "model is a list; it is a dict by name"),
        (updated(num_samples=0), "num_samples is 0; it is an integer of 1 or more"),
        (updated(num_samples=True), "num_samples is True"),
        (updated(num_samples=2.0), "num_samples is 2.0"),
        (updated(metrics={"loss": float("nan")}), "metrics: 'loss' is nan; a metric is one finite number: training diverged"),
        (updated(metrics={"loss": "low"}), "metrics: 'loss' is text; a metric is one finite number"),
        (updated(metrics={"loss": [1.0]}), "metrics: 'loss' is a list"),
        (updated(metrics={"loss": True}), "metrics: 'loss' is true or false"),
        (updated(metrics={"loss": None}), "metrics: 'loss' is null"),
        (updated(metrics={"loss": 10**400}), "metrics: 'loss' is beyond the range of float64"),
        (lambda *_: Update({"w": [1, 2], "b": 0}, 1, {"loss": pt.zeros(3)}), "metrics: 'loss' is not one number"),
        (updated(metrics=[1]), "metrics is a list; it is a dict by name"),
        (lambda *_: None, "is marked with @train: it returns an Update, not NoneType"),
        (lambda model, *_: model, r"it returns an Update, not the model: return Update\(model, len\(data\), metrics\)"),
        (lambda *_: ([], 3, {}), r"not tuple: return Update\(model, len\(data\), metrics\)"),
        (lambda *_: Evaluation(1), "it returns an Update, not Evaluation"),
        (lambda m, d, h, c: d.z, "the data has no column 'z' of numbers; there are: x, y, ok"),
        (lambda m, d, h, c: list(d), r"the data is columns, not rows: data\.x and data\['x'\]"),
        (lambda m, d, h, c: h["rate"], r"no hyperparameter 'rate'; the experiment sets \w+.*hyperparams\.get\('rate', …\)"),
        (lambda m, *_: m(1), r"the model is a dict of arrays: write net\.apply\(model, x\) for model\(x\)"),
        (lambda m, *_: m.to("cpu"), "the model is a dict of arrays by name and has no 'to'"),
        (lambda *_: 1 / 0, "test_program.py:.*ZeroDivisionError: division by zero"),
        (lambda *_: exit(0), "SystemExit: 0"),
        (lambda m, d, h, c: m["w"][pt.array([9])].tolist(), "TensorError: take: .*outside 2 rows"),
        (None, "this program has no function for 'train': mark one with @train"),
    ],
)  # fmt: skip
def test_what_is_not_right(task: Task, function: Any, text: str, tmp_path: Path) -> None:
    """Exit code 1, nothing given back, and a last line that says it all."""
    code, out, err = task(function)
    assert (code, out) == (1, "")
    assert re.search(text, err.splitlines()[-1]), err
    assert list((tmp_path / "out").iterdir()) == []
    assert "command.py" not in err


def _returns_nothing(*_: Any) -> None:
    pass


@functools.wraps(_returns_nothing)
def _decorated(*given: Any) -> Any:
    return _returns_nothing(*given)


def _has_no_samples(*_: Any) -> Update:
    return Update({"w": [1, 2], "b": 0.0}, 0)


def _line_of(function: Any) -> int:
    return int(function.__code__.co_firstlineno)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (_returns_nothing, "TypeError: _returns_nothing is marked with @train"),
        (_decorated, "TypeError: _returns_nothing is marked with @train"),
        (_has_no_samples, "ValueError: num_samples is 0"),
        (lambda *_: Update([1], 1), "TypeError: model is a list"),  # type: ignore[arg-type]
    ],
)
def test_a_result_that_is_not_right_is_said_with_where_its_function_is(
    task: Task, function: Any, text: str
) -> None:
    _, _, err = task(function)
    line = _line_of(inspect.unwrap(function))
    assert err.splitlines()[-1].startswith(f"test_program.py:{line}: {text}")


def test_an_evaluation_that_is_not_right_is_said_with_where_its_function_is(task: Task) -> None:
    function: Any = lambda *_: Evaluation(1)  # noqa: E731 - on a line of its own
    _, _, err = task(function, mode="evaluate")
    assert (
        err.splitlines()[-1]
        == f"test_program.py:{_line_of(function)}: ValueError: metrics: an evaluation has one or more"
    )


def test_what_is_wrong_before_a_function_is_called_names_no_line(task: Task) -> None:
    _, _, err = task(_returns_nothing, model=[1])
    assert re.match(r"\w+: the model cannot be read", err.splitlines()[-1]), err


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"w": [[1], [2, 3]]}, "'w' is not numbers of one shape"),
        ({"w": "text"}, "'w' is not numbers of one shape"),
        ({"w": 10**400}, "the model cannot be read"),
        ([1], "the model cannot be read"),
        (b"short", "the model cannot be read"),
        (b"\xff" * 8 + b"{}", "the model cannot be read"),
        (to_safetensors({"w": np.zeros(3, "float32")})[:-1], "the model cannot be read"),
        (to_safetensors({"w": np.zeros(3, "float16")}).replace(b"F16", b"F17"), "the model's tensor 'w' is F17; programs take F64"),
        (to_safetensors({"w": np.zeros(3, "float32")}).replace(b"[0,12]", b"[9,12]"), "the model cannot be read"),
        (to_safetensors({"w": np.zeros(3, "float32")}).replace(b"[3]", b"[9]"), "the model cannot be read"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_read(task: Task, model: Any, text: str) -> None:
    code, out, err = task(updated(), model=model)
    assert (code, out) == (1, "")
    assert text in err.splitlines()[-1]


def test_data_is_the_same_everywhere(machine: StepMachine, tmp_path: Path) -> None:
    """In a test, from a file by NumPy, and from a file by plain Python."""
    samples: list[dict[str, Any]] = [
        {"f": 0.5, "i": 1, "b": True, "mixed": 1, "bools": True, "none": None, "s": "x", "ragged": [1], "e": [], "m": [[1, 2], [3, 4]], "huge": 2**70, "u": 2**63},
        {"f": 1, "i": -2, "b": False, "mixed": 0.5, "bools": 2, "none": 1, "s": "y", "ragged": [1, 2], "e": [], "m": [[5, 6], [7, 8]], "huge": 1, "u": 2**63},
    ]  # fmt: skip
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "dataset.json").write_text(json.dumps({"data": samples}))
    expected = {
        "f": ("float32", (2,)),
        "i": ("int64", (2,)),
        "b": ("bool", (2,)),
        "mixed": ("float32", (2,)),
        "bools": ("int64", (2,)),
        "e": ("float32", (2, 0)),
        "m": ("int64", (2, 2, 2)),
    }
    files: Files
    for files in (TaskFiles(tmp_path), ArrayFiles(tmp_path)):
        assert files.contents("data") == expected
    data = Data(samples)
    assert data.columns == tuple(expected)
    assert len(data) == 2
    assert data.m.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert data.bools.tolist() == [1, 2]
    assert data.m is data["m"]
    with pytest.raises(TensorError, match="no column 'ragged' of numbers"):
        _ = data.ragged


def test_no_data(machine: StepMachine, tmp_path: Path) -> None:
    assert len(Data([])) == 0
    for files in (TaskFiles(tmp_path), ArrayFiles(tmp_path)):
        assert files.contents("data") == {}
        assert files.contents("model") == {}
        with pytest.raises(TensorError, match="there is no source 'other'"):
            files.contents("other")


def test_one_function_a_mode() -> None:
    registry.reset()

    def first(model: Any, data: Any, hyperparams: Any, ctx: Any) -> None: ...

    def second(model: Any, data: Any, hyperparams: Any, ctx: Any) -> None: ...

    assert registry.train(registry.train(first)) is first
    registry.evaluate(second)
    with pytest.raises(ValueError, match="two functions are marked with @train: first and second"):
        registry.train(second)


def test_data_of_numpy_in_a_test(machine: StepMachine) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    data = Data([{"x": row, "y": label} for row, label in zip(x, np.array([1, 0, 1]), strict=True)])
    assert data.columns == ("x", "y")
    assert (data.x.dtype, data.x.tolist(), data.y.dtype) == ("float32", x.tolist(), "int64")
