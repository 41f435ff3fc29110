"""The convolutional network of LeCun et al. 1998, as benchmarks of federated learning use it (Li et al. 2022): 6 and 16 kernels of 5x5, 120 and 84 units.

Model: ``conv1.weight`` and so on, as the same network in PyTorch has them; ``model.file = "lenet.py"`` of an experiment begins with PyTorch's random weights.
Data: ``{"x": [784] or [1, 28, 28], "y": class}``.
Hyperparameters: ``epochs`` 1, ``lr`` 0.01, ``momentum`` 0.9, ``weight_decay`` 0, ``batch_size`` 64, ``seed`` of the first model 1.

Build it with ``propeller build programs/python/lenet.py -o lenet.wasm``.
"""

from propeller.program import Evaluation, Update, batches, evaluate, initial_model, nn, optim, train
from propeller.program import tensors as pt

TESTED = 1000
"""How many images are evaluated at one time: what the network holds of them takes memory."""


class Net(nn.Module):
    def __init__(self):
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = x.reshape(len(x), 1, 28, 28)
        x = pt.max_pool2d(pt.relu(self.conv1(x)), 2)
        x = pt.max_pool2d(pt.relu(self.conv2(x)), 2)
        x = pt.relu(self.fc1(x.reshape(len(x), -1)))
        return self.fc3(pt.relu(self.fc2(x)))


net = Net()


@initial_model
def first(hyperparams):
    return net.init(seed=hyperparams.get("seed", 1))


@pt.jit
def measure(model, x, y):
    logits = net.apply(model, x)
    return pt.cross_entropy(logits, y, reduction="sum"), (logits.argmax(axis=1) == y).sum()


def metrics_of(model, data):
    loss = correct = 0
    for at in range(0, len(data), TESTED):
        part = slice(at, at + TESTED)
        one, other = measure(model, data.x[part], data.y[part])
        loss, correct = loss + one.item(), correct + other.item()
    return {"loss": loss / len(data), "accuracy": correct / len(data)}


@train
def fit(model, data, hyperparams, ctx):
    lr, momentum = float(hyperparams.get("lr", 0.01)), hyperparams.get("momentum", 0.9)
    optimizer = optim.SGD(lr, momentum, weight_decay=hyperparams.get("weight_decay", 0))
    step = nn.training_step(net, pt.cross_entropy, optimizer)
    state, source, steps, loss = optimizer.init(model), pt.random(ctx.seed), 0, None
    for _ in range(hyperparams.get("epochs", 1)):
        for x, y in batches(data, hyperparams.get("batch_size", 64), source):
            loss = step(model, state, x, y, source.key(), ctx.correct, lr)
            steps += 1
    # Momentum makes a step longer: for SCAFFOLD, what a step is worth in the end.
    return Update(model, num_samples=len(data), metrics={"loss": loss}, steps=steps, lr=lr / (1 - momentum))


@evaluate
def score(model, data, hyperparams, ctx):
    return Evaluation(num_samples=len(data), metrics=metrics_of(model, data))
