"""A convolutional network for scikit-learn's digits: 8x8 pixels of 0 to 1."""

from propeller.program import Evaluation, Update, batches, evaluate, initial_model, nn, optim, train
from propeller.program import tensors as pt


class Net(nn.Module):
    def __init__(self):
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.norm1 = nn.GroupNorm(4, 16)  # of each sample by itself: devices need no common statistics
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 2 * 2, 64)
        self.drop = nn.Dropout(0.2)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x):
        x = x.reshape(len(x), 1, 8, 8)
        x = pt.max_pool2d(pt.relu(self.norm1(self.conv1(x))), 2)
        x = pt.max_pool2d(pt.relu(self.conv2(x)), 2)
        return self.fc2(self.drop(pt.relu(self.fc1(x.reshape(len(x), -1)))))


net = Net()
optimizer = optim.SGD(lr=0.05, momentum=0.9)
step = nn.training_step(net, pt.cross_entropy, optimizer)


@initial_model
def first(hyperparams):
    return net.init(seed=hyperparams.get("seed", 1))


@pt.jit
def measure(model, x, y):
    logits = net.apply(model, x)
    return pt.cross_entropy(logits, y), (logits.argmax(axis=1) == y).mean()


@train
def fit(model, data, hyperparams, ctx):
    lr, source, steps, loss = float(hyperparams.get("lr", 0.05)), pt.random(ctx.seed), 0, None
    state = optimizer.init(model)
    for _ in range(hyperparams.get("epochs", 1)):
        for x, y in batches(data, hyperparams.get("batch_size", 16), source):
            loss = step(model, state, x, y, source.key(), ctx.correct, lr)
            steps += 1
    return Update(model, num_samples=len(data), metrics={"loss": loss}, steps=steps, lr=lr)


@evaluate
def score(model, data, hyperparams, ctx):
    loss, accuracy = measure(model, data.x, data.y)
    return Evaluation(num_samples=len(data), metrics={"loss": loss, "accuracy": accuracy})
