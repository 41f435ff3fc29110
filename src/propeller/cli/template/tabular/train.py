"""A network for tables of numbers: of CSV files, with a column that is learnt.

`propeller try train.py` runs it here as plain Python, `propeller try train.wasm` in the sandbox, as a device does.
"""

from propeller.program import Evaluation, Update, batches, evaluate, initial_model, nn, optim, train
from propeller.program import tensors as pt

COLUMNS = 6  # of the data files, beside the label

net = nn.Sequential(fc1=nn.Linear(COLUMNS, 16), act=pt.relu, fc2=nn.Linear(16, 2))
optimizer = optim.Adam(lr=0.01)
step = nn.training_step(
    net, pt.cross_entropy, optimizer
)  # recorded once; from then on it costs the sandbox little


@initial_model  # where training starts: `model.file = "train.py"` in experiment.toml
def first(hyperparams):
    return net.init(seed=hyperparams.get("seed", 1))


@pt.jit
def measure(model, x, y):
    logits = net.apply(model, x)
    return pt.cross_entropy(logits, y), (logits.argmax(axis=1) == y).mean()


@train
def fit(model, data, hyperparams, ctx):
    lr, source, steps = float(hyperparams.get("lr", 0.01)), pt.random(ctx.seed), 0
    state = optimizer.init(model)
    for _ in range(hyperparams.get("epochs", 1)):
        for x, y in batches(data, hyperparams.get("batch_size", 16), source):
            step(model, state, x, y, source.key(), ctx.correct, lr)
            steps += 1
    print(f"trained on {len(data)} samples")  # appears in the proplet's log
    loss, accuracy = measure(model, data.x, data.y)
    return Update(
        model, num_samples=len(data), metrics={"loss": loss, "accuracy": accuracy}, steps=steps, lr=lr
    )


@evaluate
def score(model, data, hyperparams, ctx):
    loss, accuracy = measure(model, data.x, data.y)
    return Evaluation(num_samples=len(data), metrics={"loss": loss, "accuracy": accuracy})
