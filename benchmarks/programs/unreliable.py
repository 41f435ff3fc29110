"""The network of ``programs/python/mlp.py`` on devices some of which are bad, or have time for a part of the work only.

Data beside ``x`` and ``y``: ``bad``, 1 in all samples of a device that is. Hyperparameters beside the network's: ``attack``, what bad
devices send: ``noise`` (normal, of deviation ``scale``, around the round's model) or ``flip`` (their step times ``-scale``); and
``stragglers``, the part of tasks that are stopped after some of their epochs (1 to ``epochs - 1``, uniformly) and send what they have.
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


@pt.jit
def step(model, x, y, lr, correct):
    slope = correct(pt.grad(loss)(model, x, y), model)
    for name in model:
        model[name] -= lr * slope[name]


@pt.jit
def measure(model, x, y):
    scores = logits(model, x)
    return {"loss": cross_entropy(scores, y), "accuracy": (scores.argmax(axis=1) == y).mean()}


def spoilt(model, base, hyperparams, source):
    """What a bad device sends in the place of its model."""
    scale = float(hyperparams["scale"])
    if hyperparams["attack"] == "noise":
        return {name: base[name] + scale * source.normal(base[name].shape) for name in base}
    return {name: base[name] - scale * (model[name] - base[name]) for name in base}


@train
def fit(model, data, hyperparams, ctx):
    source, steps = pt.random(ctx.seed), 0
    batch, lr, epochs = hyperparams["batch_size"], float(hyperparams["lr"]), hyperparams["epochs"]
    base = {name: model[name].copy() for name in model}
    if source.uniform(()).item() < hyperparams.get("stragglers", 0):
        epochs = 1 + int(source.uniform(()).item() * (epochs - 1))
    for _ in range(epochs):
        rows = source.permutation(len(data))
        x, y = data.x[rows], data.y[rows]
        for at in range(0, len(data), batch):
            step(model, x[at : at + batch], y[at : at + batch], lr, ctx.correct)
            steps += 1
    if data.bad[0].item():
        model = spoilt(model, base, hyperparams, source)
    return Update(model, num_samples=len(data), metrics=measure(model, data.x, data.y), steps=steps, lr=lr)


@evaluate
def score(model, data, hyperparams, ctx):
    return Evaluation(num_samples=len(data), metrics=measure(model, data.x, data.y))
