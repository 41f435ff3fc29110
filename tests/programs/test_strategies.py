"""The included network under each strategy, in the sandbox and with device state, against NumPy."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.fl.tensors import from_safetensors, to_safetensors
from propeller.sdk import Experiment
from propeller.simulation import simulate
from propeller.wasm.program_run import Limits, ProgramRun, StateFolder
from propeller.wasm.sandbox import Sandbox
from support.guests import add
from support.network import Model, descend, digits, network, samples
from support.python_programs import COMPILED, SOURCES, built, together

pytestmark = pytest.mark.timeout(180)

LR, BATCH, COUNT = 0.1, 50, 100
STEPS = COUNT // BATCH
GIVEN = {"lr": LR, "batch_size": BATCH, "shuffle": False}
X, Y = np.round(digits()[0][:COUNT], 4), digits()[1][:COUNT]


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with Sandbox(tmp_path / "sandbox", cache=COMPILED) as opened:
        yield opened


class Device:
    """A device that does the tasks of an experiment in a sandbox, and keeps what they leave."""

    def __init__(self, sandbox: Sandbox, folder: Path, program: Path, **given: Any) -> None:
        self.sandbox, self.folder, self.program, self.given = sandbox, folder, program, given
        self.number = 0
        self.state: Path | None = None

    async def run(
        self, strategy: dict[str, Any], base: Model, *, mode: str = "train", server: Model | None = None
    ) -> tuple[dict[str, Any], Model]:
        """One task; its document, and the tensors that it gives back."""
        self.number += 1
        env = {
            "ROUND_ID": f"e.{self.number}",
            "PROPLET_ID": "p",
            "MODEL_URI": "m",
            "FL_MODE": mode,
            "EXPERIMENT_ID": "e",
            "FL_ROUND": str(self.number),
            "FL_SEED": str(2**63 - 1),
            "FL_STRATEGY": json.dumps(strategy),
        }
        files = {
            "model.safetensors": to_safetensors(base),
            "dataset.json": json.dumps({"data": samples(X, Y)}).encode(),
            "hyperparams.json": json.dumps(self.given).encode(),
        }
        if server is not None:
            files["strategy.safetensors"] = to_safetensors(server)
        target = self.folder / f"state-{self.number}" if mode == "train" else None
        run = ProgramRun(
            f"t{self.number}",
            await add(self.sandbox, self.program.read_bytes()),
            env=env,
            files=files,
            limits=Limits(wall_time_s=60),
            state=StateFolder(self.state, target),
        )
        log: list[str] = []
        outcome = await self.sandbox.run(run, log.append)
        assert outcome.error is None, (outcome.error, log)
        if target is not None and target.exists():
            self.state = target
        document = json.loads(outcome.stdout)
        if "update" in document:
            return document, {name: np.array(value) for name, value in document["update"].items()}
        packed = outcome.out_files.get("update.safetensors")
        return document, {} if packed is None else from_safetensors(packed)[0]


@pytest.fixture
def device(sandbox: Sandbox, tmp_path: Path) -> Device:
    return Device(sandbox, tmp_path, built(SOURCES / "mlp.py"), **GIVEN)


def expected(base: Model, extra: Any = lambda _name, _model: 0.0) -> Model:
    return descend(base, X, Y, LR, BATCH, extra)


def assert_close(found: Model, wanted: Model, tolerance: float = 1e-5) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert np.abs(found[name] - value).max() < tolerance, name


async def test_fedprox(device: Device) -> None:
    base = network(64, 16)
    document, update = await device.run({"name": "fedprox", "mu": 2.0}, base)
    assert_close(update, expected(base, lambda name, model: 2.0 * (model[name] - base[name])))
    assert document["steps"] == STEPS
    assert device.state is None  # it keeps nothing


async def test_scaffold_over_two_rounds(device: Device) -> None:
    base = network(64, 16)
    strategy = {"name": "scaffold", "control": True, "tensors": True}
    _, update = await device.run(strategy, base)
    y = expected(base)
    first = {name: (base[name] - y[name]) / (STEPS * LR) for name in base}
    assert_close(update, y | {f"@control/{name}": value for name, value in first.items()}, 1e-4)
    base = {name: value + 0.01 for name, value in y.items()}
    c = {name: 0.5 * value for name, value in first.items()}
    _, update = await device.run(
        strategy, base, server={f"control/{name}": value for name, value in c.items()}
    )
    y = expected(base, lambda name, _model: c[name] - first[name])
    second = {name: first[name] - c[name] + (base[name] - y[name]) / (STEPS * LR) for name in base}
    assert_close(update, y | {f"@control/{name}": second[name] - first[name] for name in base}, 1e-4)


def test_scaffold_in_a_simulation() -> None:
    # With one step of all samples a round, the control variates cancel out in the mean.
    made = {}
    for name in ("fedavg", "scaffold"):
        given = Experiment(
            program="mlp",
            rounds=3,
            strategy=name,
            model={key: value.astype(np.float32) for key, value in network(64, 16).items()},
            hyperparams={"lr": LR, "batch_size": COUNT},
        )
        partition = {"kind": "shards", "per_client": 1}
        made[name] = simulate(
            given, data={"x": X, "y": Y}, clients=4, partition=partition, program=built(SOURCES / "mlp.py")
        )
        assert made[name].state == "completed", made[name].reason
    assert_close(made["scaffold"].model(), made["fedavg"].model())


async def test_ditto_and_its_evaluation(device: Device) -> None:
    base, strategy = network(64, 16), {"name": "ditto", "lambda": 1.5}
    document, update = await device.run(strategy, base)
    assert_close(update, expected(base))
    names = ("loss", "accuracy", "loss_before")
    assert set(document["metrics"]) == {*names, *(f"personal_{name}" for name in names)}
    later = {name: value * 0.9 for name, value in base.items()}
    trained, _ = await device.run(strategy, later)
    evaluated, _ = await device.run(strategy, base, mode="evaluate")
    personal = {name: trained["metrics"][f"personal_{name}"] for name in ("loss", "accuracy")}
    assert evaluated["metrics"] == pytest.approx(personal)
    assert "update" not in evaluated
    v = expected(base, lambda name, model: 1.5 * (model[name] - base[name]))
    v = expected(v, lambda name, model: 1.5 * (model[name] - later[name]))
    hidden = np.maximum(X @ v["w1"] + v["b1"], 0)
    assert personal["accuracy"] == pytest.approx(
        ((hidden @ v["w2"] + v["b2"]).argmax(1) == Y).mean(), abs=0.011
    )


async def test_personal_parts(device: Device) -> None:
    base, strategy = network(64, 16), {"name": "personal", "personal": ["?2"]}
    _, update = await device.run(strategy, base)
    first = expected(base)
    assert_close(update, {name: first[name] for name in ("w1", "b1")})
    later = {name: value + 0.05 for name, value in base.items()}
    _, update = await device.run(strategy, later)
    second = expected({**later, "w2": first["w2"], "b2": first["b2"]})
    assert_close(update, {name: second[name] for name in ("w1", "b1")})


async def test_without_the_hosts_tensors(sandbox: Sandbox, tmp_path: Path) -> None:
    """A plain program reads and writes its state itself: SCAFFOLD's second round shifts by what the first has kept."""
    device = Device(
        sandbox, tmp_path, built(together(), host_tensors=False), which="softmax", lr=LR, batch_size=COUNT
    )
    base: Model = {"w": np.zeros((64, 10)), "b": np.zeros(10)}
    strategy = {"name": "scaffold", "control": True}
    _, first = await device.run(strategy, base)
    control = {name: first[f"@control/{name}"] for name in base}
    assert_close(control, {name: (base[name] - first[name]) / LR for name in base})
    _, second = await device.run(strategy, base)
    assert_close(
        {name: second[name] for name in base}, {name: first[name] + LR * control[name] for name in base}
    )
