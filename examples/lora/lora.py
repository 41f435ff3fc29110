"""Low-rank adaptation of a network that is there already: the layers stay as they are, and small matrices beside them learn.

Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022 (arXiv:2106.09685): a layer's weights ``w`` count as
``w + a @ b``, where ``a`` is [inputs x rank], ``b`` [rank x outputs] and zero at first.

Model: ``w1``, ``b1``, ``w2``, ``b2`` of a network with one hidden layer, and ``lora_a1``, ``lora_b1``, ``lora_a2``, ``lora_b2``. Data:
``{"x": [features], "y": class}``. Hyperparameters: ``epochs`` 1, ``lr`` 0.1, ``batch_size`` 32.
With the strategy's ``trained = ["lora_*"]`` nothing else travels.
"""

from propeller.program import Evaluation, Update, evaluate, train
from propeller.program import tensors as pt


def scores(model, x):
    hidden = pt.relu(x @ model["w1"] + (x @ model["lora_a1"]) @ model["lora_b1"] + model["b1"])
    return hidden @ model["w2"] + (hidden @ model["lora_a2"]) @ model["lora_b2"] + model["b2"]


@pt.jit
def step(adapters, frozen, x, y, lr, correct):
    def loss(adapters):
        return -pt.log_softmax(scores({**frozen, **adapters}, x))[range(len(x)), y].mean()

    slope = correct(pt.grad(loss)(adapters), adapters)
    for name in adapters:
        adapters[name] -= lr * slope[name]


@pt.jit
def measure(model, x, y):
    found = scores(model, x)
    return {
        "loss": -pt.log_softmax(found)[range(len(x)), y].mean(),
        "accuracy": (found.argmax(axis=1) == y).mean(),
    }


@train
def fit(model, data, hyperparams, ctx):
    adapters = {name: tensor for name, tensor in model.items() if name.startswith("lora_")}
    frozen = {name: tensor for name, tensor in model.items() if name not in adapters}
    batch, lr, order, steps = (
        hyperparams.get("batch_size", 32),
        hyperparams.get("lr", 0.1),
        pt.random(ctx.seed),
        0,
    )
    for _ in range(hyperparams.get("epochs", 1)):
        rows = order.permutation(len(data))
        x, y = data.x[rows], data.y[rows]
        for at in range(0, len(data), batch):
            step(adapters, frozen, x[at : at + batch], y[at : at + batch], lr, ctx.correct)
            steps += 1
    metrics = measure({**frozen, **adapters}, data.x, data.y)
    return Update({**frozen, **adapters}, num_samples=len(data), metrics=metrics, steps=steps, lr=lr)


@evaluate
def score(model, data, hyperparams, ctx):
    return Evaluation(num_samples=len(data), metrics=measure(model, data.x, data.y))
