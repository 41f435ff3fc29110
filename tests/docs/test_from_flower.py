"""docs/from-flower.md: what it shows beside each other does the same."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from propeller.cli.experiment_file import ExperimentFile
from propeller.cli.trial import TrialInputs
from propeller.cli.try_program import run_try
from propeller.wasm.program_run import Limits

PAGE = (Path(__file__).parents[2] / "docs" / "from-flower.md").read_text()
CLIENT, PROGRAM, TORCH, NETWORK, WEIGHTS, LOGISTIC, FITTED = re.findall(
    r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
)
[FILE] = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def module(name: str, **contents: object) -> ModuleType:
    """A stand-in for a package that is not installed here."""
    made = ModuleType(name)
    vars(made).update(contents)
    return made


def test_both_train_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "flwr", module("flwr"))
    monkeypatch.setitem(sys.modules, "flwr.client", module("flwr.client", NumPyClient=object))
    names: dict[str, Any] = {}
    exec(CLIENT, names)
    random = np.random.default_rng(0)
    x = random.normal(size=(20, 2))
    y = x @ [2.0, -1.0] + 1
    hyperparams = {"epochs": 5, "lr": 0.1}
    client = names["Client"](x, y)
    weights, samples, metrics = client.fit([np.zeros(2), 0.0], hyperparams)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script, model, data = (tmp_path / name for name in ("train.py", "model.json", "data.json"))
    script.write_text(PROGRAM)
    rows = [{"x": row.tolist(), "y": float(label)} for row, label in zip(x, y, strict=True)]
    data.write_text(json.dumps({"data": rows}))
    for mode, start in (("train", [np.zeros(2), np.float64(0)]), ("evaluate", weights)):
        model.write_text(json.dumps({"w": start[0].tolist(), "b": float(start[1])}))
        assert run_try(script, TrialInputs(model, data, hyperparams, mode), Limits()) == 0
        found = json.loads(capfd.readouterr().out)
        assert found["num_samples"] == samples
        assert found["metrics"] == pytest.approx(metrics, rel=1e-5)
        if mode == "train":
            assert found["update"]["w"] == pytest.approx(weights[0], rel=1e-5)
            assert found["update"]["b"] == pytest.approx(weights[1], rel=1e-5)
    assert client.evaluate(weights, {}) == (pytest.approx(metrics["loss"]), samples, {})


def test_the_experiment_is_one(tmp_path: Path) -> None:
    (tmp_path / "experiment.toml").write_text(FILE)
    assert ExperimentFile.load(tmp_path / "experiment.toml").notes == []


def forward(model: dict[str, Any], x: Any) -> Any:
    """What the network of PyTorch computes."""
    hidden = np.maximum(x @ model["fc1.weight"].T + model["fc1.bias"], 0)
    return hidden, hidden @ model["fc2.weight"].T + model["fc2.bias"]


def stepped(model: dict[str, Any], x: Any, y: Any, lr: float) -> dict[str, Any]:
    """A step of SGD by the cross-entropy, with the gradient by hand."""
    hidden, logits = forward(model, x)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = (chances / chances.sum(axis=1, keepdims=True) - np.eye(logits.shape[1])[y]) / len(y)
    behind = (error @ model["fc2.weight"]) * (hidden > 0)
    slope = {
        "fc1.weight": behind.T @ x, "fc1.bias": behind.sum(axis=0),
        "fc2.weight": error.T @ hidden, "fc2.bias": error.sum(axis=0),
    }  # fmt: skip
    return {name: model[name] - lr * slope[name] for name in model}


def test_the_network_trains_as_that_of_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """PyTorch is not installed here: its step is done by hand, on all samples at once, whose order then says nothing."""
    compile(TORCH, "net.py", "exec")
    random = np.random.default_rng(2)
    x = random.normal(size=(30, 3))
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
    weights: dict[str, Any] = {}
    for name, ends, begins in (("fc1", 8, 3), ("fc2", 3, 8)):
        weights |= {f"{name}.weight": random.normal(size=(ends, begins)) / 2, f"{name}.bias": np.zeros(ends)}
    expected = weights
    for _ in range(40):
        expected = stepped(expected, x, y, 0.5)
    right = (forward(expected, x)[1].argmax(axis=1) == y).mean()
    assert right > 0.8 > (forward(weights, x)[1].argmax(axis=1) == y).mean()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script, model, data = (tmp_path / name for name in ("train.py", "model.npz", "data.npz"))
    script.write_text(NETWORK)
    np.savez(model, **weights)
    np.savez(data, x=x, y=y)
    asked = TrialInputs(model, data, {"epochs": 40, "lr": 0.5, "batch_size": 30}, "train")
    assert run_try(script, asked, Limits()) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["steps"] == 40
    for name, tensor in expected.items():
        np.testing.assert_allclose(found["update"][name], tensor, rtol=1e-3, atol=1e-4)
    np.savez(model, **expected)
    assert run_try(script, TrialInputs(model, data, {}, "evaluate"), Limits()) == 0
    assert json.loads(capfd.readouterr().out)["metrics"]["accuracy"] == pytest.approx(right)
    small = TrialInputs(model, data, {"epochs": 2, "lr": 0.1, "batch_size": 8}, "train")
    assert run_try(script, small, Limits()) == 0
    assert json.loads(capfd.readouterr().out)["steps"] == 8  # 8 + 8 + 8 + 6 samples, twice


def test_weights_go_to_a_stack_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = module("torch", nn=SimpleNamespace(Module=object), from_numpy=lambda array: array)
    monkeypatch.setitem(sys.modules, "torch", torch)
    names: dict[str, Any] = {}
    exec(WEIGHTS, names)
    stored: dict[str, Any] = {}
    loaded: dict[str, Any] = {}
    weight = np.ones((2, 3), np.float32)
    net = SimpleNamespace(
        state_dict=lambda: {"fc.weight": SimpleNamespace(numpy=lambda: weight)}, load_state_dict=loaded.update
    )
    stack = SimpleNamespace(put_model=stored.update, model=lambda: stored)
    names["to_stack"](stack, net)
    names["from_stack"](stack, net)
    assert loaded["fc.weight"] is weight


def test_the_program_learns_what_scikit_learn_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(80, 2))
    y = (x @ [2.0, -1.0] + 0.5 + random.normal(size=80) > 0).astype(int)
    fitted = LogisticRegression(C=0.5, tol=1e-8).fit(x, y)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script, model, data = (tmp_path / name for name in ("train.py", "model.json", "data.json"))
    script.write_text(LOGISTIC)
    rows = [{"x": row.tolist(), "y": int(label)} for row, label in zip(x, y, strict=True)]
    data.write_text(json.dumps({"data": rows}))
    model.write_text('{"coef": [0, 0], "intercept": 0}')
    hyperparams = {"epochs": 400, "lr": 1.0, "l2": 1 / (0.5 * 80)}
    assert run_try(script, TrialInputs(model, data, hyperparams, "train"), Limits()) == 0
    learned = json.loads(capfd.readouterr().out)["update"]
    assert learned["coef"] == pytest.approx(fitted.coef_[0], rel=1e-3)
    assert learned["intercept"] == pytest.approx(fitted.intercept_[0], rel=1e-3)

    model.write_text(json.dumps(learned))
    assert run_try(script, TrialInputs(model, data, hyperparams, "evaluate"), Limits()) == 0
    found = json.loads(capfd.readouterr().out)["metrics"]
    assert found["accuracy"] == pytest.approx(fitted.score(x, y), abs=0.015)

    names: dict[str, Any] = {}
    exec(FITTED, names)
    stored: dict[str, Any] = {}
    stack = SimpleNamespace(put_model=stored.update, model=lambda: stored)
    names["to_stack"](stack, fitted)
    again = LogisticRegression().fit(x[:10], y[:10])
    names["from_stack"](stack, again)
    assert (again.predict(x) == fitted.predict(x)).all()
