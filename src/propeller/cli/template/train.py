"""Linear classification by gradient descent; make it yours.

`propeller try train.py` runs it here as plain Python, `propeller try train.wasm` in the sandbox, as a device does.
"""

from propeller.program import Evaluation, Update, evaluate, train
from propeller.program import tensors as pt


def loss_of(model, x, y):
    """Cross-entropy, and how many labels are predicted right."""
    p = pt.sigmoid(x @ model["w"] + model["b"])
    wrong = pt.where(y > 0, -pt.log(p + 1e-7), -pt.log(1 - p + 1e-7))
    return wrong.mean(), ((p > 0.5) == (y > 0)).mean()


@pt.jit  # recorded once; from then on a step costs the sandbox next to nothing
def step(model, x, y, lr):
    error = pt.sigmoid(x @ model["w"] + model["b"]) - y
    model["w"] -= lr * (x.T @ error) / len(x)
    model["b"] -= lr * error.mean()


@train
def fit(model, data, hyperparams, ctx):
    batch = hyperparams.get("batch_size", 16)
    order = pt.random(hyperparams.get("seed", 0))
    for _ in range(hyperparams.get("epochs", 1)):
        shuffled = order.permutation(len(data))
        x, y = data.x[shuffled], data.y[shuffled]
        for at in range(0, len(data), batch):
            step(model, x[at : at + batch], y[at : at + batch], hyperparams.get("lr", 0.1))
    loss, accuracy = loss_of(model, data.x, data.y)
    print(f"trained on {len(data)} samples")  # appears in the proplet's log
    return Update(model, num_samples=len(data), metrics={"loss": loss, "accuracy": accuracy})


@evaluate
def score(model, data, hyperparams, ctx):
    loss, accuracy = loss_of(model, data.x, data.y)
    return Evaluation(num_samples=len(data), metrics={"loss": loss, "accuracy": accuracy})
