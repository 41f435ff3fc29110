"""Softmax regression: one linear layer, any number of classes.

Model: ``{"w": [features x classes], "b": [classes]}``; zeros will do to begin with. Data: ``{"x": [features], "y": class}``.
Hyperparameters: ``epochs`` 1, ``lr`` 0.1, ``batch_size`` 32, ``seed`` (the order of the samples; else the round's own seed).

Build it with ``propeller build programs/python/softmax.py -o softmax.wasm``.
"""

from propeller.program import Evaluation, Update, evaluate, train
from propeller.program import tensors as pt


def loss(model, x, y):
    """The mean cross-entropy."""
    return -pt.log_softmax(x @ model["w"] + model["b"])[range(len(x)), y].mean()


@pt.jit
def step(model, x, y, lr, correct):
    slope = correct(pt.grad(loss)(model, x, y), model)  # what the strategy adds, if anything
    for name in model:
        model[name] -= lr * slope[name]


@pt.jit
def measure(model, x, y):
    right = (x @ model["w"] + model["b"]).argmax(axis=1) == y
    return {"loss": loss(model, x, y), "accuracy": right.mean()}


@train
def fit(model, data, hyperparams, ctx):
    batch, lr = hyperparams.get("batch_size", 32), float(hyperparams.get("lr", 0.1))
    order, steps = pt.random(hyperparams.get("seed", ctx.seed)), 0
    before = loss(model, data.x, data.y).item()  # q-FedAvg weights by it
    for _ in range(hyperparams.get("epochs", 1)):
        rows = order.permutation(len(data))
        x, y = data.x[rows], data.y[rows]
        for at in range(0, len(data), batch):
            step(model, x[at : at + batch], y[at : at + batch], lr, ctx.correct)
            steps += 1
    metrics = {**measure(model, data.x, data.y), "loss_before": before}
    return Update(model, num_samples=len(data), metrics=metrics, steps=steps, lr=lr)


@evaluate
def score(model, data, hyperparams, ctx):
    return Evaluation(num_samples=len(data), metrics=measure(model, data.x, data.y))
