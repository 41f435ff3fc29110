"""One body for all devices, and a head that each device keeps for itself: FedPer (Arivazhagan et al. 2019).

The experiment says which tensors are personal; nothing of it is in this file.
"""

from propeller.program import Evaluation, Update, batches, evaluate, initial_model, nn, optim, train
from propeller.program import tensors as pt

net = nn.Sequential(
    body=nn.Sequential(fc1=nn.Linear(64, 48), act1=pt.relu, fc2=nn.Linear(48, 24), act2=pt.relu),
    head=nn.Linear(24, 10),
)
optimizer = optim.SGD(lr=0.05, momentum=0.9)


def loss(scores, y):
    return pt.cross_entropy(scores, y)


step = nn.training_step(net, loss, optimizer)


@initial_model
def first(hyperparams):
    return net.init(seed=hyperparams.get("seed", 1))


@pt.jit
def measure(model, x, y):
    scores = net.apply(model, x)
    return loss(scores, y), (scores.argmax(axis=1) == y).mean()


@train
def fit(model, data, hyperparams, ctx):
    lr, source, steps, value = float(hyperparams.get("lr", 0.05)), pt.random(ctx.seed), 0, None
    state = optimizer.init(model)
    for _ in range(hyperparams.get("epochs", 1)):
        for x, y in batches(data, hyperparams.get("batch_size", 16), source):
            value = step(model, state, x, y, source.key(), ctx.correct, lr)
            steps += 1
    return Update(model, num_samples=len(data), metrics={"loss": value}, steps=steps, lr=lr)


@evaluate
def score(model, data, hyperparams, ctx):
    value, accuracy = measure(model, data.x, data.y)
    return Evaluation(num_samples=len(data), metrics={"loss": value, "accuracy": accuracy})
