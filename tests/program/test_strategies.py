"""What a training script that calls ``ctx.correct`` does under each strategy, held against the same steps in NumPy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from propeller.fl.tensors import to_safetensors
from propeller.program import Context, Data, Evaluation, Update, command, registry
from propeller.program import tensors as pt
from propeller.program.correction import Correction
from propeller.tensors import session
from propeller.tensors.files import TaskFiles
from propeller.tensors.numpy_machine import ArrayFiles, NumpyMachine
from propeller.tensors.python_machine import PythonMachine

Floats = NDArray[np.float64]
Model = dict[str, Any]

SOURCE = np.random.default_rng(5)
X, Y = SOURCE.normal(size=(12, 3)).astype("float32").astype("float64"), np.arange(12.0)
BASE: Model = {"w": np.array([0.5, -1.0, 2.0]), "b": np.array(0.25)}
LR, STEPS = 0.05, 3


def loss(model: Any, x: Any, y: Any) -> Any:
    return pt.square(x @ model["w"] + model["b"] - y).mean()


@pt.jit
def step(model: Any, x: Any, y: Any, lr: float, correct: Any) -> None:
    slope = correct(pt.grad(loss)(model, x, y), model)
    for name in model:
        model[name] -= lr * slope[name]


def fit(model: Any, data: Data, hyperparams: Any, ctx: Context) -> Update:
    for _ in range(STEPS):
        step(model, data.x, data.y, LR, ctx.correct)
    return Update(model, len(data), {"loss": loss(model, data.x, data.y)}, steps=STEPS, lr=LR)


def score(model: Any, data: Data, hyperparams: Any, ctx: Context) -> Evaluation:
    return Evaluation(len(data), {"loss": loss(model, data.x, data.y)})


def gradients(model: Model) -> Model:
    error = X @ model["w"] + model["b"] - Y
    return {"w": 2 * X.T @ error / len(X), "b": np.array(2 * error.mean())}


def descend(model: Model, extra: Callable[[str, Model], Any] = lambda name, model: 0.0) -> Model:
    """The same steps in NumPy; ``extra`` is what is added to a tensor's gradient."""
    model = {name: value.copy() for name, value in model.items()}
    for _ in range(STEPS):
        slope = gradients(model)
        added = {name: extra(name, model) for name in model}
        for name in model:
            model[name] = model[name] - LR * (slope[name] + added[name])
    return model


def mean_square(model: Model) -> float:
    return float(np.mean((X @ model["w"] + model["b"] - Y) ** 2))


def assert_close(found: dict[str, Any], expected: Model) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-9, err_msg=name)


