"""A training of a few samples, done some times while a program is built, so that the program starts practised.

CPython replaces the instructions of a function by faster ones for what it has met there (PEP 659), from the second call on. A task's
process begins with the memory that the build left, and ends after one task: without this, all of its calls would be first ones.
"""

import contextvars
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from propeller.program import command, registry
from propeller.program import tensors as pt
from propeller.tensors import session
from propeller.tensors.files import Source, TaskFiles
from propeller.tensors.python_machine import PythonMachine
from propeller.tensors.shapes import Spec, elements

_TIMES = 4
_SAMPLES, _FEATURES, _CLASSES = 6, 3, 2

_ENVIRONMENT = {
    "ROUND_ID": "rehearsal",
    "PROPLET_ID": "rehearsal",
    "MODEL_URI": "fl/models/rehearsal_v1",
    "EXPERIMENT_ID": "rehearsal",
    "FL_MODE": "train",
    "FL_ROUND": "1",
    "FL_SEED": "1",
    "HYPERPARAMS": '{"lr": 0.1, "batch_size": 3}',
}


def rehearse() -> None:
    """Do the training. Sessions and registered functions are afterwards as they were."""
    contextvars.copy_context().run(_rehearse)


def _rehearse() -> None:
    registry.reset()
    registry.train(_fit)
    registry.evaluate(_score)
    for mode in ("train", "evaluate") * _TIMES:
        session.use(PythonMachine(_Files(Path("rehearsal"), {"model": _MODEL, "data": _DATA})))
        json.dumps(command.do_task(Path("rehearsal"), {**_ENVIRONMENT, "FL_MODE": mode}))


class _Files(TaskFiles):
    """Has a small model and data; what is written goes nowhere."""

    def write(self, result: str, tensors: Mapping[str, tuple[bytes, Spec]]) -> None:
        del result, tensors


def _tensor(dtype: str, *shape: int) -> tuple[Spec, Callable[[], list[int]]]:
    return (dtype, shape), lambda: [index % 2 for index in range(elements(shape))]


_MODEL: Source = {
    "w": _tensor("float32", _FEATURES, _CLASSES),
    "b": _tensor("float32", _CLASSES),
    "large": _tensor("float64", 300),  # so that the update is in a file
}
_DATA: Source = {"x": _tensor("float32", _SAMPLES, _FEATURES), "y": _tensor("int64", _SAMPLES)}


def _loss(model: Any, x: Any, y: Any) -> Any:
    scores = pt.relu(x @ model["w"] + model["b"])
    return -pt.log_softmax(scores)[range(len(y)), y].mean() + 0 * (model["large"] ** 2).sum()


@pt.jit
def _step(model: Any, x: Any, y: Any, lr: Any, correct: Any) -> None:
    slope = correct(pt.grad(_loss)(model, x, y), model)
    for name in model:
        model[name] -= lr * slope[name]


@pt.jit
def _measure(model: Any, x: Any, y: Any) -> Any:
    scores = x @ model["w"] + model["b"]
    return {"loss": _loss(model, x, y), "accuracy": (scores.argmax(axis=1) == y).mean()}


def _fit(model: Any, data: Any, hyperparams: Any, ctx: Any) -> registry.Update:
    batch, lr, steps = hyperparams["batch_size"], float(hyperparams["lr"]), 0
    before = _measure(model, data.x, data.y)
    rows = pt.random(ctx.seed).permutation(len(data))
    x, y = data.x[rows], data.y[rows]
    for at in range(0, len(data), batch):
        _step(model, x[at : at + batch], y[at : at + batch], lr, ctx.correct)
        steps += 1
    metrics = {**_measure(model, data.x, data.y), "loss_before": before["loss"]}
    print(
        f"{float(metrics['loss']):.3f} {model['b']} {data.x[0].tolist()} {int(data.y[0])}", file=io.StringIO()
    )
    return registry.Update(model, num_samples=len(data), metrics=metrics, steps=steps, lr=lr)


def _score(model: Any, data: Any, _hyperparams: Any, _ctx: Any) -> registry.Evaluation:
    return registry.Evaluation(num_samples=len(data), metrics=_measure(model, data.x, data.y))
