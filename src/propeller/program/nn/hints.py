"""What takes the place of PyTorch's layers that there are not here, for the error that says so."""

from collections.abc import Iterable

from propeller.tensors import hints

FUNCTIONS = {
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "ELU": "elu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Tanh": "tanh",
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
}

LOSSES = {
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "cross_entropy",
    "BCEWithLogitsLoss": "binary_cross_entropy",
    "BCELoss": "binary_cross_entropy",
    "MSELoss": "mse_loss",
    "L1Loss": "l1_loss",
    "HuberLoss": "huber_loss",
    "SmoothL1Loss": "huber_loss",
}

OTHERS = {
    "functional": "propeller.program.tensors: pt.relu(x), pt.cross_entropy(logits, labels)",
    "init": "nn.initialisers",
    "utils": "optim.clip_by_norm(gradients, max_norm)",
    "Identity": "x as it is; lambda x: x as a step of Sequential",
    "Unflatten": "Reshape(*shape)",
    "Dropout1d": "Dropout(p)",
    "Dropout2d": "Dropout(p)",
    "InstanceNorm1d": "GroupNorm(channels, channels)",
    "InstanceNorm2d": "GroupNorm(channels, channels)",
    "MaxPool1d": "pt.max_pool1d(x, size), in forward",
    "AvgPool1d": "pt.avg_pool1d(x, size), in forward",
    "AdaptiveAvgPool1d": "x.mean(2, keepdims=True) for a size of 1, AvgPool with a fixed size else",
    "AdaptiveAvgPool2d": "x.mean((2, 3), keepdims=True) for a size of 1, AvgPool2d(kernel_size) else",
    "RNN": "GRU or LSTM",
    "ModuleDict": "ModuleList([...]), or attributes",
    "ParameterList": "a Parameter each, as attributes",
}


def hint(name: str, known: Iterable[str]) -> str:
    """What to write here for that name of ``torch.nn``, or which of those that are ``known`` was meant; empty if neither is."""
    if name in FUNCTIONS:
        return f"; here it is the function pt.{FUNCTIONS[name]}, in forward or as a step of Sequential"
    if name in LOSSES:
        return f"; here it is the function pt.{LOSSES[name]}(output, target)"
    if name in OTHERS:
        return f"; here it is {OTHERS[name]}"
    return hints.hint(name, [one for one in known if one[:1].isupper()])
