#!/usr/bin/env python3
"""Writes the demo's records, those of three hospitals and those that none has, and a model without trees.

python3 hospitals.py    # data/1.json, 2.json, 3.json, test.json, model.npz
"""

import json
from pathlib import Path

import numpy as np

from propeller.data.hospitals import load

HERE = Path(__file__).parent


def main() -> None:
    """Write the files."""
    split = load()
    features, labels = split.held_out
    test = [
        {"x": row, "y": int(label)}
        for row, label in zip(np.round(features, 6).tolist(), labels.tolist(), strict=True)
    ]
    (HERE / "data").mkdir(exist_ok=True)
    for name, document in zip(("1", "2", "3", "test"), (*split.parts, {"data": test}), strict=True):
        (HERE / "data" / f"{name}.json").write_text(json.dumps({"data": document["data"]}))
    np.savez(HERE / "model.npz", trees=np.zeros(0, np.uint8))


if __name__ == "__main__":
    main()
