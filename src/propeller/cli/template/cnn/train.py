"""A convolutional network on small pictures: put your own layers in its place.

`propeller try train.py` runs it here as plain Python, `propeller try train.wasm` in the sandbox, as a device does.
"""

from propeller.program import Evaluation, Update, batches, evaluate, initial_model, nn, optim, train
from propeller.program import tensors as pt

SIZE, CLASSES = 12, 4  # pictures of SIZE x SIZE: squares, crosses, rings and stripes


class Net(nn.Module):
    def __init__(self):
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.fc1 = nn.Linear(16 * (SIZE // 4) ** 2, 32)
        self.fc2 = nn.Linear(32, CLASSES)

    def forward(self, x):
        x = x.reshape(len(x), 1, SIZE, SIZE)
        x = pt.max_pool2d(pt.relu(self.conv1(x)), 2)
        x = pt.max_pool2d(pt.relu(self.conv2(x)), 2)
        return self.fc2(pt.relu(self.fc1(x.reshape(len(x), -1))))


net = Net()
optimizer = optim.SGD(lr=0.05, momentum=0.9)
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
    lr, source, steps = float(hyperparams.get("lr", 0.05)), pt.random(ctx.seed), 0
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
