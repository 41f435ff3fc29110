"""The libraries that native programs are for, each in the sandbox: it is imported there, computes with its threads, and gives back what it has.

scikit-learn is one of the tests' own dependencies. PyTorch, XGBoost and JAX take hundreds of megabytes, so continuous integration has none of them: a
test of one of these is made only where the interpreter has it. To run all: ``PROPELLER_TEST_NATIVE_PYTHON=/path/to/python``, one that has them.
"""

import asyncio
import json
from pathlib import Path

import psutil
import pytest

from propeller.wasm.program_run import MIB, Limits
from propeller.wasm.sandbox import Sandbox
from support.native_programs import interpreter, python_with, run_native, training
from support.net import eventually

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

JAX = """
import jax
x = jax.random.normal(jax.random.key(0), (200, 2))
y = x @ jax.numpy.array([2.0, -1.0])
slope = jax.jit(jax.grad(lambda w: ((x @ w - y) ** 2).mean()))
w = jax.numpy.array(model["w"], dtype="float32")
for _ in range(100):
    w = w - 0.2 * slope(w)
return Update({"w": w}, 200)
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


needs_jax = pytest.mark.skipif(
    "jax" not in interpreter().python.distributions, reason="the interpreter of native programs has no JAX"
)

JAX_AT_ITS_LOAD = "import os\nimport jax\nZERO = jax.numpy.zeros(2)"
"""A script that starts JAX's backend, and with it threads, before its function is called."""


@needs_jax
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "package", [None, "import jax\nONE = jax.numpy.ones(2)"], ids=["jax", "with_backend"]
)
async def test_jax_is_forked_unless_its_backend_has_started(tmp_path: Path, package: str | None) -> None:
    """Its import starts no thread; a package that computes with it at its own import leaves 16 and more, which no fork keeps."""
    native = interpreter() if package is None else python_with(tmp_path / "python", package=package)
    names = ("jax",) if package is None else ("jax", "package")
    said: list[str] = []
    async with Sandbox(tmp_path / "sandbox", native=native) as sandbox:
        for _ in range(3):
            outcome = await run_native(
                sandbox,
                training(f"print(os.getppid())\n{JAX.strip()}", JAX_AT_ITS_LOAD),
                dependencies=names,
                imports=names,
                limits=Limits(wall_time_s=150, memory_bytes=1024 * MIB),
                on_stderr=said.append,
            )
            assert outcome.error is None, (outcome, said)
            assert json.loads(outcome.stdout)["update"]["w"] == pytest.approx([2, -1], abs=0.01)
        parent = sandbox.template_pid if package else sandbox.native_template_pid
        assert said == [str(parent)] * 3


MULTIPLIES = """
x = jax.numpy.ones((1000, 1000))
multiply = jax.jit(lambda a: a @ a / 1000)
print(multiply(x)[0, 0])
while True:
    multiply(x).block_until_ready()
"""


@needs_jax
@pytest.mark.timeout(180)
@pytest.mark.skipif((psutil.cpu_count() or 1) < 2, reason="there is one processor to compute with anyway")
async def test_jax_computes_with_one_thread_a_task(sandbox: Sandbox) -> None:
    """XLA takes as many as there are processors, unless ``NPROC`` says otherwise."""
    said: list[str] = []
    running = asyncio.create_task(
        run_native(
            sandbox,
            training(MULTIPLIES, JAX_AT_ITS_LOAD),
            dependencies=("jax",),
            imports=("jax",),
            limits=Limits(wall_time_s=150, memory_bytes=1024 * MIB),
            on_stderr=said.append,
        )
    )
    await eventually(lambda: said == ["1.0"], 120, "it has computed")
    [process] = psutil.Process(sandbox.native_template_pid).children()
    before = {one.id: one.user_time for one in process.threads()}
    took: list[float] = []

    def has_computed() -> bool:
        took[:] = [one.user_time - before.get(one.id, 0) for one in process.threads()]
        return sum(took) >= 1

    await eventually(has_computed, 60, "it has computed for a second")
    assert max(took) > 0.9 * sum(took), took
    await sandbox.kill("task")
    assert (await running).error == "stopped before completion"


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
