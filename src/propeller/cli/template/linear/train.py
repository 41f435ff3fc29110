"""Logistic regression by gradient descent: put your own loss in its place.

`propeller try train.py` runs it here as plain Python, `propeller try train.wasm` in the sandbox, as a device does.
"""

from propeller.program import Evaluation, Update, evaluate, train
from propeller.program import tensors as pt


def loss(model, x, y):
    p = pt.sigmoid(x @ model["w"] + model["b"])
    return -pt.where(y > 0, pt.log(p + 1e-7), pt.log(1 - p + 1e-7)).mean()


def accuracy(model, x, y):
    return ((x @ model["w"] + model["b"] > 0) == (y > 0)).mean()


@pt.jit  # recorded once; from then on, a step costs the sandbox next to nothing
def step(model, x, y, lr, correct):
    slope = correct(pt.grad(loss)(model, x, y), model)  # what the experiment's strategy adds, if anything
    for name in model:
        model[name] -= lr * slope[name]


@train
def fit(model, data, hyperparams, ctx):
    batch, lr, steps = hyperparams.get("batch_size", 16), float(hyperparams.get("lr", 0.1)), 0
    order = pt.random(hyperparams.get("seed", ctx.seed))
    for _ in range(hyperparams.get("epochs", 1)):
        rows = order.permutation(len(data))
        x, y = data.x[rows], data.y[rows]
        for at in range(0, len(data), batch):
            step(model, x[at : at + batch], y[at : at + batch], lr, ctx.correct)
            steps += 1
    print(f"trained on {len(data)} samples")  # appears in the proplet's log
    metrics = {"loss": loss(model, data.x, data.y), "accuracy": accuracy(model, data.x, data.y)}
    return Update(model, num_samples=len(data), metrics=metrics, steps=steps, lr=lr)


@evaluate
def score(model, data, hyperparams, ctx):
    metrics = {"loss": loss(model, data.x, data.y), "accuracy": accuracy(model, data.x, data.y)}
    return Evaluation(num_samples=len(data), metrics=metrics)
