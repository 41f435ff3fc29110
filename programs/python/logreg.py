"""Logistic regression by mini-batch stochastic gradient descent: what ../logreg_c does, in Python.

Model: ``{"w": [n numbers], "b": number}``. Data: ``{"x": [n numbers], "y": 0 or 1}``. Hyperparameters: ``epochs`` 1, ``lr`` 0.01,
``batch_size`` 16 (0: all samples), ``l2`` 0 (on ``w`` alone), ``seed`` 0,
``log_samples`` 0 (samples stay on the device, and out of its log, unless asked for).

Build it with ``propeller build programs/python/logreg.py -o logreg.wasm``.
"""

import json
import zlib

from propeller.program import Evaluation, Update, evaluate, train
from propeller.program import tensors as pt


@pt.jit
def step(model, x, y, lr, l2, correct):
    error = pt.sigmoid(x @ model["w"] + model["b"]) - y
    slope = {"w": error @ x / len(x) + l2 * model["w"], "b": error.mean()}
    slope = correct(slope, model)  # what the strategy adds, if anything
    for name in slope:
        model[name] -= lr * slope[name]


@pt.jit
def measure(model, x, y):
    """The log loss, in the form that neither overflows nor loses digits, and the accuracy."""
    z = x @ model["w"] + model["b"]
    losses = pt.maximum(z, 0) - y * z - pt.log(pt.sigmoid(abs(z)))
    return {"loss": losses.mean(), "accuracy": ((z > 0) == (y > 0)).mean()}


@train
def fit(model, data, hyperparams, ctx):
    given = {"epochs": 1, "lr": 0.01, "batch_size": 16, "l2": 0, "seed": 0, "log_samples": 0, **hyperparams}
    batch, lr, steps = given["batch_size"] or len(data), float(given["lr"]), 0
    print(f"Loaded dataset with {len(data)} samples from Local Data Store")
    print(f"DEBUG: Initial model - {shown(model)}")
    if given["log_samples"]:
        print(f"DEBUG: First sample - x: {numbers(data.x[0])}, y: {int(data.y[0])}")
    before = measure(model, data.x, data.y)
    # Another order in each round, and the same one when a round is done again.
    order = pt.random(zlib.crc32(f"{given['seed']} {ctx.model_uri}".encode()))
    for _ in range(given["epochs"]):
        rows = order.permutation(len(data))
        x, y = data.x[rows], data.y[rows]
        for at in range(0, len(data), batch):
            step(model, x[at : at + batch], y[at : at + batch], lr, float(given["l2"]), ctx.correct)
            steps += 1
    after = measure(model, data.x, data.y)
    print(f"DEBUG: Final model after training - {shown(model)}")
    print(f"DEBUG: Update payload: {json.dumps({name: model[name].tolist() for name in model})}")
    metrics = {**after, **{f"{name}_before": value for name, value in before.items()}}
    return Update(model, num_samples=len(data), metrics=metrics, steps=steps, lr=lr)


@evaluate
def score(model, data, hyperparams, ctx):
    return Evaluation(num_samples=len(data), metrics=measure(model, data.x, data.y))


def shown(model):
    return f"w: {numbers(model['w'])}, b: {float(model['b']):.6f}"


def numbers(array):
    return f"[{', '.join(f'{value:.6f}' for value in array.tolist())}]"
