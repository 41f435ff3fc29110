#!/usr/bin/env python3
"""Writes the records of the demo's three hospitals, and those that none of them has.

python3 hospitals.py    # data/riverside.json, lakeview.json, st-anne.json, test.json
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
    for name, part in zip((*split.names, "test"), (*split.parts, {"data": test}), strict=True):
        file = name.lower().replace(". ", "-") + ".json"
        (HERE / "data" / file).write_text(json.dumps({"data": part["data"]}))


if __name__ == "__main__":
    main()
