#!/usr/bin/env python3
"""Write scikit-learn's handwritten digits as the data of three devices, each of which has more of some digits than of others, a test set, and a first model.

python digits.py        (needs scikit-learn)
"""

import json
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

DEVICES, SHARE = 3, 0.7
"""Of each digit, the device that has most has this share."""

TEST = 0.2
"""The part that no device has."""


def main() -> None:
    """Write ``data/1.json`` and so on, ``data/test.json`` and ``model.json``, beside this file."""
    x, y = load_digits(return_X_y=True)
    x, random = x / 16, np.random.default_rng(0)
    others = (1 - SHARE) / (DEVICES - 1)
    folder = Path(__file__).parent / "data"
    folder.mkdir(exist_ok=True)
    model = {"coef": np.zeros((10, x.shape[1])).tolist(), "intercept": [0.0] * 10}
    (folder.parent / "model.json").write_text(json.dumps(model))
    owner = np.array(
        [
            random.choice(DEVICES, p=[SHARE if d == label % DEVICES else others for d in range(DEVICES)])
            for label in y
        ]
    )
    tested = random.random(len(y)) < TEST
    parts = {str(device + 1): (owner == device) & ~tested for device in range(DEVICES)}
    for name, rows in {**parts, "test": tested}.items():
        records = [{"x": x[row].tolist(), "y": int(y[row])} for row in np.flatnonzero(rows)]
        (folder / f"{name}.json").write_text(json.dumps({"data": records}))
        print(f"data/{name}.json: {len(records)} records")


if __name__ == "__main__":
    main()
