"""The network of ``programs/python/mlp.py`` in NumPy, and the digits that it learns."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Model = dict[str, NDArray[np.float64]]
Floats = NDArray[np.float64]


@functools.cache
def digits() -> tuple[Floats, NDArray[np.int64]]:
    found = load_digits()
    return found.data / 16, found.target


def samples(x: Floats, y: NDArray[np.int64]) -> list[dict[str, Any]]:
    return [{"x": row, "y": label} for row, label in zip(np.round(x, 4).tolist(), y.tolist(), strict=True)]


def network(features: int, hidden: int, classes: int = 10) -> Model:
    """Random weights of variance 2 / inputs (He et al., 2015), and no biases."""
    source = np.random.default_rng(1)
    return {
        "w1": source.normal(size=(features, hidden)) * (2 / features) ** 0.5,
        "b1": np.zeros(hidden),
        "w2": source.normal(size=(hidden, classes)) * (2 / hidden) ** 0.5,
        "b2": np.zeros(classes),
    }


def descend(
    model: Model,
    x: Floats,
    y: NDArray[np.int64],
    lr: float,
    batch: int,
    extra: Callable[[str, Model], Any] = lambda _name, _model: 0.0,
) -> Model:
    """One epoch of the network in NumPy, in the samples' order, with its gradient by hand.

    ``extra`` is what is added to the gradient of a tensor, at the model where it was taken.
    """
    model = {name: value.copy() for name, value in model.items()}
    for at in range(0, len(x), batch):
        rows, labels = x[at : at + batch], y[at : at + batch]
        before = rows @ model["w1"] + model["b1"]
        hidden = np.maximum(before, 0)
        scores = np.exp(hidden @ model["w2"] + model["b2"])
        error = (scores / scores.sum(axis=1, keepdims=True) - np.eye(10)[labels]) / len(rows)
        back = (error @ model["w2"].T) * (before > 0)
        slopes = {"w1": rows.T @ back, "b1": back.sum(0), "w2": hidden.T @ error, "b2": error.sum(0)}
        added = {name: extra(name, model) for name in model}
        for name, slope in slopes.items():
            model[name] -= lr * (slope + added[name])
    return model
