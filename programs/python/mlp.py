"""A network with hidden layers of rectified linear units, and softmax over its classes.

Model: ``w1`` [features x hidden], ``b1`` [hidden], ``w2`` [hidden x classes], ``b2`` [classes], or more of them, ``w3``, ``b3`` and so on, for more
hidden layers; how many layers there are, and how large, follows from them. Begin with small random weights: hidden units that are all
alike stay so. Data: ``{"x": [features], "y": class}``.
Hyperparameters: ``epochs`` 1, ``lr`` 0.1, ``batch_size`` 64, ``seed`` (the order of the samples; else the round's own seed), and
``shuffle`` true (false: the samples in their order).

Build it with ``propeller build programs/python/mlp.py -o mlp.wasm``.
"""

from propeller.program import Evaluation, Update, evaluate, train
from propeller.program import tensors as pt


def logits(model, x):
    last = len(model) // 2
    for layer in range(1, last):
        x = pt.relu(x @ model[f"w{layer}"] + model[f"b{layer}"])
    return x @ model[f"w{last}"] + model[f"b{last}"]


def cross_entropy(scores, y):
    return -pt.log_softmax(scores)[range(len(y)), y].mean()


def loss(model, x, y):
    return cross_entropy(logits(model, x), y)


@pt.jit  # recorded once; from then on, a step is one number to the host
def step(model, x, y, lr, correct):
    slope = correct(pt.grad(loss)(model, x, y), model)  # what the strategy adds, if anything
    for name in model:
        model[name] -= lr * slope[name]


@pt.jit
def measure(model, x, y):
    scores = logits(model, x)
    return {"loss": cross_entropy(scores, y), "accuracy": (scores.argmax(axis=1) == y).mean()}


@train
def fit(model, data, hyperparams, ctx):
    batch, lr = hyperparams.get("batch_size", 64), float(hyperparams.get("lr", 0.1))
    order, steps = pt.random(hyperparams.get("seed", ctx.seed)), 0
    x, y = data.x, data.y
    before = loss(model, x, y).item()  # q-FedAvg weights by it
    for _ in range(hyperparams.get("epochs", 1)):
        if hyperparams.get("shuffle", True):
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
