"""A convolution and its gradients again and again, for ``host_tensors.py``: by the array language's own operation, or unfolded in the program.

Model: ``weight`` [channels out, channels in, height, width]. Hyperparameters: ``steps``, ``batch``, ``side`` of the images, ``way``: ``conv2d``, ``slices`` or ``indices``.
"""

from propeller.program import Update, train
from propeller.program import tensors as pt


def product(matrix, weight, side):
    """Of the windows' elements in columns."""
    count, outputs = len(matrix), len(weight)
    return (weight.reshape(outputs, -1) @ matrix).reshape(count, outputs, side, side)


def by_slices(x, weight):
    """The columns from slices of the images, one for each element of a window."""
    channels, high, wide = weight.shape[1:]
    side = x.shape[3] - wide + 1
    taps = [x[:, :, p : p + side, q : q + side] for p in range(high) for q in range(wide)]
    return product(pt.stack(taps, axis=2).reshape(len(x), channels * high * wide, side * side), weight, side)


def by_indices(x, weight):
    """The columns by the place of each of their elements in an image."""
    channels, high, wide = weight.shape[1:]
    width = x.shape[3]
    side = width - wide + 1
    places = [
        (channel * width + row + p) * width + column + q
        for channel in range(channels)
        for p in range(high)
        for q in range(wide)
        for row in range(side)
        for column in range(side)
    ]
    flat = x.reshape(len(x), channels * width * width)
    return product(flat[:, pt.array(places)].reshape(len(x), -1, side * side), weight, side)


WAYS = {"conv2d": pt.conv2d, "slices": by_slices, "indices": by_indices}


def step_of(convolve):
    @pt.jit
    def step(given, up):
        gradients = pt.grad(lambda each: (convolve(each["x"], each["weight"]) * up).sum())(given)
        for name in given:
            given[name] -= 1e-6 * gradients[name]

    return step


@train
def fit(model, data, hyperparams, ctx):
    source, side = pt.random(1), hyperparams["side"]
    outputs, channels, high, wide = model["weight"].shape
    given = {"x": source.normal((hyperparams["batch"], channels, side, side)), "weight": model["weight"]}
    up = source.normal((hyperparams["batch"], outputs, side - high + 1, side - wide + 1))
    step = step_of(WAYS[hyperparams["way"]])
    for _ in range(hyperparams["steps"]):
        step(given, up)
    return Update({"weight": given["weight"]}, num_samples=1)
