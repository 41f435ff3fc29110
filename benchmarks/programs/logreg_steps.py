"""The steps of logistic regression and nothing else, as ``flower_simulation.py`` has them: one epoch of batches of 16 in the same order each time."""

from propeller.program import Update, train
from propeller.program import tensors as pt


@pt.jit
def step(model, x, y, lr):
    error = pt.sigmoid(x @ model["w"] + model["b"]) - y
    model["w"] -= lr * (error @ x / len(x))
    model["b"] -= lr * error.mean()


@train
def fit(model, data, hyperparams, ctx):
    rows = pt.random(0).permutation(len(data))
    x, y = data.x[rows], data.y[rows]
    for at in range(0, len(data), 16):
        step(model, x[at : at + 16], y[at : at + 16], 0.1)
    return Update(model, num_samples=len(data))
