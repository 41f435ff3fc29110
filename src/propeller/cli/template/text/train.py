"""A recurrent network that writes text, a character at a time: put your own layers in its place.

`propeller try train.py` runs it here as plain Python, `propeller try train.wasm` in the sandbox, as a device does.
"""

from propeller.program import Evaluation, Update, batches, evaluate, initial_model, nn, optim, train
from propeller.program import tensors as pt

ALPHABET = " abcdefghijklmnopqrstuvwxyz.,"  # a sample has the numbers of its characters in it


class Net(nn.Module):
    def __init__(self):
        self.letters = nn.Embedding(len(ALPHABET), 16)
        self.gru = nn.GRU(16, 48)
        self.next = nn.Linear(48, len(ALPHABET))

    def forward(self, x):
        outputs, _ = self.gru(self.letters(x))
        return self.next(outputs).reshape(-1, len(ALPHABET))  # one row of scores for each character


def loss(scores, y):
    return pt.cross_entropy(scores, y.reshape(-1))


net = Net()
optimizer = optim.Adam(lr=0.01)
step = nn.training_step(net, loss, optimizer)  # recorded once; from then on it costs the sandbox little


@initial_model  # where training starts: `model.file = "train.py"` in experiment.toml
def first(hyperparams):
    return net.init(seed=hyperparams.get("seed", 1))


@pt.jit
def measure(model, x, y):
    scores = net.apply(model, x)
    return loss(scores, y), (scores.argmax(axis=1) == y.reshape(-1)).mean()


@train
def fit(model, data, hyperparams, ctx):
    lr, source, steps = float(hyperparams.get("lr", 0.01)), pt.random(ctx.seed), 0
    state = optimizer.init(model)
    for _ in range(hyperparams.get("epochs", 1)):
        for x, y in batches(data, hyperparams.get("batch_size", 16), source):
            step(model, state, x, y, source.key(), ctx.correct, lr)
            steps += 1
    print(f"trained on {len(data)} samples")  # appears in the proplet's log
    value, accuracy = measure(model, data.x, data.y)
    return Update(
        model, num_samples=len(data), metrics={"loss": value, "accuracy": accuracy}, steps=steps, lr=lr
    )


@evaluate
def score(model, data, hyperparams, ctx):
    value, accuracy = measure(model, data.x, data.y)
    return Evaluation(num_samples=len(data), metrics={"loss": value, "accuracy": accuracy})
