#!/usr/bin/env python3
"""Write the handwritten digits as the data of some devices, and a model of zeros to start from.

Each device has more of some digits than of others (a Dirichlet distribution with parameter 0.5 for each digit, as in Hsu,
Qi and Brown 2019); a seventh of the records, ``test.json``, no device has. Features are the 64 pixels, from 0 to 1.

    python3 digits.py [DEVICES]        (3 if left out; needs scikit-learn and NumPy)
"""

import json
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

ALPHA, SEED, TEST_PARTS = 0.5, 0, 7


def main() -> None:
    """Write ``data/1.json`` and so on, ``data/test.json`` and ``model.json`` beside this file."""
    devices = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    here = Path(__file__).parent
    (here / "data").mkdir(exist_ok=True)
    x, y = load_digits(return_X_y=True)
    random = np.random.default_rng(SEED)
    order = random.permutation(len(y))
    test, rest = order[: len(y) // TEST_PARTS], order[len(y) // TEST_PARTS :]
    parts: list[list[int]] = [[] for _ in range(devices)]
    for digit in range(10):
        rows = rest[y[rest] == digit]
        shares = random.dirichlet([ALPHA] * devices)
        for part, some in zip(
            parts, np.split(rows, (np.cumsum(shares)[:-1] * len(rows)).astype(int)), strict=True
        ):
            part.extend(some.tolist())
    for name, rows in [*((str(n), part) for n, part in enumerate(parts, 1)), ("test", test.tolist())]:
        records = [{"x": (x[row] / 16).tolist(), "y": int(y[row])} for row in rows]
        (here / "data" / f"{name}.json").write_text(json.dumps({"data": records}))
        sys.stdout.write(f"data/{name}.json: {len(records)} records\n")
    (here / "model.json").write_text(json.dumps({"w": np.zeros((64, 10)).tolist(), "b": [0.0] * 10}))


if __name__ == "__main__":
    main()
