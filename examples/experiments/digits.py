#!/usr/bin/env python3
"""Write the handwritten digits as the data of some devices, and a model of zeros to start from.

``data/`` is for three devices, each of which has more of some digits than of others. ``robust/`` is for ten with about the same
of each digit; the sensors of the last three are broken. Features are the 64 pixels, from 0 to 1. A seventh of the records,
``test.json``, no device has.

    python3 digits.py        (needs scikit-learn and NumPy)
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

SEED, TEST_PARTS = 0, 7
UNEVEN, NEARLY_EVEN = 0.5, 100.0
"""Of each digit, devices get shares from a Dirichlet distribution with this parameter (Hsu, Qi and Brown 2019)."""

BROKEN, NOISE = 3, 100.0
HERE = Path(__file__).parent


def spread(labels: Any, rows: Any, devices: int, alpha: float, random: Any) -> list[list[int]]:
    """The rows of each device."""
    parts: list[list[int]] = [[] for _ in range(devices)]
    for digit in range(10):
        some = rows[labels[rows] == digit]
        shares = random.dirichlet([alpha] * devices)
        cuts = (np.cumsum(shares)[:-1] * len(some)).astype(int)
        for part, piece in zip(parts, np.split(some, cuts), strict=True):
            part.extend(piece.tolist())
    return parts


def write(name: str, pixels: Any, labels: Any) -> None:
    """Write one device's data."""
    records = [{"x": x.tolist(), "y": int(y)} for x, y in zip(pixels, labels, strict=True)]
    file = HERE / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"data": records}))
    sys.stdout.write(f"{name}.json: {len(records)} records\n")


def main() -> None:
    """Write ``data/1.json`` and so on, ``robust/1.json`` and so on, ``data/test.json`` and ``model.json`` beside this file."""
    x, y = load_digits(return_X_y=True)
    x, random = x / 16, np.random.default_rng(SEED)
    order = random.permutation(len(y))
    test, rest = order[: len(y) // TEST_PARTS], order[len(y) // TEST_PARTS :]
    write("data/test", x[test], y[test])
    for number, rows in enumerate(spread(y, rest, 3, UNEVEN, random), 1):
        write(f"data/{number}", x[rows], y[rows])
    parts = spread(y, rest, 10, NEARLY_EVEN, random)
    for number, rows in enumerate(parts, 1):
        if number > len(parts) - BROKEN:
            noise = random.normal(0, NOISE, (len(rows), x.shape[1])).round(2)
            write(f"robust/{number}", noise, random.integers(0, 10, len(rows)))
        else:
            write(f"robust/{number}", x[rows], y[rows])
    (HERE / "model.json").write_text(json.dumps({"w": np.zeros((64, 10)).tolist(), "b": [0.0] * 10}))


if __name__ == "__main__":
    main()
