"""JAX in native programs, whose threads begin with its backend; read only where the interpreter has it (``test_libraries.py`` says how)."""

import asyncio
import json
from pathlib import Path

import psutil
import pytest

from propeller.wasm.program_run import MIB, Limits
from propeller.wasm.sandbox import Sandbox
from support.native_programs import JAX, interpreter, python_with, run_native, training
from support.net import eventually

JAX_AT_ITS_LOAD = "import os\nimport jax\nZERO = jax.numpy.zeros(2)"
"""A script that starts JAX's backend, and with it threads, before its function is called."""


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