class Device:
    """A device whose tasks run one after another, with its state between them."""

    def __init__(self, root: Path, machine: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.root, self.machine, self.monkeypatch, self.capsys = root, machine, monkeypatch, capsys
        for name in ("in", "out", "state"):
            (root / name).mkdir()
        samples = [{"x": x.tolist(), "y": y} for x, y in zip(X, Y, strict=True)]
        (root / "in" / "dataset.json").write_text(json.dumps({"data": samples}))
        self.number = 0

    def run(
        self,
        strategy: dict[str, Any],
        base: Model = BASE,
        *,
        mode: str = "train",
        server: Model | None = None,
        train: Any = fit,
        update: str = "",
    ) -> dict[str, Any]:
        """One task; its document."""
        self.number += 1
        (self.root / "in" / "model.safetensors").write_bytes(to_safetensors(base))
        if server is not None:
            (self.root / "in" / "strategy.safetensors").write_bytes(to_safetensors(server))
        registry.reset()
        registry.train(train)
        registry.evaluate(score)
        for key, value in {
            "ROUND_ID": f"r-{self.number}",
            "PROPLET_ID": "p-1",
            "MODEL_URI": "m",
            "FL_MODE": mode,
            "EXPERIMENT_ID": "e-1",
            "FL_ROUND": str(self.number),
            "FL_SEED": "7",
            "FL_STRATEGY": json.dumps(strategy),
            "FL_UPDATE": update,
        }.items():
            self.monkeypatch.setenv(key, value)
        machine, files = self.machine
        session.use(machine(files(self.root)))
        code = command.run(self.root)
        out, err = self.capsys.readouterr()
        self.log: str = err
        if code:
            raise RuntimeError(err.splitlines()[-1])
        document: dict[str, Any] = json.loads(out)
        return document


@pytest.fixture(params=[(NumpyMachine, ArrayFiles), (PythonMachine, TaskFiles)], ids=["numpy", "python"])
def device(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Device:
    return Device(tmp_path, request.param, monkeypatch, capsys)


@pytest.mark.parametrize(
    "strategy",
    [{"name": "fedprox", "mu": 0.1}, {"name": "scaffold", "control": True}, {"name": "ditto", "lambda": 0.5}],
    ids=lambda strategy: str(strategy["name"]),
)
def test_a_program_that_leaves_the_correction_out_is_told(device: Device, strategy: dict[str, Any]) -> None:
    def ignore(model: Any, data: Data, hyperparams: Any, ctx: Context) -> Update:
        return Update(model, len(data), steps=1, lr=LR)

    def penalize(model: Any, data: Data, hyperparams: Any, ctx: Context) -> Update:
        ctx.correct.penalty(model)
        return ignore(model, data, hyperparams, ctx)

    assert device.run(strategy, train=ignore)["corrected"] is False
    assert f"note: {strategy['name']} adds to the gradients" in device.log
    for train in (fit, penalize):
        assert device.run(strategy, train=train)["corrected"] is True
        assert "note: " not in device.log
    assert "corrected" not in device.run({"name": "fedavgm"}, train=ignore)
    assert "note: " not in device.log


def test_without_a_strategy_nothing_is_added(device: Device) -> None:
    document = device.run({})
    assert_close(document["update"], descend(BASE))
    assert (document["steps"], "kind" in document) == (STEPS, False)


def test_fedprox_pulls_towards_the_rounds_model(device: Device) -> None:
    document = device.run({"name": "fedprox", "mu": 0.7})
    assert_close(document["update"], descend(BASE, lambda name, model: 0.7 * (model[name] - BASE[name])))


def test_scaffold_follows_algorithm_1_option_2_over_two_rounds(device: Device) -> None:
    """Karimireddy et al. (2020): y -= lr (g - c_i + c); c_i+ = c_i - c + (x - y) / (K lr); the server gets c_i+ - c_i."""
    strategy = {"name": "scaffold", "control": True, "tensors": True}
    zero = {name: np.zeros_like(value) for name, value in BASE.items()}
    document = device.run(strategy)
    y = descend(BASE)
    first = {name: (BASE[name] - y[name]) / (STEPS * LR) for name in BASE}
    assert_close(document["update"], {**y, **{f"@control/{name}": value for name, value in first.items()}})

    base = {name: value + 0.1 for name, value in y.items()}
    c = {"w": np.array([0.3, 0.1, -0.2]), "b": np.array(-1.5)}
    server = {f"control/{name}": value for name, value in c.items()} | {"m/w": zero["w"]}
    document = device.run(strategy, base, server=server)
    y = descend(base, lambda name, model: c[name] - first[name])
    second = {name: first[name] - c[name] + (base[name] - y[name]) / (STEPS * LR) for name in base}
    sent = {f"@control/{name}": second[name] - first[name] for name in base}
    assert_close(document["update"], {**y, **sent})


def halves(*given: Any) -> Update:
    """What ``fit`` gives, in two bytes a number, which are carried and not computed with."""
    trained = fit(*given)
    model = {name: value.astype("float16") for name, value in trained.model.items()}
    return Update(model, trained.num_samples, steps=STEPS, lr=LR)


@pytest.mark.parametrize("update", ["weights", "delta"])
def test_scaffold_of_a_model_of_halves(device: Device, update: str) -> None:
    """The model's tensors and those that the program gives back are halves; the control variates are not."""
    base = {name: value.astype(np.float16) for name, value in BASE.items()}
    document = device.run(
        {"name": "scaffold", "control": True}, base, train=halves, update=json.dumps({"kind": update})
    )
    y = {name: value.astype(np.float16).astype(np.float64) for name, value in descend(BASE).items()}
    control = {f"@control/{name}": (BASE[name] - y[name]) / (STEPS * LR) for name in BASE}
    sent = y if update == "weights" else {name: y[name] - BASE[name] for name in y}
    assert_close(document["update"], {**sent, **control})


@pytest.mark.parametrize("strategy", [{"personal": ["b"]}, {"name": "ditto", "lambda": 0.5}])
def test_halves_that_the_device_keeps_are_trained_on(device: Device, strategy: dict[str, Any]) -> None:
    base = {name: value.astype(np.float16) for name, value in BASE.items()}
    document = {}
    for _ in range(2):
        document = device.run(strategy, base, train=halves)
    w = descend(BASE)["w"] if "lambda" in strategy else descend({**BASE, "b": descend(BASE)["b"]})["w"]
    np.testing.assert_allclose(document["update"]["w"], w, rtol=2e-3)


def test_scaffold_of_a_delta(device: Device) -> None:
    def delta(model: Any, *rest: Any) -> Update:
        base = {name: value.copy() for name, value in model.items()}
        update = fit(model, *rest)
        return Update(
            {n: model[n] - base[n] for n in model}, update.num_samples, steps=STEPS, lr=LR, kind="delta"
        )

    document = device.run({"name": "scaffold", "control": True}, train=delta)
    change = {name: value - BASE[name] for name, value in descend(BASE).items()}
    control = {f"@control/{name}": -value / (STEPS * LR) for name, value in change.items()}
    assert_close(document["update"], {**change, **control})
    assert document["kind"] == "delta"


def test_the_kind_of_update_that_the_experiment_asks_for_is_made(device: Device) -> None:
    change = {name: value - BASE[name] for name, value in descend(BASE).items()}
    document = device.run({}, update='{"kind": "delta"}')
    assert_close(document["update"], change)
    assert document["kind"] == "delta"
    document = device.run({"personal": ["b"]}, update='{"kind": "delta"}')
    assert_close(document["update"], {"w": change["w"]})

    def delta(model: Any, data: Data, *_: Any) -> Update:
        return Update({name: value * 0 + 0.5 for name, value in model.items()}, len(data), kind="delta")

    document = device.run({}, train=delta, update='{"kind": "weights"}')
    assert_close(document["update"], {name: value + 0.5 for name, value in BASE.items()})
    assert "kind" not in document


def test_a_delta_of_counters_and_flags_has_a_sign(device: Device) -> None:
    base = {"n": np.array([3, 5], "uint8"), "on": np.array([True, False])}

    def train(model: Any, data: Data, *_: Any) -> Update:
        return Update({"n": model["n"] - pt.array([1, 0], "uint8"), "on": pt.array([False, True])}, len(data))

    document = device.run({}, base, train=train, update='{"kind": "delta"}')
    assert document["update"] == {"n": [-1, 0], "on": [-1, 1]}


def test_scaffold_needs_steps_and_learning_rate(device: Device) -> None:
    def train(model: Any, data: Data, *_: Any) -> Update:
        return Update(model, len(data))

    with pytest.raises(
        RuntimeError, match=r"steps and lr: the strategy scaffold needs .* return Update\(…, steps=…, lr=…\)"
    ):
        device.run({"name": "scaffold", "control": True}, train=train)
    assert list((device.root / "state").iterdir()) == []


def test_ditto_trains_a_second_model_that_stays(device: Device) -> None:
    """Li et al. (2021), algorithm 1: v -= lr (grad F(v) + lambda (v - w)) for the round's model w."""
    strategy = {"name": "ditto", "lambda": 0.4}
    document = device.run(strategy)
    assert_close(document["update"], descend(BASE))
    v = descend(BASE, lambda name, model: 0.4 * (model[name] - BASE[name]))
    assert document["metrics"] == pytest.approx(
        {"loss": mean_square(descend(BASE)), "personal_loss": mean_square(v)}, rel=1e-5
    )
    base = {name: value - 0.3 for name, value in BASE.items()}
    document = device.run(strategy, base)
    v = descend(v, lambda name, model: 0.4 * (model[name] - base[name]))
    assert document["metrics"]["personal_loss"] == pytest.approx(mean_square(v), rel=1e-5)
    evaluated = device.run(strategy, base, mode="evaluate")
    assert evaluated["metrics"] == pytest.approx({"loss": mean_square(v)}, rel=1e-5)
    assert "update" not in evaluated


def test_personal_tensors_stay_on_the_device(device: Device) -> None:
    strategy = {"name": "fedbn", "personal": ["b*"], "mu": 0.7}
    first = descend(BASE, lambda name, model: 0.7 * (model["w"] - BASE["w"]) if name == "w" else 0.0)
    assert_close(device.run(strategy)["update"], {"w": first["w"]})
    base = {"w": first["w"] + 0.1, "b": np.array(99.0)}
    used = {"w": base["w"], "b": first["b"]}
    evaluated = device.run(strategy, base, mode="evaluate")
    assert evaluated["metrics"] == pytest.approx({"loss": mean_square(used)}, rel=1e-5)
    second = descend(used, lambda name, model: 0.7 * (model["w"] - base["w"]) if name == "w" else 0.0)
    assert_close(device.run(strategy, base)["update"], {"w": second["w"]})


def test_only_what_is_trained_is_sent(device: Device) -> None:
    strategy = {"name": "fedprox", "trained": ["w"], "mu": 0.7}
    pulled = descend(BASE, lambda name, model: 0.7 * (model["w"] - BASE["w"]) if name == "w" else 0.0)
    assert_close(device.run(strategy)["update"], {"w": pulled["w"]})
    delta = device.run({"trained": ["w"]}, update='{"kind": "delta"}')
    assert_close(delta["update"], {"w": descend(BASE)["w"] - BASE["w"]})


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        ({"mu": -1}, "strategy.mu is -1; it is a number of 0 or more"),
        ({"lambda": "much"}, "strategy.lambda is 'much'"),
        ({"mu": True}, "strategy.mu is True"),
        ({"personal": "b"}, "strategy.personal is a list of patterns"),
        ({"personal": ["c*"]}, r"strategy.personal: 'c\*' matches no tensor of the model; there are w, b"),
        ({"personal": ["*"]}, "personal and trained leave nothing to share of w, b"),
        (
            {"free": ["w"]},
            r"strategy.free: 'w' is float\d+ of shape \[\d+\] in the model; what has any length is a vector",
        ),
        ({"trained": ["c"]}, "strategy.trained: 'c' matches no tensor of the model; there are w, b"),
        ({"trained": ["b"], "personal": ["b"]}, "personal and trained leave nothing to share"),
    ],
)
def test_values_that_are_not_right_are_named(device: Device, strategy: dict[str, Any], text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        device.run(strategy)


def test_a_failed_training_keeps_nothing(device: Device) -> None:
    def diverging(model: Any, data: Data, hyperparams: Any, ctx: Context) -> Update:
        ctx.state["n"] = 1
        return Update({name: value / 0.0 for name, value in model.items()}, len(data))

    with pytest.raises(RuntimeError, match="not finite: training diverged"):
        device.run({}, train=diverging)
    assert list((device.root / "state").iterdir()) == []


def test_the_penalty_has_the_gradient_that_is_added(machine: Any) -> None:
    model = {name: pt.array(value.tolist(), "float64") for name, value in BASE.items()}
    correct = Correction(
        0.7,
        {name: value + 0.5 for name, value in model.items()},
        {"w": pt.array([1.0, -2.0, 0.5], "float64")},
    )
    x, y = pt.array(X.tolist(), "float64"), pt.array(Y.tolist(), "float64")
    added = correct(pt.grad(loss)(model, x, y), model)
    whole = pt.grad(lambda model: loss(model, x, y) + correct.penalty(model))(model)
    for name in model:
        np.testing.assert_allclose(added[name].tolist(), whole[name].tolist(), rtol=1e-12)
    assert Correction().penalty(model) == 0.0
    with pytest.raises(pt.TensorError, match=r"correct: 'v' is no tensor of the model: .* they are w, b"):
        correct({"v": x}, {"v": x})
    with pytest.raises(pt.TensorError, match="the weights lack 'w'"):
        correct({"w": model["w"]}, {})


def test_a_traced_step_is_recorded_once_for_all_rounds(machine: Any) -> None:
    """The correction is passed like the model: other arrays in it need no other recording."""
    recorded = 0

    @pt.jit
    def once(model: Any, correct: Any) -> None:
        nonlocal recorded
        recorded += 1
        slope = correct({"w": model["w"] * 0}, model)
        model["w"] -= slope["w"]

    for pull, anchor in ((0.5, 2.0), (0.25, 6.0)):
        model = {"w": pt.array([4.0])}
        once(model, Correction(pull, {"w": pt.array([anchor])}))
        assert model["w"].tolist() == [4.0 - pull * (4.0 - anchor)]
    assert recorded == 1
