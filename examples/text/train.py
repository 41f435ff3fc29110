"""A recurrent network that writes verse, a character at a time.

A sample of the data has the numbers of 48 characters in it: those of ``ALPHABET``.
"""

from propeller.program import Evaluation, Update, batches, evaluate, initial_model, nn, optim, train
from propeller.program import tensors as pt

ALPHABET = "\n !\"',-.:;?abcdefghijklmnopqrstuvwxyz"


class Net(nn.Module):
    def __init__(self):
        self.letters = nn.Embedding(len(ALPHABET), 24)
        self.gru = nn.GRU(24, 96)
        self.drop = nn.Dropout(0.2)
        self.next = nn.Linear(96, len(ALPHABET))

    def forward(self, x, state=None):
        """Scores of the characters after each of ``x`` [n, steps], and the state after the last."""
        outputs, state = self.gru(self.letters(x), state)
        return self.next(self.drop(outputs)).reshape(-1, len(ALPHABET)), state


def loss(result, y):
    return pt.cross_entropy(result[0], y.reshape(-1))


net = Net()
optimizer = optim.Adam(lr=0.01)
step = nn.training_step(net, loss, optimizer)


@initial_model
def first(hyperparams):
    return net.init(seed=hyperparams.get("seed", 1))


@pt.jit
def measure(model, x, y):
    result = net.apply(model, x)
    return loss(result, y), (result[0].argmax(axis=1) == y.reshape(-1)).mean()


@train
def fit(model, data, hyperparams, ctx):
    lr, source, steps, value = float(hyperparams.get("lr", 0.01)), pt.random(ctx.seed), 0, None
    state = optimizer.init(model)
    for _ in range(hyperparams.get("epochs", 1)):
        for x, y in batches(data, hyperparams.get("batch_size", 8), source):
            value = step(model, state, x, y, source.key(), ctx.correct, lr)
            steps += 1
    return Update(model, num_samples=len(data), metrics={"loss": value}, steps=steps, lr=lr)


@evaluate
def score(model, data, hyperparams, ctx):
    value, accuracy = measure(model, data.x, data.y)
    return Evaluation(num_samples=len(data), metrics={"loss": value, "accuracy": accuracy})
