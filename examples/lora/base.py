#!/usr/bin/env python3
"""Writes what the example starts from: a network that knows scikit-learn's digits, and devices whose digits are mirrored.

python3 base.py    # model.npz, data/1.json, 2.json, 3.json, test.json
"""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

HIDDEN, RANK, SAMPLES = 256, 4, 300
HERE = Path(__file__).parent

Numbers = npt.NDArray[np.float64]


def train(x: Numbers, y: npt.NDArray[np.int64]) -> dict[str, Numbers]:
    """A network with one hidden layer, by gradient descent on all samples."""
    source = np.random.default_rng(0)
    w1, b1 = source.normal(size=(64, HIDDEN)) * 0.18, np.zeros(HIDDEN)
    w2, b2 = source.normal(size=(HIDDEN, 10)) * 0.09, np.zeros(10)
    for _ in range(300):
        hidden = np.maximum(x @ w1 + b1, 0)
        powers = np.exp(hidden @ w2 + b2)
        slope = (powers / powers.sum(axis=1, keepdims=True) - np.eye(10)[y]) / len(y)
        before = (slope @ w2.T) * (hidden > 0)
        w2, b2 = w2 - 0.3 * hidden.T @ slope, b2 - 0.3 * slope.sum(axis=0)
        w1, b1 = w1 - 0.3 * x.T @ before, b1 - 0.3 * before.sum(axis=0)
    return {"w1": w1, "b1": b1, "w2": w2, "b2": b2}


def main() -> None:
    """Write the files."""
    digits = load_digits()
    order = np.random.default_rng(1).permutation(len(digits.target))
    x, y = digits.data[order] / 16, digits.target[order]
    model = train(x[:500], y[:500])
    source = np.random.default_rng(2)
    model |= {"lora_a1": source.normal(size=(64, RANK)) / 8, "lora_b1": np.zeros((RANK, HIDDEN))}
    model |= {"lora_a2": source.normal(size=(HIDDEN, RANK)) / 16, "lora_b2": np.zeros((RANK, 10))}
    np.savez(HERE / "model.npz", **{name: array.astype(np.float32) for name, array in model.items()})  # type: ignore[arg-type]
    mirrored = x.reshape(-1, 8, 8)[:, :, ::-1].reshape(-1, 64)
    (HERE / "data").mkdir(exist_ok=True)
    for number, name in enumerate(("1", "2", "3", "test")):
        rows = slice(500 + number * SAMPLES, 500 + (number + 1) * SAMPLES)
        samples = [
            {"x": row.tolist(), "y": int(label)} for row, label in zip(mirrored[rows], y[rows], strict=True)
        ]
        (HERE / "data" / f"{name}.json").write_text(json.dumps({"data": samples}))


if __name__ == "__main__":
    main()
