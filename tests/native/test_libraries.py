"""The libraries that native programs are for, each in the sandbox: it is imported there, computes with its threads, and gives back what it has.

scikit-learn is one of the tests' own dependencies. PyTorch, XGBoost and JAX take hundreds of megabytes, so continuous integration has none of them: a
test of one of these is made only where the interpreter has it. To run all: ``PROPELLER_TEST_NATIVE_PYTHON=/path/to/python``, one that has them.
"""

import json
from pathlib import Path

import pytest

from propeller.wasm.program_run import MIB, Limits
from propeller.wasm.sandbox import Sandbox
from support.native_programs import JAX, interpreter, run_native, training

SCIKIT_LEARN = """
import numpy as np
from sklearn.linear_model import LinearRegression
x = np.random.default_rng(0).normal(size=(200, 2))
made = LinearRegression(n_jobs=2).fit(x, x @ [2.0, -1.0])
return Update({"w": made.coef_}, 200)
"""

PYTORCH = """
import torch
torch.manual_seed(0)
x = torch.randn(200, 2)
y = x @ torch.tensor([2.0, -1.0])
w = torch.tensor(model["w"], dtype=torch.float32, requires_grad=True)
optimizer = torch.optim.SGD([w], lr=0.2)
for _ in range(200):
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(x @ w, y)
    loss.backward()
    w.grad = ctx.correct({"w": w.grad}, {"w": w})["w"]
    optimizer.step()
return Update({"w": w}, 200, {"loss": loss})
"""

XGBOOST = """
import numpy as np
import xgboost
x = np.random.default_rng(0).normal(size=(2000, 2))
made = xgboost.train({"max_depth": 5, "nthread": 2, "eta": 0.5}, xgboost.DMatrix(x, x @ [2.0, -1.0]), num_boost_round=60)
at = xgboost.DMatrix(np.array([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0]]))
first, second, zero = made.predict(at)
return Update({"w": 2 * np.array([first - zero, second - zero])}, 2000)
"""

DRAWS = {
    "numpy": "import numpy as np\nprint(np.random.random(4).tolist())",
    "torch": "import torch\nprint(torch.rand(4).tolist(), torch.initial_seed())",
}

SCRIPTS = {
    "scikit-learn": SCIKIT_LEARN,
    "torch": PYTORCH,
    "xgboost": XGBOOST,
    "xgboost-cpu": XGBOOST,
    "jax": JAX,
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("library", [name for name in SCRIPTS if name in interpreter().python.distributions])
async def test_it_finds_the_line_through_its_data(sandbox: Sandbox, library: str) -> None:
    said: list[str] = []
    outcome = await run_native(
        sandbox,
        training(SCRIPTS[library]),
        dependencies=(library,),
        limits=Limits(wall_time_s=150, memory_bytes=1024 * MIB),
        env={"FL_STRATEGY": '{"name": "fedprox", "mu": 0.0}'},
        on_stderr=said.append,
    )
    assert outcome.error is None, (outcome, said)
    assert json.loads(outcome.stdout)["update"]["w"] == pytest.approx([2, -1], abs=0.4)
    assert outcome.metrics["memory_peak_bytes"] < 1024 * MIB


@pytest.mark.timeout(180)
@pytest.mark.parametrize("library", [name for name in DRAWS if name in interpreter().python.distributions])
async def test_its_generator_begins_anew_in_each_task(sandbox: Sandbox, library: str) -> None:
    """Also where tasks are forked of a process that has it: one seed for all would make their noise the same."""
    said: list[str] = []
    for _ in range(2):
        outcome = await run_native(
            sandbox,
            training(f"{DRAWS[library]}\nreturn Update(model, 1)"),
            dependencies=(library,),
            imports=(library,),
            limits=Limits(wall_time_s=60, memory_bytes=1024 * MIB),
            on_stderr=said.append,
        )
        assert outcome.error is None, (outcome, said)
        assert sandbox.native_template_pid is not None
    assert said[0] != said[1]


K_MEANS = """
import numpy as np
from sklearn.cluster import KMeans
x = np.array([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0], [5.1, 5.0]])
found = KMeans(2, n_init=1, random_state=0).fit(x).labels_
print(found[0] == found[1] != found[2] == found[3], "numpy" in open("/proc/self/maps").read())
try:
    open(f"/proc/{os.getppid()}/maps").read()
except OSError as error:
    print(type(error).__name__)
return Update(model, 4)
"""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("memory", [None, 0], ids=["forked", "fresh"])
async def test_a_library_that_looks_for_those_of_its_process(tmp_path: Path, memory: int | None) -> None:
    """KMeans and mixtures of scikit-learn bound BLAS's threads, by what ``/proc/self/maps`` says; another process's is not read."""
    said: list[str] = []
    async with Sandbox(tmp_path / "sandbox", native=interpreter(), native_memory=memory) as sandbox:
        outcome = await run_native(
            sandbox, training(K_MEANS, "import os"), dependencies=("scikit-learn",), on_stderr=said.append
        )
    assert outcome.error is None, said
    assert said[-2:] == ["True True", "PermissionError"]
