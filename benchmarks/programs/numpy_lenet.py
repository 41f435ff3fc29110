"""The training of ``programs/python/lenet.py`` in NumPy by hand, for ``host_tensors.py``: windows in columns, in-place SGD with momentum."""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SIDE = 5
"""Of both layers' kernels."""


def _columns(x: Any) -> Any:
    """``[n, channels, height, width]`` as ``[n, channels x window elements, windows]``."""
    windows = sliding_window_view(x, (SIDE, SIDE), axis=(2, 3))
    count, channels, height, width = windows.shape[:4]
    return windows.transpose(0, 1, 4, 5, 2, 3).reshape(count, channels * SIDE * SIDE, height * width)


def _convolve(x: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
    columns = _columns(x)
    side = x.shape[2] - SIDE + 1
    result = weight.reshape(len(weight), -1) @ columns
    result += bias[:, None]
    return result.reshape(len(x), len(weight), side, side), columns


def _kernel_gradient(up: Any, columns: Any, weight: Any) -> tuple[Any, Any]:
    flat = up.reshape(len(up), len(weight), -1)
    return (flat @ columns.transpose(0, 2, 1)).sum(0).reshape(weight.shape), flat.sum((0, 2))


def _input_gradient(up: Any, weight: Any, channels: int) -> Any:
    count, outputs, side, _ = up.shape
    columns = weight.reshape(outputs, -1).T @ up.reshape(count, outputs, -1)
    parts = columns.reshape(count, channels, SIDE, SIDE, side, side)
    result = np.zeros((count, channels, side + SIDE - 1, side + SIDE - 1), up.dtype)
    for row in range(SIDE):
        for column in range(SIDE):
            result[:, :, row : row + side, column : column + side] += parts[:, :, row, column]
    return result


def _pool(x: Any) -> Any:
    count, channels, side, _ = x.shape
    return x.reshape(count, channels, side // 2, 2, side // 2, 2).max((3, 5))


def _unpool(x: Any, most: Any, up: Any) -> Any:
    """The gradient goes to the largest of each window, and to the first of several."""
    free = np.ones(most.shape, np.bool_)
    result = np.empty_like(x)
    for row in range(2):
        for column in range(2):
            chosen = (x[:, :, row::2, column::2] == most) & free
            free &= ~chosen
            result[:, :, row::2, column::2] = up * chosen
    return result


def step(model: dict[str, Any], velocity: dict[str, Any], x: Any, y: Any, lr: float, momentum: float) -> None:
    """One step in place on a batch: ``x`` [n, 784], ``y`` [n]; the tensors are named as the program's."""
    x = x.reshape(len(x), 1, 28, 28)
    first, columns = _convolve(x, model["conv1.weight"], model["conv1.bias"])
    np.maximum(first, 0, out=first)
    one = _pool(first)
    second, more = _convolve(one, model["conv2.weight"], model["conv2.bias"])
    np.maximum(second, 0, out=second)
    two = _pool(second)
    flat = two.reshape(len(x), -1)
    hidden = np.maximum(flat @ model["fc1.weight"].T + model["fc1.bias"], 0)
    last = np.maximum(hidden @ model["fc2.weight"].T + model["fc2.bias"], 0)
    scores = last @ model["fc3.weight"].T + model["fc3.bias"]
    scores -= scores.max(1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(1, keepdims=True)
    scores[np.arange(len(y)), y] -= 1
    scores /= len(y)
    gradients = {"fc3.weight": scores.T @ last, "fc3.bias": scores.sum(0)}
    up = scores @ model["fc3.weight"]
    up *= last > 0
    gradients |= {"fc2.weight": up.T @ hidden, "fc2.bias": up.sum(0)}
    up = up @ model["fc2.weight"]
    up *= hidden > 0
    gradients |= {"fc1.weight": up.T @ flat, "fc1.bias": up.sum(0)}
    up = _unpool(second, two, (up @ model["fc1.weight"]).reshape(two.shape))
    up *= second > 0
    gradients["conv2.weight"], gradients["conv2.bias"] = _kernel_gradient(up, more, model["conv2.weight"])
    up = _unpool(first, one, _input_gradient(up, model["conv2.weight"], one.shape[1]))
    up *= first > 0
    gradients["conv1.weight"], gradients["conv1.bias"] = _kernel_gradient(up, columns, model["conv1.weight"])
    for name, gradient in gradients.items():
        velocity[name] *= np.float32(momentum)
        velocity[name] += gradient
        model[name] -= np.float32(lr) * velocity[name]
